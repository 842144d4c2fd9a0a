"""A trained run: its folder, options, metrics and model, and the tables of several."""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from adaftr_fast.config import RunConfig
from adaftr_fast.data.dataset.loader import PreparedData
from adaftr_fast.display.tables import Shown, Table
from adaftr_fast.distributed.ranks import Ranks
from adaftr_fast.errors import CheckpointError, ConfigError, DataError
from adaftr_fast.files.json import dumps, from_json, loads
from adaftr_fast.files.publish import read_published
from adaftr_fast.files.tensors import SavedTensors
from adaftr_fast.models import MultiTaskModel, build_model
from adaftr_fast.models.build import ModelClass, class_name, find_class
from adaftr_fast.nn.embedding_table import tables_elsewhere
from adaftr_fast.training.checkpoint.files import check_seen, read_local_rows
from adaftr_fast.training.checkpoint.progress import epochs_after
from adaftr_fast.training.checkpoint.state import sharded_weights
from adaftr_fast.training.checkpoint.weights import (
    FILE,
    Description,
    load_checkpoint,
    load_weights,
    open_on_all_ranks,
    read_description,
    weights_of,
)
from adaftr_fast.training.evaluation import TaskMetrics
from adaftr_fast.training.sharding import check_tables, shard_tables

if TYPE_CHECKING:
    from adaftr_fast.display.figures import Picture

BEST, TEST, METRICS = "best", "test.json", "metrics.jsonl"  # names in the run folder
DOUBTS = "doubts.json"
REPORT = "report.md"
PICTURE = "report.png"
TRACKERS = "trackers.json"  # the runs of the trackers
RECORDED = {"epoch": float, "train": dict[str, float], "seconds": float, "samples_per_s": float}
"""What each line of metrics.jsonl holds, besides metrics."""
# a tower whose validation AUC is this close to 0.5 predicts a constant or noise
DEAD_MARGIN = 0.005
METRIC_COLUMNS = ("AUC", "GAUC", "log-loss", "of the rate", "predicted/observed", "CVR AUC")
# largest size that an option which the model does not use may have beyond the number of weights
UNUSED = 4096


@dataclass(frozen=True)
class Trained:
    """A trained model, as the folder of its run holds it.

    Attributes:
        folder: the run folder.
        about: the description in the checkpoint.
        model: the model with its best weights, in evaluation mode.
    """

    folder: Path
    about: Description
    model: MultiTaskModel

    @property
    def config(self) -> RunConfig:
        """The configuration that the model was trained with."""
        return self.about.config

    def check_data(self, data: PreparedData) -> None:
        """Raises CheckpointError if the ids or tasks of ``data`` have another meaning."""
        if self.about.fingerprint != data.manifest.fingerprint:
            raise CheckpointError(
                f"{self.folder}: trained on other data than {data.folder}: their ids or tasks "
                "differ"
            )

    def data(self, folder: Path | None = None) -> PreparedData:
        """Opens the prepared folder that the model was trained on.

        Args:
            folder: the folder, if it has moved. None uses its path at training time.

        Raises:
            CheckpointError: the folder is missing, or contains other data.
        """
        try:
            data = PreparedData(folder or self.config.data.folder)
        except DataError as error:
            raise CheckpointError(
                f"{self.folder}: the training data are required: {error}"
            ) from error
        self.check_data(data)
        return data


