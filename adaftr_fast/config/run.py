"""The configuration of a run: the data, optimizer and training sections, and all
sections together.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from adaftr_fast.config.fitted import fitted
from adaftr_fast.config.model import ModelConfig, preset
from adaftr_fast.config.options import AT_LEAST_0, AT_LEAST_1, DECAY, Range, Section, option
from adaftr_fast.errors import ConfigError
from adaftr_fast.files.json import from_json
from adaftr_fast.files.toml import loads_toml

MONITORED = ("auc", "gauc", "cvr_auc", "logloss")  # of logloss, less is better
SECONDS = Range(0, noun="number of seconds", infinite=True)


@dataclass
class DataConfig(Section):
    """The data options."""

    section = "data"

    folder: str = option("data/flights")
    """The folder that ``adaftr-fast prepare`` wrote."""


@dataclass
class OptimizerConfig(Section):
    """The optimizer options. Adam for all weights (Section 3.1.4), or another optimizer for the
    embedding tables.
    """

    section = "optimizer"

    lr: float = option(5e-4, within=AT_LEAST_0)
    """Learning rate, gamma of Algorithm 1 (Section 3.1.4)."""
    beta1: float = option(0.9, within=DECAY)
    """Decay of the first moment."""
    beta2: float = option(0.999, within=DECAY)
    """Decay of the second moment."""
    eps: float = option(1e-8, within=AT_LEAST_0)
    """Constant added to the square root of the second moment."""
    tables: Literal["adam", "lazy_adam", "sgd", "adagrad", "rowwise_adagrad"] = option("adam")
    """Optimizer of the embedding tables; all but adam update only the rows of the batch."""
    tables_lr: float | None = option(None, within=AT_LEAST_0)
    """Learning rate of the tables, with the same warm-up and schedule (null: lr)."""
    warmup_steps: int = option(0, within=AT_LEAST_0)
    """Number of steps over which the learning rate increases linearly from 0 to lr."""
    schedule: Literal["constant", "linear", "cosine"] = option("constant")
    """Learning rate after the warm-up: constant, or decaying to lr * lr_end at step decay_steps."""
    decay_steps: int = option(0)
    """Step of training at which the decay ends."""
    lr_end: float = option(0.0, within=Range(0, 1, noun="fraction"))
    """Learning rate at the end of the decay, as a fraction of lr."""
    clip_norm: float = option(0.0, within=AT_LEAST_0)
    """Maximum norm of the gradients of dense weights and tables together (0: no clipping)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.schedule != "constant" and self.decay_steps <= self.warmup_steps:
            needed = f"more than warmup_steps = {self.warmup_steps} for schedule {self.schedule!r}"
            raise self.error("decay_steps", needed, self.decay_steps)


