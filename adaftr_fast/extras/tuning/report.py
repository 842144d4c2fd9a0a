"""The report of a search: the best trials, the best configuration, and a figure of progress and
importances.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import optuna
from matplotlib.axes import Axes
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.trial import TrialState

from adaftr_fast.display.figures import BLUE, GRAY, VERMILION, Picture, plain
from adaftr_fast.display.tables import Table
from adaftr_fast.engines import Engine
from adaftr_fast.extras.tuning.search import (
    ERROR,
    OPTIONS,
    Found,
    Search,
    ranked,
    shown,
    trials_of,
    tune,
)
from adaftr_fast.files.locks import writing_folder
from adaftr_fast.files.toml import to_toml
from adaftr_fast.files.whole import replace_file
from adaftr_fast.training.trained import METRIC_COLUMNS, metric_cells

BEST_CONFIG, REPORT, PLOT = "best.toml", "report.md", "report.png"  # names in the folder
SHOWN = 10
LEAST_VALUES = 3  # of the AUC, for importances


def tune_and_report(search: Search, trials: int, engine: Engine | None = None) -> str:
    """Calls ``tune`` and ``write_report`` as the only writer of the folder; returns the text to
    print.

    The arguments and the errors are those of ``tune``.
    """
    with writing_folder(search.folder, BEST_CONFIG, REPORT, PLOT):
        return write_report(search.folder, tune(search, trials, engine))


def write_report(folder: Path, found: Found) -> str:
    """Writes ``best.toml``, ``report.md`` and ``report.png``; returns the text to print."""
    replace_file(folder / BEST_CONFIG, to_toml(found.config.to_dict()).encode())
    best = best_table(found.study).markdown()
    test = Table(["task", *METRIC_COLUMNS], metric_cells(found.test)).markdown()
    title = f"Test split, trial {found.best.number:04d}"
    sections = ["# Search", state_line(found.study), best, f"## {title}", test]
    sections += [f"![trials]({PLOT})", *failures(found.study)]
    draw(found.study).save_with(folder / REPORT, sections)
    return f"{best}\n\n{title}\n{test}"


def best_table(study: optuna.Study) -> Table:
    """Returns the best trials, AUC in percent."""
    rows = [
        [f"{each.number:04d}", shown(each.user_attrs[OPTIONS]), f"{100 * (each.value or 0):.2f}"]
        for each in ranked(study)[:SHOWN]
    ]
    return Table(["trial", "options", "validation AUC"], rows, text_columns=2)


def failures(study: optuna.Study) -> list[str]:
    """Returns a section with the options and the error of each failed trial; [] if none
    has failed.
    """
    failed = trials_of(study, TrialState.FAIL)
    lines = [
        f"- {each.number:04d}: {shown(each.user_attrs[OPTIONS])}: {each.user_attrs[ERROR]}"
        for each in failed
    ]
    return ["## Failed trials", "\n".join(lines)] if lines else []


def state_line(study: optuna.Study) -> str:
    """Returns how many trials finished, were pruned and failed."""
    states = [each.state for each in trials_of(study)]
    counts = [
        states.count(each) for each in (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
    ]
    return "{} trials: {} finished, {} pruned, {} failed.".format(len(states), *counts)


def draw(study: optuna.Study) -> Picture:
    """Draws the AUC by trial with the best so far, and the importance of each option."""
    figure = Picture(11, 4)
    left, right = figure.subplots(1, 2)
    _draw_history(left, study)
    _draw_importances(right, study)
    return figure


def _draw_history(axes: Axes, study: optuna.Study) -> None:
    for state, color, label in (
        (TrialState.COMPLETE, BLUE, "finished"),
        (TrialState.PRUNED, GRAY, "pruned"),
    ):
        trials = trials_of(study, state)
        values = [100 * (each.value if each.value is not None else np.nan) for each in trials]
        axes.plot([each.number for each in trials], values, ".", color=color, label=label)
        if state == TrialState.COMPLETE:
            numbers = [*(each.number for each in trials), len(trials_of(study)) - 1]
            best = np.maximum.accumulate([*values, max(values)])
            axes.step(numbers, best, where="post", color=VERMILION, label="best so far")
    axes.set_xlabel("trial")
    axes.set_ylabel("validation AUC, %")
    axes.locator_params(axis="x", integer=True)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3, frameon=False)
    plain(axes)


def _draw_importances(axes: Axes, study: optuna.Study) -> None:
    axes.set_xlabel("importance of the option (PED-ANOVA)")
    plain(axes, "x")
    axes.set_xlim(0, 1)
    found = importances(study)
    axes.barh(list(found)[::-1], list(found.values())[::-1], color=BLUE)
    if not found:
        axes.set_yticks([])
        axes.text(0.5, 0.5, "too few trials", ha="center", transform=axes.transAxes)


def importances(study: optuna.Study) -> dict[str, float]:
    """Returns the share of each option in the differences of the AUC, the largest first; {} with
    too few trials.
    """
    values = {each.value for each in trials_of(study, TrialState.COMPLETE)}
    if len(values) < LEAST_VALUES:
        return {}
    return get_param_importances(study, evaluator=PedAnovaImportanceEvaluator())