def load_trained(folder: Path, model_class: ModelClass | None = None) -> Trained:
    """Reads the model of a run with its description, also while the run goes on and replaces them.

    A checkpoint names the class of a model of one's own, but it is the caller who says which code
    runs: without ``model_class``, which need not be the recorded one, no module is imported.

    Args:
        folder: the run folder.
        model_class: the class of a model of one's own, or its name; None for a built-in model.

    Returns:
        The model on the CPU.

    Raises:
        CheckpointError: the run has no checkpoint, it is damaged, or it needs ``model_class``.
        ConfigError: the run's model is a built-in one and ``model_class`` is given, or as
            ``find_class``.
        BusyError: the checkpoint was replaced during each of many attempts.
    """
    best = folder / BEST
    weights, about = read_published(best / FILE, lambda _: load_checkpoint(best))
    config = about.config.model
    if model_class is not None and not config.is_own:
        name = class_name(model_class)
        raise ConfigError(f"{best}: its model is {config.name}, got the class {name}; leave it out")
    model = _built(best, about, model_class, sum(each.numel() for each in weights.values()))
    load_weights(model, weights, str(best))
    return Trained(folder, about, model.eval())


@dataclass(frozen=True, eq=False, repr=False)
class Run(Shown):
    """The result of a run. It prints as a table of its test metrics, in a notebook also as curves.

    Attributes:
        name: the name in reports.
        epochs: one record per validation, as in metrics.jsonl: losses, validation metrics, seconds,
            samples a second. ``epoch`` is the number of epochs trained, an int unless
            ``TrainingConfig.validate_every`` is less than 1.
        best_epoch: the ``epoch`` of the best weights; 0 if there are none.
        test: metrics on the test split by task, as fractions: "auc", "logloss", "calibration", and
            "gauc" with groups. A later stage of a funnel also has "cvr_auc", the AUC of
            p_cvr = p_ctcvr / p_ctr on the clicked rows. Empty while the run is unfinished.
        doubts: why the run's model may not be worth using, a sentence each; [] while the run is
            unfinished.
        folder: the folder with metrics.jsonl, ``best/`` and test.json; None for a run that writes
            no files.
        model_class: the class of a model of one's own, or its name; None for a built-in model.
        diagnostics: after ``train``, learned values of the rows of the test split by name, [N]
            each, such as the temperature; they are not kept on disk.
        interrupted: the number of the signal (Ctrl-C or SIGTERM) that ended training; 0 without a
            signal.
        description: the description in the checkpoint; None reads it from the folder when it is
            used.
    """

    name: str
    epochs: list[dict[str, Any]]
    best_epoch: float
    test: TaskMetrics = field(default_factory=dict)
    doubts: list[str] = field(default_factory=list)
    folder: Path | None = None
    model_class: ModelClass | None = None
    diagnostics: dict[str, np.ndarray] = field(default_factory=dict)
    interrupted: int = 0
    description: Description | None = None

    @classmethod
    def read(cls, folder: Path, model_class: ModelClass | None = None) -> Run:
        """Reads a run without its model.

        Raises:
            CheckpointError: a file is missing or damaged.
        """
        about = read_description(folder / BEST)
        per_epoch = about.config.training.validations
        epochs = _read(folder, METRICS, lambda text: _epochs(text, per_epoch))
        best = dumps(about.metrics)  # in which an undefined metric equals itself
        test: TaskMetrics = {}
        if (folder / TEST).exists():
            test = _read(folder, TEST, lambda text: _metrics(loads(text), TEST))
        return cls(
            about.config.model.name,
            epochs,
            next((each["epoch"] for each in epochs if dumps(each["validation"]) == best), 0),
            test,
            read_doubts(folder),
            folder,
            model_class,
            description=about,
        )

    @cached_property
    def about(self) -> Description:
        """The description in the checkpoint."""
        return self.description or read_description(self._local / BEST)

    @cached_property
    def trained(self) -> Trained:
        """The model with its description, read when it is first used.

        Raises:
            CheckpointError, ConfigError, BusyError: as ``load_trained``.
        """
        return load_trained(self._local, self.model_class)

    @property
    def model(self) -> MultiTaskModel:
        """The model with its best weights, on the CPU, in evaluation mode."""
        return self.trained.model

    @property
    def config(self) -> RunConfig:
        """The configuration that the run was trained with."""
        return self.about.config

    @property
    def _local(self) -> Path:
        if self.folder is None:
            raise CheckpointError(
                "the run was trained without a folder, from which its options and model are read"
            )
        return self.folder

    @property
    def validation(self) -> TaskMetrics:
        """Metrics of the best weights on the validation split; {} if there are none."""
        return next(
            (each["validation"] for each in self.epochs if each["epoch"] == self.best_epoch), {}
        )

    @property
    def dead_tasks(self) -> list[str]:
        """The tasks whose validation AUC is 0.5 within ``DEAD_MARGIN``."""
        return [
            task for task, each in self.validation.items() if abs(each["auc"] - 0.5) < DEAD_MARGIN
        ]

    @property
    def trained_epochs(self) -> float:
        """The number of epochs trained."""
        return self.epochs[-1]["epoch"] if self.epochs else 0

    @property
    def seconds_per_epoch(self) -> float:
        return sum(record["seconds"] for record in self.epochs) / max(self.trained_epochs, 1e-9)

    @property
    def samples_per_s(self) -> float:
        return float(np.mean([record["samples_per_s"] for record in self.epochs]))

    def table(self, *others: Run) -> Table:
        """Returns a table of test metrics and speed, one row per run and task; AUC and GAUC in
        percent.

        Args:
            others: runs to list below this one.
        """
        return result_table([self, *others])

    def summary(self) -> str:
        """Returns one line with the folder and the best epoch."""
        best = f"best epoch {self.best_epoch:g} of {self.trained_epochs:g}"
        unfinished = "" if self.test else "; unfinished: no test metrics yet"
        where = "" if self.folder is None else f"{self.folder}: "
        return f"{where}{self.name}, {best}{unfinished}"

    def curves(self, *others: Run) -> Picture:
        """Draws training loss, validation AUC and the quantiles of learned values by epoch.

        Args:
            others: runs to draw beside this one.
        """
        from adaftr_fast.training.curves import draw  # imports matplotlib

        return draw([self, *others])

    def _parts(self) -> list[str | Table]:
        if not self.test:
            return [self.summary()]
        notes = metric_notes(self.test, self.config.training.gauc_weights)
        return [self.summary(), self.table(), *notes, *self.doubts]

    def _repr_html_(self) -> str:
        image = base64.b64encode(self.curves()._repr_png_()).decode()
        return f'{super()._repr_html_()}<img alt="curves" src="data:image/png;base64,{image}">'