@dataclass
class TrainingConfig(Section):
    """The training options."""

    section = "training"

    batch_size: int = option(1024, within=AT_LEAST_1)
    """Rows per step, B of Table 3 (Section 3.1.4); a shorter last batch is dropped."""
    accumulate: int = option(1, within=AT_LEAST_1)
    """Number of equal parts of a batch, computed in turn to save memory; a part contrasts only its
    own rows.
    """
    eval_batch_size: int = option(8192, within=AT_LEAST_1)
    """Rows per forward pass in evaluation."""
    shuffle_rows: int = option(1 << 20, within=AT_LEAST_1)
    """Rows that are shuffled together in memory (about 230 bytes each at 23 fields); row groups are
    shuffled first.
    """
    max_epochs: int = option(50, within=AT_LEAST_1, free_on_resume=True)
    """Maximum number of epochs."""
    patience: int = option(3, within=AT_LEAST_1, free_on_resume=True)
    """Number of epochs without a better validation metric (monitor) after which training stops."""
    monitor: str = option("auc", omit_default=True)
    """Validation metric that chooses the best weights and stops training: auc, gauc, cvr_auc or
    logloss, the mean over tasks, or that of one task, such as conversion/auc.
    """
    gauc_weights: Literal["none", "impressions"] = option("none", omit_default=True)
    """How GAUC weighs the groups that have both classes: all the same (none; Eq. 15), or by their
    rows (impressions), as most of the literature on click rates does.
    """
    validate_every: float = option(
        1.0, within=Range(0.001, 1, noun="number of epochs"), omit_default=True
    )
    """Epochs between two validations: 1, or a fraction 1/n such as 0.25. The best weights and early
    stopping follow them.
    """
    seed: int = option(0, within=Range(0, 2**63 - 1, noun="seed"))
    """Seed of the initial weights and the row order; the same seed gives the same bits on the same
    machine.
    """
    device: str = option("cpu")
    """Device to train on: cpu, cuda or cuda:N; with torchrun, cuda is one GPU per rank."""
    contrast_over: Literal["all", "rank"] = option("all", identifies=False)
    """Negatives of an anchor with torchrun: the rows of all ranks, or those of its own rank."""
    tables: Literal["replicated", "torchrec"] = option("replicated", free_on_resume=True)
    """Embedding tables with torchrun: replicated on every rank, or sharded by TorchRec
    (docs/scaling.md).
    """
    sharding: Literal["table_wise", "row_wise"] = option("table_wise", free_on_resume=True)
    """Sharding by TorchRec: each field's table on one rank, or a part of every table on
    each rank.
    """
    rank_timeout: float = option(
        600.0,
        within=Range(0, above=True, noun="number of seconds"),
        identifies=False,
        free_on_resume=True,
    )
    """Seconds that a rank waits for the others with torchrun before the run fails."""
    precision: Literal["float32", "bfloat16"] = option("float32")
    """Precision of the dense layers in training, by autocast; weights, tables and optimizer states
    are float32.
    """
    balance: Literal["none", "uncertainty", "pcgrad", "gradnorm"] = option(
        "none", omit_default=True
    )
    """How the tasks share a step: their losses are summed (none) or weighted by learned variances
    (uncertainty), or their gradients are projected (pcgrad) or weighted to balance their norms
    (gradnorm); docs/balancing.md.
    """
    gradnorm_alpha: float = option(1.5, within=Range(0, noun="exponent"), omit_default=True)
    """The larger, the more GradNorm favors tasks whose loss has fallen less, alpha of GradNorm."""
    compile: bool = option(False)
    """Compile the loss with torch.compile, which takes a minute. It is meant for GPUs: on a CPU it
    needs a C++ compiler, and its steps take longer.
    """
    graph: Literal["auto", "off"] = option("auto", identifies=False, free_on_resume=True)
    """Replay forward and backward where a step allows it, or never: on a GPU as a CUDA graph
    (docs/gpu.md), on the CPU without autograd (docs/performance.md).
    """
    sync_steps: int = option(20, within=AT_LEAST_1, identifies=False, free_on_resume=True)
    """Steps between two reports: the progress bar, signals with torchrun, and on a GPU the checks
    of losses and ids.
    """
    checkpoint_seconds: float = option(300.0, within=SECONDS, identifies=False, free_on_resume=True)
    """Seconds between two snapshots of the unfinished run within an epoch; every epoch ends with
    one.
    """
    progress: bool = option(True, identifies=False, free_on_resume=True)
    """Show progress bars."""
    trackers: list[Literal["tensorboard", "wandb", "mlflow"]] = option(
        factory=list, identifies=False, free_on_resume=True
    )
    """Where each validation is logged besides metrics.jsonl, such as ["tensorboard", "wandb",
    "mlflow"]; each is an extra of its name (docs/tracking.md).
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        self.trackers = list(dict.fromkeys(self.trackers))
        if self.monitor.rpartition("/")[2] not in MONITORED:
            raise self.error(
                "monitor", f"{', '.join(MONITORED)}, or TASK/ before one of them", self.monitor
            )
        if abs(self.validations * self.validate_every - 1) > 1e-6:
            raise self.error(
                "validate_every", "1, or a fraction 1/n such as 0.25", self.validate_every
            )
        if self.batch_size % self.accumulate:
            raise self.error(
                "accumulate", f"a divisor of batch_size = {self.batch_size}", self.accumulate
            )
        if self.balance in ("pcgrad", "gradnorm"):
            self._check_one_backward_per_task()

    @property
    def validations(self) -> int:
        """The number of validations in an epoch."""
        return round(1 / self.validate_every)

    def _check_one_backward_per_task(self) -> None:
        """Raises ConfigError if an option needs the gradients of all tasks in one backward."""
        for name, supported in (("accumulate", 1), ("compile", False), ("tables", "replicated")):
            if (value := getattr(self, name)) != supported:
                shown = str(value).lower()
                raise self.error(
                    "balance", f"none or uncertainty with training.{name} = {shown}", self.balance
                )


SECTIONS: dict[str, type[Section]] = {
    each.section: each for each in (DataConfig, ModelConfig, OptimizerConfig, TrainingConfig)
}


@dataclass
class WarmStartConfig(Section):
    """The run whose weights to start from."""

    section = "warm_start"

    run: str = option()
    """Folder of the run."""
    task: str = option("", omit_default=True)
    """Task of a single_dnn whose tables become the shared ones; "" is the first task of the new
    model that it has.
    """
    allow_empty: bool = option(False, omit_default=True)
    """Whether training may start although no weight of the run fits."""


@dataclass
class RunConfig:
    """The configuration of a run.

    Attributes:
        data: the data options.
        model: the model options.
        optimizer: the optimizer options.
        training: the training options.
        warm_start: the run whose weights to copy. None starts from random weights.
        preset: where the options that are not ``given`` come from: the paper's values, which are
            the defaults; ``fitted``, the number of training rows; or ``data``, which is the preset
            of the prepared data, else ``fitted``. ``for_log`` applies it.
        given: the options that were set by name, as ``section.option``.

    Raises:
        ConfigError: a section is not of its type; ``from_dict`` reads dictionaries.
    """

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    warm_start: WarmStartConfig | None = None
    preset: Literal["paper", "fitted", "data"] = "paper"
    given: frozenset[str] = field(default=frozenset(), repr=False, compare=False)

    def __post_init__(self) -> None:
        for name, section in SECTIONS.items():
            if not isinstance(value := getattr(self, name), section):
                raise ConfigError(f"RunConfig: {name} must be a {section.__name__}, got {value!r}")

    @classmethod
    def from_dict(cls, sections: Any) -> RunConfig:
        """Reads the output of ``to_dict`` or a part of it; missing options have their defaults.

        ``preset`` is that of the run. ``model.class`` is another name of ``model.name``.
        ``model.preset`` stands for the options of a preset, which the other options override.

        Raises:
            ConfigError: a key is unknown, or a value has another type or is out of range.
        """
        try:
            sections = expanded(sections)
            config = from_json(cls, sections, "config")
            names = {name: sections[name] for name in SECTIONS if name in sections}
            return replace(config, given=_names(names))
        except ConfigError:
            raise
        except ValueError as error:
            raise ConfigError(str(error)) from error

    @classmethod
    def from_toml(cls, path: str | Path, preset: str = "paper") -> RunConfig:
        """Reads a TOML file with one table per section. ``preset`` is that of a file without one.

        Raises:
            ConfigError: the file is not valid TOML, or as ``from_dict``.
            OSError: the file cannot be read.
        """
        try:
            content = loads_toml(Path(path).read_text(encoding="utf-8"))
            return cls.from_dict({"preset": preset} | content)
        except ValueError as error:
            raise ConfigError(f"{path}: {error}") from error

    def with_options(self, **sections: dict[str, Any]) -> RunConfig:
        """Returns a copy with other values of some options of data, model, optimizer and training.

        Raises:
            ConfigError: a section or option is unknown, or a value is out of range.
        """
        changed: dict[str, Any] = {}
        sections = expanded(sections)
        for name, options in sections.items():
            if name not in SECTIONS:
                raise ConfigError(f"config: expected one of {', '.join(SECTIONS)}, got {name!r}")
            known = [each.name for each in fields(SECTIONS[name])]
            for option_name in options:
                if option_name not in known:
                    raise ConfigError(
                        f"{name}: unknown option {option_name!r}; expected one of "
                        f"{', '.join(known)}"
                    )
            changed[name] = replace(getattr(self, name), **options)
        return replace(self, **changed, given=self.given | _names(sections))

    def for_log(self, rows: int, preset: str | None = None) -> RunConfig:
        """Returns a configuration whose options all have the values that the run is trained with.

        Args:
            rows: the number of training rows.
            preset: the preset of the prepared data, if there is one.
        """
        complete = replace(self, preset="paper")
        if (preset or "fitted" if self.preset == "data" else self.preset) == "paper":
            return complete
        values = self.flat()
        sections: dict[str, dict[str, Any]] = {}
        for name, value in fitted(rows, {name: values[name] for name in self.given}).items():
            section, _, key = name.partition(".")
            if name not in self.given:
                sections.setdefault(section, {})[key] = value
        return complete.with_options(**sections)

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Returns the options by section, as in JSON and TOML, without the preset. Those of a warm
        start are left out at their defaults.
        """
        sections = {name: asdict(getattr(self, name)) for name in SECTIONS}
        if self.warm_start is not None:
            default = asdict(WarmStartConfig(self.warm_start.run))
            sections["warm_start"] = {
                key: value
                for key, value in asdict(self.warm_start).items()
                if key == "run" or value != default[key]
            }
        return sections

    def flat(self) -> dict[str, Any]:
        """Returns the options as ``section.option`` -> value."""
        return {
            f"{name}.{key}": value
            for name, section in self.to_dict().items()
            for key, value in section.items()
        }

    def identity(self) -> dict[str, dict[str, Any]]:
        """Returns the options that determine the result of a run in one process, together with the
        data.

        The warm start, which decides on the result, too, is left out.
        """
        identity: dict[str, dict[str, Any]] = {}
        for name in ("model", "optimizer", "training"):
            values = asdict(getattr(self, name))
            default = asdict(SECTIONS[name]())
            identity[name] = {
                each.name: values[each.name]
                for each in fields(SECTIONS[name])
                if each.metadata["identifies"]
                and (values[each.name] != default[each.name] or not each.metadata["omit_default"])
            }
        return identity


def expanded(sections: Any) -> Any:
    """Replaces ``model.class`` by ``model.name`` (a field cannot be called "class"), and
    ``model.preset``.
    """
    model = sections.get("model") if isinstance(sections, dict) else None
    if not isinstance(model, dict):
        return sections
    if "class" in model and "name" in model:
        raise ConfigError("config.model: expected name or class, got both")
    options = {
        "name" if key == "class" else key: value for key, value in model.items() if key != "preset"
    }
    return sections | {"model": (preset(model["preset"]) if "preset" in model else {}) | options}


def _names(sections: dict[str, dict[str, Any]]) -> frozenset[str]:
    return frozenset(f"{section}.{name}" for section in sections for name in sections[section])


FREE_ON_RESUME = {
    f"{name}.{each.name}"
    for name, section in SECTIONS.items()
    for each in fields(section)
    if each.metadata["free_on_resume"]
}
"""Options that may have other values when a run resumes."""
