"""The options of the study: what is tuned, the contestants, and the rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from scipy.stats.qmc import LatinHypercube

from adaftr_fast.config import RunConfig
from adaftr_fast.config.model import preset
from benchmarks.paper.catalog import NO_OMEGA, WHOLE

TRIALS = 8
TRIAL_SEED = 100  # of a trial's training
SEEDS = range(200, 210)
CHOICES: dict[str, list[Any]] = {
    "optimizer.lr": [0.001, 0.002, 0.003, 0.006],
    "model.l2": [1e-6, 1e-5, 1e-4],
    "model.embedding_dim": [4, 8, 16],
    "model.expert_hidden": [[32], [64], [128]],
    "model.beta": [0.003, 0.01, 0.03, 0.1],
    "epochs": [0.25, 0.5, 1.0],  # of those that `train` chooses for the number of rows
}
"""What is tuned: the values of each option."""

PAIRS = WHOLE | NO_OMEGA | preset("recommended")
CONTESTANTS: dict[str, dict[str, Any]] = {
    "MMoE": {"name": "mmoe"},
    "blocks of two": PAIRS,
    "as printed": WHOLE | {"contrast_rows": 0, "contrast_epochs": 0.0},
    "PLE": {"name": "ple", "shared_experts": 1},  # three experts in all, as MMoE
    "Shared-Bottom": {"name": "shared_bottom"},
}
"""The model options of what is tuned."""


@dataclass(frozen=True)
class Row:
    """A row of the study.

    Attributes:
        contestant: whose chosen options it has; None: those of ``train`` by default.
        model: the model options.
        beta: factor on the chosen weight of the contrast; None: the one of equal gradient.
    """

    contestant: str | None
    model: dict[str, Any]
    beta: float | None = 1.0


def _pairs(beta: float | None = 1.0, **changes: Any) -> Row:
    return Row("blocks of two", PAIRS | changes, beta)


COMPARE = {name: Row(name, model) for name, model in CONTESTANTS.items()} | {
    "MMoE, default": Row(None, CONTESTANTS["MMoE"]),
    "blocks of two, default": Row(None, PAIRS),
}
WHY = {
    "whole batch": _pairs(contrast_rows=0),
    "whole batch, half of beta": _pairs(0.5, contrast_rows=0),
    "blocks of two, adaptive tau": _pairs(tau="adaptive"),
    "alignment": _pairs(None, contrast="alignment", contrast_rows=0),
    "blocks of 16": _pairs(contrast_rows=16),
}
BLOCKS = {f"blocks of {k}": _pairs(contrast_rows=k) for k in (4, 64)}
PARTS = {"compare": COMPARE, "why": WHY, "blocks": BLOCKS}

FIRST = ("flights_2", "draw_101", "chemistry", "star", "movies")
LATER = (
    "flights_4", "draw_102", "insteval_users", "flights_6", "parties", "ratings", "happiness", "youth",
    "draw_103", "flights_3", "flights_5", "census_split", "draw_104", "flights_7",
)  # fmt: skip
ORDER = [
    *(("compare", name) for name in FIRST),
    *(("why", name) for name in FIRST),
    *((part, name) for name in LATER for part in ("compare", "why")),
    *(("blocks", name) for name in FIRST + LATER),
]
"""The parts by set, in the order in which they are run."""


def trial(number: int) -> dict[str, Any]:
    """Returns the options of a trial, the same for every contestant. Trial 0 has the defaults, and
    the others are a Latin hypercube, in which each option takes all of its values.
    """
    if number == 0:
        return {}
    points = LatinHypercube(len(CHOICES), rng=20261203).random(TRIALS - 1)
    point = points[number - 1]
    return {name: each[int(u * len(each))] for (name, each), u in zip(CHOICES.items(), point)}


def config(options: dict[str, Any], model: dict[str, Any], beta: float, rows: int) -> RunConfig:
    """Returns the complete options of a run.

    Args:
        options: those of a trial.
        model: the model options of the row.
        beta: factor on the weight of the contrast.
        rows: the number of training rows, from which `train` takes what is not given.
    """
    sections: dict[str, dict[str, Any]] = {"model": dict(model), "optimizer": {}, "training": {}}
    for name, value in options.items():
        section, _, key = name.partition(".")
        if key:
            sections[section][key] = value
    default = RunConfig(preset="fitted").with_options(model=model).for_log(rows)
    if "epochs" in options:
        epochs = max(2, round(options["epochs"] * default.training.max_epochs))
        sections["training"]["max_epochs"] = epochs
    weight = sections["model"].get("beta", default.model.beta)
    sections["model"]["beta"] = beta * weight
    sections["training"]["progress"] = False
    return RunConfig(preset="fitted").with_options(**sections).for_log(rows)
