"""Says where a model is not worth explaining yet: it is no better than a constant, or was not
trained to its end.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from adaftr_fast.errors import CheckpointError
from adaftr_fast.explain.buckets import COUNT, ScoreBuckets
from adaftr_fast.training.evaluation import TaskMetrics
from adaftr_fast.training.trained import Run

NOTICED = 2.0  # standard errors above chance
GAIN = 2e-4  # of the log-loss of a constant, which is small for a rare task; less is no gain
NEXT = (
    "train longer or with another `--optimizer.lr`, and look for errors in the data (`report.html` "
    "of prepare)"
)


def find_doubts(run: Run, metrics: TaskMetrics, buckets: Mapping[str, ScoreBuckets]) -> list[str]:
    """Returns a sentence for each reason to doubt what an evaluation shows of the data, with what
    to do next.

    Args:
        run: the run.
        metrics: metrics of each task on the rows.
        buckets: the same rows by score.
    """
    doubts = []
    for task, each in metrics.items():
        positives = (buckets[task].observed * buckets[task].rows).sum()
        rows = buckets[task].rows.sum()
        if not 0 < positives < rows:
            continue
        rate = positives / rows
        constant = -(rate * np.log(rate) + (1 - rate) * np.log1p(-rate))
        error = auc_error(each["auc"], positives, rows - positives)
        if each["auc"] <= 0.5 + NOTICED * error:
            shown = f"AUC {100 * each['auc']:.2f} % ± {100 * error:.2f}"
            doubts.append(
                f"{task}: the model ranks these rows no better than chance ({shown}): {NEXT}."
            )
        elif each["logloss"] > constant * (1 - GAIN):
            shown = f"log-loss {each['logloss']:.4g}, of the rate {constant:.4g}"
            what = f"the probabilities are no better than the rate {rate:.4g} for all rows"
            doubts.append(f"{task}: {what} ({shown}): {NEXT}.")
        # of the bounds of buckets, within rows of one score
        tied = 1 - len(buckets[task].rows) / min(COUNT, rows)
        if tied > 0:
            what = f"about {100 * tied:.0f} % of the rows share a score with many others"
            doubts.append(
                f"{task}: {what}: compare with a smaller `--optimizer.lr`, or with more fields."
            )
    return [*doubts, *_undertrained(run)]


def auc_error(auc: float, positives: float, negatives: float) -> float:
    """Returns the standard error of an AUC (Hanley and McNeil, 1982)."""
    above_two = auc / (2 - auc)  # a positive is above two negatives
    below_two = 2 * auc**2 / (1 + auc)  # a negative is below two positives
    variance = (
        auc * (1 - auc)
        + (positives - 1) * (above_two - auc**2)
        + (negatives - 1) * (below_two - auc**2)
    )
    return float(np.sqrt(variance / (positives * negatives)))


def _undertrained(run: Run) -> list[str]:
    try:
        best = run.best_epoch
        trained = run.trained_epochs
        most = run.config.training.max_epochs
    except CheckpointError:  # without the records of its epochs
        return []
    if not trained or best < trained or trained < most:
        return []
    epochs = "the one epoch" if trained == 1 else f"the last of {trained:g} epochs"
    longer = f"`--training.max_epochs {2 * most}`"
    return [
        f"Validation is best after {epochs}, so the model may not be trained to its end: compare "
        f"with {longer}."
    ]