def result_table(runs: Sequence[Run], first: str = "model") -> Table:
    """Returns test metrics and speed, with a row per run and task; AUCs are in percent. ``first``
    heads the names.
    """
    header = [first, "task", *METRIC_COLUMNS, "best epoch", "samples/s", "s/epoch"]
    rows = []
    for run in runs:
        speed = [f"{run.best_epoch:g}", f"{run.samples_per_s:,.0f}", f"{run.seconds_per_epoch:.1f}"]
        rows += [[run.name, *cells, *speed] for cells in metric_cells(run.test)]
    return Table(header, rows, text_columns=2)


def metric_cells(metrics: TaskMetrics) -> list[list[str]]:
    """Returns a row per task: its name and the ``METRIC_COLUMNS``, AUCs in percent."""
    return [
        [
            task,
            f"{100 * each['auc']:.2f}",
            _percent(each.get("gauc")),
            f"{each['logloss']:.4f}",
            _number(each.get("rate_logloss"), 4),
            _number(each.get("calibration"), 3),
            _percent(each.get("cvr_auc")),
        ]
        for task, each in metrics.items()
    ]


def metric_line(metrics: TaskMetrics) -> str:
    """Formats the AUC of each task in percent, its log-loss and its calibration, for a line."""
    return "; ".join(
        f"{task} AUC {100 * each['auc']:.2f}, log-loss {each['logloss']:.4f} (of the rate "
        f"{_number(each.get('rate_logloss'), 4)}), predicted/observed {each['calibration']:.3f}"
        for task, each in metrics.items()
    )


