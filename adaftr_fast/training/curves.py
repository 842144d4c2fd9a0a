"""The picture of runs: loss in training and validation, validation AUC and learned
values by epoch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

from matplotlib.axes import Axes

from adaftr_fast.display.figures import Picture, plain, shortened, style

if TYPE_CHECKING:
    from adaftr_fast.training.trained import Run


class Panel(NamedTuple):
    """One pair of axes of the picture: a number of each epoch's record, found by its keys."""

    title: str
    label: str
    keys: tuple[str, ...]
    unit: float = 1.0


def _numbers(run: Run, *keys: str, unit: float = 1.0) -> list[float]:
    """Returns a number of each record; nan where the record does not have it."""
    numbers = []
    for record in run.epochs:
        found: Any = record
        for key in keys:
            found = found.get(key) if isinstance(found, dict) else None
        numbers.append(math.nan if found is None else unit * found)
    return numbers


def draw(runs: Sequence[Run]) -> Picture:
    """Draws log-loss in training and validation and validation AUC of each task, and learned
    values, by epoch.
    """
    tasks = _names(runs, "validation")
    learned = _names(runs, "diagnostics")
    panels = [Panel(task, "log-loss (crosses: validation)", ("train", task)) for task in tasks]
    panels += [
        Panel(task, "validation AUC, %", ("validation", task, "auc"), 100.0) for task in tasks
    ]
    panels += [
        Panel(name, "median (bar: 5 to 95 %)", ("diagnostics", name, "p50")) for name in learned
    ]
    columns = max(len(tasks), 1)
    rows = max(-(-len(panels) // columns), 1)
    names_height = 0.18 * len(runs) if len(runs) > 1 else 0.0
    picture = Picture(max(3.3 * columns, 6.6), 2.6 * rows + names_height)
    every = list(picture.subplots(rows, columns, squeeze=False).flat)
    for axes, panel in zip(every, panels):
        _draw(axes, runs, panel)
    for axes in every[len(panels) :]:
        axes.remove()
    if len(runs) > 1 and panels:
        lines = [line for line in every[0].lines if not str(line.get_label()).startswith("_")]
        picture.legend(handles=lines, loc="outside upper left", frameon=False, fontsize="small")
    return picture


def _names(runs: Sequence[Run], part: str) -> list[str]:
    """Returns the tasks, or the learned values, of all runs."""
    return list(
        dict.fromkeys(chain(*(record.get(part, {}) for run in runs for record in run.epochs)))
    )


def _draw(axes: Axes, runs: Sequence[Run], panel: Panel) -> None:
    for number, run in enumerate(runs):
        color, line = style(number)
        epochs = _numbers(run, "epoch")
        values = _numbers(run, *panel.keys, unit=panel.unit)
        axes.plot(
            epochs, values, marker=".", color=color, linestyle=line, label=shortened(run.name)
        )
        if run.best_epoch:
            best = values[epochs.index(run.best_epoch)]
            axes.plot(run.best_epoch, best, "o", color=color, fillstyle="none", markersize=9)
        if panel.keys[0] == "train":
            axes.plot(
                epochs,
                _numbers(run, "validation", panel.title, "logloss"),
                marker="x",
                color=color,
                linestyle=line,
                alpha=0.6,
                label="_validation",
            )
        if panel.keys[0] == "diagnostics":
            low, high = (_numbers(run, *panel.keys[:-1], point) for point in ("p5", "p95"))
            axes.vlines(
                epochs, low, high, color=color, alpha=max(0.1, 0.3 / len(runs)), linewidth=4
            )
    axes.set_title(panel.title)
    axes.set_xlabel("epoch (circle: weights kept)")
    axes.set_ylabel(panel.label)
    axes.set_xlim(
        0.5 * min(run.epochs[0]["epoch"] for run in runs),
        0.5 + max(run.trained_epochs for run in runs),
    )
    axes.locator_params(axis="x", integer=True)
    plain(axes)
