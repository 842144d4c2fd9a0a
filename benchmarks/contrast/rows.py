"""The rows of the study, by part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from adaftr_fast.config import ModelConfig
from adaftr_fast.config.model import preset
from benchmarks.paper.catalog import NO_OMEGA, TITLES, WHOLE, Variant, divide_experts

BATCH = 1024  # rows, training.batch_size
GRID = (2, 4, 8, 16, 64, 256, BATCH)
CHOSEN = 2  # of GRID, by the means of tables.py
ADDED = 16  # see "Departures" of __main__.py
RATES = (0.0002, 0.001, 0.003, 0.01, 0.033, 0.05)  # of conversions
OWN = "benchmarks.contrast.models:Contrast"

PRINTED = WHOLE | {"contrast_epochs": 0.0}
RECOMMENDED = PRINTED | NO_OMEGA | preset("recommended")
SETTINGS = {
    "as printed": PRINTED,
    "fixed": RECOMMENDED | {"contrast_epochs": 0.0},
    "recommended": RECOMMENDED,
}
TEMPERATURES = {
    "as printed": SETTINGS["as printed"],
    "fixed": SETTINGS["fixed"],
    "fixed, τ = 0.13": SETTINGS["fixed"] | {"tau_fixed": 0.13},
    "learned": PRINTED | {"tau": "scalar"},
    "as printed, clicked rows": PRINTED | {"name": OWN, "options": {"relatedness": "clicked"}},
}


@dataclass(frozen=True)
class Part:
    """A part of the protocol: its rows are trained on each set, over each backbone,
    with each seed.
    """

    # the options of each row by its title; those of the backbone come first
    rows: dict[str, dict[str, Any]]
    sets: tuple[str, ...]
    seeds: Sequence[int]
    backbones: tuple[str, ...] = ("mmoe",)


def with_rows(
    settings: dict[str, dict[str, Any]], numbers: tuple[int, ...]
) -> dict[str, dict[str, Any]]:
    """Returns the settings with each number of rows; a whole batch is ``contrast_rows`` = 0."""
    return {
        f"{name}, k = {k:,}": options | {"contrast_rows": 0 if k == BATCH else k}
        for name, options in settings.items()
        for k in numbers
    }


def _only(*names: str) -> dict[str, dict[str, Any]]:
    return {name: SETTINGS[name] for name in names}


def _own(**options: Any) -> dict[str, Any]:
    return PRINTED | {"name": OWN, "options": options}


BOTH = (CHOSEN, BATCH)
TWO_SETS = ("flights", "synthetic")
PARTS = {
    "grid": Part(with_rows(SETTINGS, GRID), TWO_SETS, range(100, 105)),
    "confirm": Part(
        with_rows(SETTINGS, BOTH) | with_rows(_only("recommended"), (ADDED,)),
        ("flights", "flights_late", "synthetic", "insteval", "movielens", "census"),
        range(10),
    ),
    "backbones": Part(
        with_rows(_only("as printed", "recommended"), BOTH),
        TWO_SETS,
        range(10),
        ("ple", "shared_bottom"),
    ),
    "sparsity": Part(
        with_rows(_only("as printed", "recommended"), BOTH),
        tuple(f"synthetic_{rate:g}" for rate in RATES),
        range(3),
    ),
    "temperature": Part(with_rows(TEMPERATURES, (4, 16)), TWO_SETS, range(10)),
    "why": Part(
        {
            **with_rows(_only("as printed"), (16, BATCH)),
            "no negatives of the same group": _own(mask="group"),
            "no negatives above the positive": _own(mask="above"),
            "k = 16, similar rows together": _own(order="together") | {"contrast_rows": 16},
            "k = 16, similar rows apart": _own(order="apart") | {"contrast_rows": 16},
        },
        TWO_SETS,
        range(10),
    ),
    "apart": Part(
        {
            "L_cl": SETTINGS["as printed"],
            "L_cl, τ = 0.05": SETTINGS["fixed"],
            "dot product, β = 1": _own(loss="dot") | {"beta": 1.0},
            "dot product, β = 10": _own(loss="dot") | {"beta": 10.0},
            "L_cl, debiased": _own(loss="debiased"),
            "L_cl, hard negatives": _own(loss="hard"),
        },
        ("flights",),
        range(10),
    ),
    "towers": Part(
        {
            "fixed, k = 16": SETTINGS["fixed"] | {"contrast_rows": 16},
            "fixed, k = 16, from the rates": SETTINGS["fixed"]
            | {"contrast_rows": 16, "start_at_rates": True},
        },
        ("synthetic",),
        (5, 103),
        ("mmoe", "ple"),
    ),
}


def variants(part: Part, backbone: str, tasks: int) -> list[Variant]:
    """Returns the backbone's row, and the part's rows over it."""
    rows = {TITLES[backbone]: {"name": backbone}} | {
        title: {"backbone": backbone} | options for title, options in part.rows.items()
    }
    return [
        divide_experts(Variant(title, options), ModelConfig(), tasks)
        for title, options in rows.items()
    ]