def metric_notes(metrics: TaskMetrics, gauc_weights: str) -> list[str]:
    """Returns a sentence on the groups of GAUC, and one on sample weights, where there are any."""
    notes = []
    if groups := [
        f"{task} {each['gauc_groups']:,.0f}"
        for task, each in metrics.items()
        if "gauc_groups" in each
    ]:
        how = "weighted by their rows" if gauc_weights == "impressions" else "of equal weight"
        notes.append(
            f"GAUC: the mean AUC over the groups with both classes, {how}: {', '.join(groups)}."
        )
    unweighted = [
        f"{task} AUC {100 * each['unweighted_auc']:.2f}, log-loss {each['unweighted_logloss']:.4f}, "
        f"predicted/observed {each['unweighted_calibration']:.3f}"
        for task, each in metrics.items()
        if "unweighted_auc" in each
    ]
    if unweighted:
        notes.append(
            f"Rows count by their sample weights; if each counted once: {'; '.join(unweighted)}."
        )
    return notes


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _percent(fraction: float | None) -> str:
    return "-" if fraction is None else f"{100 * fraction:.2f}"


def read_doubts(folder: Path) -> list[str]:
    """Reads ``Run.doubts`` from a run folder. Raises CheckpointError if they are damaged."""
    if not (folder / DOUBTS).exists():
        return []
    return _read(folder, DOUBTS, lambda text: from_json(list[str], loads(text), DOUBTS))


def _read(folder: Path, name: str, parse: Callable[[str], Any]) -> Any:
    try:
        return parse((folder / name).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder}: the run cannot be read: {error}") from error


def _epochs(text: str, per_epoch: int) -> list[dict[str, Any]]:
    """Reads metrics.jsonl, where null stands for a metric that is undefined."""
    epochs = []
    for number, line in enumerate(text.splitlines(), 1):
        record = from_json(dict[str, Any], loads(line))
        record["validation"] = _metrics(record.get("validation"), "validation")
        for name, kind in RECORDED.items():
            record[name] = from_json(kind, record.get(name), name)
        expected = epochs_after(number, per_epoch)
        if record["epoch"] != expected:
            raise ValueError(
                f"{METRICS}: line {number}: expected epoch {expected:g}, got {record['epoch']:g}"
            )
        record["epoch"] = expected
        epochs.append(record)
    return epochs


def _metrics(value: Any, where: str) -> TaskMetrics:
    metrics = from_json(TaskMetrics, value, where)
    for task, each in metrics.items():
        names = ["auc", "logloss"]
        if "unweighted_auc" in each:
            names += ["unweighted_logloss", "unweighted_calibration"]
        for name in names:
            if name not in each:
                raise ValueError(f"missing key {f'{where}.{task}.{name}'!r}")
    return metrics


def earlier(folder: Path, name: str) -> Trained:
    """Returns the trained model that a new run continues. Its class may be imported if it is that
    of the new run.

    Args:
        folder: the run folder.
        name: ``model.name`` of the new run.

    Raises:
        CheckpointError: the run has no checkpoint, or its description is damaged.
    """
    return load_trained(folder, _same_class(read_description(folder / BEST), name))


def _same_class(about: Description, name: str) -> str | None:
    """Returns the class of an earlier model if it is one's own and that of the new one."""
    return name if about.config.model.is_own and name == about.config.model.name else None


