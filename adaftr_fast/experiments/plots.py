"""Plots in the form of the paper's figures: one column per task, AUC above GAUC, standard deviations as error bars."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from adaftr_fast.experiments.results import METRICS, Results, Row


def draw(results: Results) -> Figure:
    """Draws one bar per row (Figure 4), or a line through all rows but the first (Figure 3)."""
    tasks, columns = results.tasks, results.columns()
    metrics = [metric for metric in METRICS if any(column[1] == metric for column in columns)]
    width = max(3.6, 0.55 * len(results.rows) + 1.5) if results.experiment.form == "bars" else 3.6
    figure = Figure(figsize=(width * len(tasks), 3.4 * max(1, len(metrics))), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(f"{results.experiment.title}: {results.dataset}")
    if not metrics:
        return figure
    for line, metric in zip(figure.subplots(len(metrics), len(tasks), squeeze=False), metrics, strict=True):
        for axes, task in zip(line, tasks, strict=True):
            paint = _paint_bars if results.experiment.form == "bars" else _paint_line
            paint(axes, results.rows, task, metric)
            axes.set_title(f"{task}: {metric.upper()}")
            axes.grid(axis="y", alpha=0.3)
    return figure


def _paint_bars(axes: Axes, rows: list[Row], task: str, metric: str) -> None:
    means, errors = _points(rows, task, metric)
    places = range(len(rows))
    colors = ["C1" if row.variant.changes.get("name") == "adaftr" else "C0" for row in rows]
    axes.bar(places, means, yerr=errors, color=colors, capsize=3)
    axes.set_xticks(places, [row.title for row in rows], rotation=40, ha="right", rotation_mode="anchor")
    _zoom(axes, means, errors)


def _paint_line(axes: Axes, rows: list[Row], task: str, metric: str) -> None:
    means, errors = _points(rows, task, metric)
    axes.axhline(means[0], color="C0", linestyle="--", label=rows[0].title)
    axes.errorbar([row.title for row in rows[1:]], means[1:], errors[1:], color="C1", marker="o", capsize=3)
    axes.legend()
    _zoom(axes, means, errors)


def _points(rows: list[Row], task: str, metric: str) -> tuple[list[float], list[float]]:
    """Returns means and standard deviations; a row without results is nan and not drawn."""
    spreads = [row.spread(task, metric) for row in rows]
    return [each.mean for each in spreads], [each.std if each.count > 1 else 0.0 for each in spreads]


def _zoom(axes: Axes, means: list[float], errors: list[float]) -> None:
    """Limits the axis to the data, so that differences of tenths are visible."""
    if np.isnan(means).all():  # no run has the metric
        return
    low = np.nanmin(np.subtract(means, errors))
    high = np.nanmax(np.add(means, errors))
    margin = max(0.25 * (high - low), 0.02)
    axes.set_ylim(low - margin, high + margin)
