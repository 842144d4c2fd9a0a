"""The paper's tables and figures as data: the model of each row and the rows it is compared with.

A row is a base ``ModelConfig`` with a few fields changed, so all rows of an experiment have the
same budget.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any, Literal

from adaftr_fast.config import ModelConfig, OptimizerConfig, RunConfig, TrainingConfig
from adaftr_fast.config.model import MODELS, preset
from adaftr_fast.errors import ConfigError

TITLES = {name: known.title for name, known in MODELS.items()}

BASELINES = tuple(
    name
    for name, known in MODELS.items()
    if name not in ("adaftr", "linear") and not known.needs_funnel
)
"""The models that the paper compares with AdaFTR, in the order of Table 4."""

WHOLE = {"name": "adaftr", "contrast": "infonce", "tau": "adaptive"}
"""Options of AdaFTR as printed, which override ablations in the base."""
NO_OMEGA = {"relatedness_updates": "omega", "temperature_updates": "none"}
"""Options that ``AdaFTR`` requires in an ablation without relatedness networks."""


def config_of(name: str) -> RunConfig:
    """Returns the options that all rows of a set have in common in docs/results.md."""
    if name.startswith("census"):
        return RunConfig(
            optimizer=OptimizerConfig(lr=0.002), training=TrainingConfig(progress=False, patience=2)
        )
    return RunConfig(training=TrainingConfig(progress=False))


def changed_options(config: RunConfig) -> dict[str, Any]:
    """Returns the options that a result depends on and that differ from the paper's, but for the
    seed.
    """
    defaults = RunConfig().identity()
    changed = {
        f"{section}.{name}": value
        for section, options in config.identity().items()
        for name, value in options.items()
        if value != defaults[section].get(name)
    }
    changed.pop("training.seed", None)
    return changed


@dataclass(frozen=True)
class Variant:
    """One row of an experiment.

    Attributes:
        title: the name of the row, as in the paper.
        changes: the fields of ``ModelConfig`` that differ from the base.
        against: titles of the rows to compare with, seed by seed. The table shows the difference to
            the first.
    """

    title: str
    changes: dict[str, Any]
    against: tuple[str, ...] = ()


@dataclass(frozen=True)
class Experiment:
    """A table or figure of the paper.

    Attributes:
        name: the name on the command line.
        title: the title of the report.
        variants: the rows, from top to bottom.
        form: the kind of plot: a dot and an interval per row, or a line through all rows but the
            first, which is a horizontal line.
    """

    name: str
    title: str
    variants: tuple[Variant, ...]
    form: Literal["dots", "line"] = "dots"


def experiment(name: str, base: ModelConfig, tasks: Sequence[str]) -> Experiment:
    """Returns the experiment ``name``.

    Args:
        name: the name of the experiment.
        base: the model options that all rows have in common.
        tasks: the tasks of the data set.

    Raises:
        ConfigError: there are too few tasks.
    """
    least = 3 if name == "figure4" else 2
    if len(tasks) < least:
        raise ConfigError(
            f"{name}: expected data with {least} tasks or more, got {', '.join(tasks)}"
        )
    title, rows_of = EXPERIMENTS[name]
    rows = tuple(divide_experts(row, base, len(tasks)) for row in rows_of(base, tasks))
    return Experiment(name, title, rows, "line" if name == "figure3" else "dots")


def divide_experts(row: Variant, base: ModelConfig, tasks: int) -> Variant:
    """Returns the row; if it is PLE, with MMoE's number of experts, each task's own ones included
    (Section 3.1.4).

    Args:
        row: a row of an experiment.
        base: the model options that all rows have in common; its ``shared_experts``, if given,
            stay.
        tasks: the number of tasks.
    """
    model = replace(base, **row.changes)
    name = model.backbone if model.name == "adaftr" else model.name
    if name != "ple" or base.shared_experts is not None:
        return row
    shared = max(1, base.num_experts - tasks * base.task_experts)
    return replace(row, changes=row.changes | {"shared_experts": shared})


def _table4(base: ModelConfig, tasks: Sequence[str]) -> list[Variant]:
    first, *others = (TITLES[name] for name in BASELINES)
    rows = [Variant(first, {"name": BASELINES[0]})]
    rows += [Variant(TITLES[name], {"name": name}, (first,)) for name in BASELINES[1:]]
    rows.append(Variant("AdaFTR", {"name": "adaftr"}, (first, *others)))
    return rows


def _table5(base: ModelConfig, tasks: Sequence[str]) -> list[Variant]:
    def without(title: str, **changes: Any) -> Variant:
        return Variant(title, WHOLE | NO_OMEGA | changes, ("AdaFTR", backbone))

    backbone = TITLES[base.backbone]
    return [
        Variant(backbone, {"name": base.backbone}, ("AdaFTR",)),
        Variant("AdaFTR", WHOLE, (backbone,)),
        without("w/o adaptive τ", tau="scalar"),
        without("w/o learnable τ", tau="fixed", tau_fixed=0.05),
        without("w/o negative (Eq. 7)", contrast="positive"),
        without("w/o negative (alignment)", contrast="alignment"),
        without("w/o contrastive (MSE)", contrast="mse"),
        without("w/o contrastive (MAE)", contrast="mae"),
        without("w/o alignment", contrast="none"),
    ]


def _recommended(base: ModelConfig, tasks: Sequence[str]) -> list[Variant]:
    backbone = TITLES[base.backbone]
    printed = WHOLE | {"contrast_epochs": 0.0, "contrast_rows": 0}
    recommended = printed | NO_OMEGA | preset("recommended")
    whole_batch = recommended | {"contrast_rows": 0}
    return [
        Variant(backbone, {"name": base.backbone}),
        Variant("AdaFTR", printed, (backbone,)),
        Variant("AdaFTR, τ = 0.05", whole_batch | {"contrast_epochs": 0.0}, (backbone, "AdaFTR")),
        Variant(
            "AdaFTR, β falls",
            printed | {"contrast_epochs": recommended["contrast_epochs"]},
            (backbone, "AdaFTR"),
        ),
        Variant("AdaFTR, τ = 0.05, β falls", whole_batch, (backbone, "AdaFTR")),
        Variant("AdaFTR, recommended", recommended, (backbone, "AdaFTR")),
    ]


def _table6(base: ModelConfig, tasks: Sequence[str]) -> list[Variant]:
    rows = []
    for name in ("shared_bottom", "mmoe", "ple"):
        rows.append(Variant(TITLES[name], {"name": name}))
        rows.append(
            Variant(
                f"{TITLES[name]} + AdaFTR", {"name": "adaftr", "backbone": name}, (TITLES[name],)
            )
        )
    return rows


def _figure3(base: ModelConfig, tasks: Sequence[str]) -> list[Variant]:
    backbone = TITLES[base.backbone]
    rows = [Variant(backbone, {"name": base.backbone})]
    for layer in range(1, len(base.tower_hidden) + 1):
        against = (backbone,) if layer == 1 else (backbone, "layer 1")
        rows.append(Variant(f"layer {layer}", {"name": "adaftr", "contrast_layer": layer}, against))
    return rows


def _figure4(base: ModelConfig, tasks: Sequence[str]) -> list[Variant]:
    backbone = TITLES[base.backbone]
    first = TITLES["shared_bottom"]
    every = [f"{a}-{b}" for a, b in combinations(tasks, 2)]
    rows = [Variant(first, {"name": "shared_bottom"})]
    if base.backbone != "shared_bottom":
        rows.append(Variant(backbone, {"name": base.backbone}, (first,)))
    others = (backbone,) if backbone == first else (backbone, first)
    # the first task with each
    rows.append(Variant("AdaFTR", {"name": "adaftr", "pairs": []}, others))
    for title, pairs in [
        *((pair, [pair]) for pair in every[: len(tasks) - 1]),
        ("all pairs", every),
    ]:
        rows.append(
            Variant(f"AdaFTR, {title}", {"name": "adaftr", "pairs": pairs}, (backbone, "AdaFTR"))
        )
    return rows


def _temperature(base: ModelConfig, tasks: Sequence[str]) -> list[Variant]:
    return [Variant("AdaFTR", WHOLE)]


def _abtest(base: ModelConfig, tasks: Sequence[str]) -> list[Variant]:
    backbone = TITLES[base.backbone]
    return [
        Variant(backbone, {"name": base.backbone}),
        Variant("AdaFTR", {"name": "adaftr"}, (backbone,)),
    ]


Rows = Callable[[ModelConfig, Sequence[str]], list[Variant]]
EXPERIMENTS: dict[str, tuple[str, Rows]] = {
    "table4": ("Every model (Table 4)", _table4),
    "table5": ("AdaFTR without its parts (Table 5)", _table5),
    "table6": ("AdaFTR over several backbones (Table 6)", _table6),
    "recommended": ("Temperature, schedule and rows of the contrast", _recommended),
    "figure3": ("Which tower layer is contrasted (Figure 3)", _figure3),
    "figure4": ("Three tasks and their pairs (Figure 4)", _figure4),
    "temperature": ("The learned temperature (Equation 12)", _temperature),
    "abtest": ("A/B test, simulated (Table 7)", _abtest),
}
"""The title of each experiment, and the function of its rows."""