def open_earlier(run: Path, name: str, ranks: Ranks) -> tuple[SavedTensors, Callable[[], Trained]]:
    """Opens the run that a new one continues, whose tables are not read.

    All ranks must call it. Each verifies a part of the files.

    Args:
        run: the run folder.
        name: as of ``earlier``.
        ranks: the ranks.

    Returns:
        The weights, which are read on access, and a function that builds the model. Its tables have
        no memory, unless it is a model of one's own in one process.

    Raises:
        CheckpointError: as ``load_trained``, or a rank does not see the run.
    """
    folder = run / BEST

    def opened(_: Path) -> tuple[SavedTensors, Description]:
        return open_on_all_ranks(folder, ranks), read_description(folder)

    if ranks.is_alone:
        saved, about = read_published(folder / FILE, opened)
    else:
        seen = (folder / FILE).exists()
        check_seen(folder, seen, ranks, "each rank reads the rows that it needs")
        saved, about = opened(folder)

    def build() -> Trained:
        elements = sum(math.prod(saved.shape(each)) for each in saved)
        # the constructor of a model of one's own may read its tables
        reads_tables = about.config.model.is_own and ranks.is_alone
        with nullcontext() if reads_tables else tables_elsewhere():
            model = _built(folder, about, _same_class(about, name), elements)
        elsewhere = {key for key, value in weights_of(model).items() if value.is_meta}
        weights = {
            key: torch.empty(saved.shape(key), device="meta") if key in elsewhere else saved[key]
            for key in saved
        }
        load_weights(model, weights, str(folder))
        return Trained(run, about, model.eval())

    return saved, build


def load_sharded(run: Path, config: RunConfig, ranks: Ranks) -> Trained:
    """Loads the run that a new one continues, on the new run's device and with its sharding. All
    ranks must call it.

    Args:
        run: the run folder, which all ranks see. Its tables may have been sharded or not.
        config: the configuration of the new run, with sharded tables.
        ranks: the ranks.

    Raises:
        CheckpointError: as ``open_earlier``.
        TrainingError: the model of the run has tables that cannot be sharded.
    """
    saved, build = open_earlier(run, config.model.name, ranks)
    trained = build()
    check_tables(trained.config.model, config.training)
    shard_tables(trained.model, config.optimizer, config.training, ranks, fills=False)
    read_local_rows(saved, sharded_weights(trained.model))
    trained.model.to(config.training.device).eval()
    return trained


def _built(
    folder: Path, about: Description, model_class: ModelClass | None, elements: int
) -> MultiTaskModel:
    """Builds the model of a checkpoint that holds ``elements`` numbers, without its weights."""
    config = about.config.model
    names = about.field_names or None
    if config.is_own:
        if model_class is not None:
            return find_class(model_class)(
                about.num_embeddings, about.tasks, config, names, about.dense
            )
        raise CheckpointError(
            f"{folder}: its model is the class {config.name}, whose module is imported only if you "
            "name it: "
            f"--model.class {config.name}, or model_class={config.name!r} in Python"
        )
    _check_sizes(folder, about, elements)
    try:
        return build_model(config, about.num_embeddings, about.tasks, names, about.dense)
    # sizes or options that do not go together, or no memory
    except (ValueError, TypeError, RuntimeError) as error:
        raise CheckpointError(
            f"{folder}: damaged: no model has the recorded sizes: {error}"
        ) from error


def _check_sizes(folder: Path, about: Description, elements: int) -> None:
    """Raises CheckpointError if a size is larger than the number of weights; it would take all time
    or memory.
    """
    model = about.config.model
    named = dict(enumerate(about.field_names))
    experts = max(model.num_experts, model.shared_experts or 0) + model.task_experts
    sizes = {
        "num_embeddings": sum(
            n for f, n in enumerate(about.num_embeddings) if named.get(f) not in model.attention
        ),
        "experts and layers": experts * model.extraction_layers,
        "embedding_dim": max(model.embedding_dim, *model.embedding_dims.values(), 0),
        "layer widths": max(
            *model.expert_hidden,
            *model.tower_hidden,
            *model.relatedness_hidden,
            *model.attention_hidden,
        ),
    }
    for name, size in sizes.items():
        if size > max(elements, UNUSED):
            raise CheckpointError(
                f"{folder}: damaged: {name} of {size:,}, but {elements:,} weights"
            )
