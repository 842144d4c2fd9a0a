"""Reports of runs: Markdown tables and a figure of training loss, validation AUC and diagnostics."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from adaftr_fast._files import replace_file
from adaftr_fast._tables import Table
from adaftr_fast.training.evaluation import spread
from adaftr_fast.training.result import TrainedRun, result_table


def write_report(folder: Path, title: str, runs: list[TrainedRun], notes: str = "") -> None:
    """Writes ``report.md`` and ``report.png`` to ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    sections = [f"# {title}", result_table(runs).markdown(), notes, _diagnostics_table(runs), "![curves](report.png)"]
    replace_file(folder / "report.md", ("\n\n".join(filter(None, sections)) + "\n").encode())
    save_figure(folder / "report.png", draw(runs))


def save_figure(path: Path, figure: Figure) -> None:
    """Writes ``figure`` as PNG."""
    replace_file(path, png(figure, dpi=120))


def png(figure: Figure, dpi: int) -> bytes:
    """Returns ``figure`` as the content of a PNG file."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=dpi)
    return content.getvalue()


class Curves(Figure):
    """A figure that a notebook shows although pyplot does not know it."""

    def _repr_png_(self) -> bytes:
        return png(self, dpi=80)


def _diagnostics_table(runs: list[TrainedRun]) -> str:
    points = [(run.name, name, spread(values)) for run in runs for name, values in run.diagnostics.items()]
    rows = [[run, name, *(f"{value:.4f}" for value in each.values())] for run, name, each in points]
    return Table(["model", "learned", "5 %", "50 %", "95 %"], rows, text_columns=2).markdown() if rows else ""


def draw(runs: Sequence[TrainedRun]) -> Curves:
    """Draws training loss and validation AUC per task, and histograms of the diagnostics."""
    tasks = list(runs[0].epochs[0]["validation"])
    histograms = [(run.name, name, values) for run in runs for name, values in run.diagnostics.items()]
    widths = [len(tasks), 1] if histograms else [len(tasks)]
    figure = Curves(figsize=(4.2 * sum(widths), 6.4), layout="constrained")
    FigureCanvasAgg(figure)
    left, *right = figure.subfigures(1, len(widths), width_ratios=widths, squeeze=False)[0]
    for row, what in zip(left.subplots(2, len(tasks), squeeze=False), ("loss", "auc"), strict=True):
        for axes, task in zip(row, tasks, strict=True):
            _draw_curves(axes, runs, task, what)
    for part in right:
        all_axes = part.subplots(len(histograms), 1, squeeze=False)[:, 0]
        for axes, (run, name, values) in zip(all_axes, histograms, strict=True):
            _draw_histogram(axes, f"{run}: {name}", values)
    return figure


def _draw_curves(axes: Axes, runs: Sequence[TrainedRun], task: str, what: str) -> None:
    for color, run in enumerate(runs):
        epochs = [record["epoch"] for record in run.epochs]
        if what == "loss":
            values = [record["train"].get(task, np.nan) for record in run.epochs]
        else:
            values = [100 * record["validation"][task]["auc"] for record in run.epochs]
        axes.plot(epochs, values, marker=".", color=f"C{color}", label=run.name)
        if run.best_epoch:
            axes.plot(run.best_epoch, values[run.best_epoch - 1], "o", color=f"C{color}", fillstyle="none", ms=10)
    axes.set_title(f"{task}: {'training loss' if what == 'loss' else 'validation AUC, %'}")
    axes.set_xlabel("epoch (circle: weights kept)")
    axes.locator_params(axis="x", integer=True)
    axes.grid(alpha=0.3)
    axes.legend()


def _draw_histogram(axes: Axes, title: str, values: np.ndarray) -> None:
    axes.hist(values, bins=80, color="C7")
    for (name, value), style in zip(spread(values).items(), (":", "-", ":"), strict=True):
        axes.axvline(value, color="C3", linestyle=style, label=f"{name[1:]} %: {value:.3f}")
    axes.set_title(title)
    axes.set_ylabel("test rows")
    axes.legend()
