"""Plots in the form of the paper's figures: one column per task, AUC above GAUC, with the spread over seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.axes import Axes

from adaftr_fast._figures import BLUE, GRAY, VERMILION, Picture, plain
from adaftr_fast.experiments.results import METRICS, Results, Row


def draw(results: Results) -> Picture:
    """Draws a dot and an interval per row (Figure 4), or a line through all rows but the first (Figure 3).

    A dot is the mean over the seeds, its interval one standard deviation to each side, and each gray dot a seed.
    """
    tasks, columns = results.tasks, results.columns()
    metrics = [metric for metric in METRICS if any(column[1] == metric for column in columns)]
    is_line = results.experiment.form == "line"
    height = 2.8 if is_line else 0.26 * len(results.rows) + 1.2
    picture = Picture(max(3.6 * len(tasks) + (0.0 if is_line else 1.2), 6.6), 0.8 + height * max(1, len(metrics)))
    picture.suptitle(
        f"{results.experiment.title}: {results.dataset}\nmean ± standard deviation over seeds", fontsize=11
    )
    if not metrics:
        return picture
    for line, metric in zip(picture.subplots(len(metrics), len(tasks), squeeze=False), metrics, strict=True):
        for number, (axes, task) in enumerate(zip(line, tasks, strict=True)):
            paint = _paint_line if is_line else _paint_dots
            paint(axes, results.rows, task, metric)
            if number and not is_line:
                axes.tick_params(labelleft=False)  # as in the first column
    if is_line:
        handles, names = picture.axes[0].get_legend_handles_labels()
        picture.legend(handles, names, loc="outside lower left", ncols=2, frameon=False)
    return picture


def _paint_dots(axes: Axes, rows: list[Row], task: str, metric: str) -> None:
    for place, row in enumerate(rows):
        (mean,), (deviation,) = _points([row], task, metric)
        color = VERMILION if row.variant.changes.get("name") == "adaftr" else BLUE
        scores = list(row.scores(task, metric).values())
        axes.plot(scores, [place] * len(scores), "o", color=GRAY, alpha=0.4, markersize=3)
        axes.errorbar(mean, place, xerr=deviation, fmt="o", color=color, markersize=6)
    axes.set_yticks(range(len(rows)), [row.title for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlabel(f"test {metric.upper()}, %")
    axes.set_ylabel("model")
    axes.set_title(task)
    plain(axes, "x")


def _paint_line(axes: Axes, rows: list[Row], task: str, metric: str) -> None:
    means, deviations = _points(rows, task, metric)
    places = range(1, len(rows))
    axes.axhline(means[0], color=BLUE, linestyle="--", label=rows[0].title)
    axes.errorbar(places, means[1:], deviations[1:], color=VERMILION, marker="o", capsize=3, label="AdaFTR")
    axes.set_xticks(places, [row.title for row in rows[1:]])
    axes.set_xlabel("contrasted tower layer")
    axes.set_ylabel(f"test {metric.upper()}, %")
    axes.set_title(task)
    plain(axes)


def _points(rows: Sequence[Row], task: str, metric: str) -> tuple[list[float], list[float]]:
    """Returns means and standard deviations; a row without results is nan and not drawn."""
    spreads = [row.spread(task, metric) for row in rows]
    return [each.mean for each in spreads], [0.0 if math.isnan(each.std) else each.std for each in spreads]
