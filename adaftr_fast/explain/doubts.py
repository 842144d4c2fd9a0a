"""Says where a model is not worth using or explaining yet: it is no better than a constant, badly
calibrated, trained too briefly, or too good to be true.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from adaftr_fast.config import TrainingConfig
from adaftr_fast.config.run import OptimizerConfig
from adaftr_fast.data.dataset.loader import Split
from adaftr_fast.data.dataset.manifest import Manifest
from adaftr_fast.explain.buckets import COUNT, ScoreBuckets
from adaftr_fast.explain.importance import permute_field, sample
from adaftr_fast.models import MultiTaskModel
from adaftr_fast.training.evaluation import TaskMetrics, predict
from adaftr_fast.training.metrics import auc
from adaftr_fast.training.optimizers import learning_rate
from adaftr_fast.training.trained import Run

NOTICED = 2.0  # standard errors above chance
GAIN = 2e-4  # of the log-loss of a constant, which is small for a rare task; less is no gain
OFF = 1.25  # predicted over observed, or its inverse
FEWEST_STEPS = 200  # in which a model can leave its start
TOO_GOOD = 0.99  # AUC of a task that one field may give away
CARRIED = 0.5  # of the AUC above chance, which is lost without the one column
LEAK_ROWS = 20_000
NEXT = (
    "train longer or with another `--optimizer.lr`, and look for errors in the data (`report.html` "
    "of prepare)"
)


def find_doubts(metrics: TaskMetrics) -> list[str]:
    """Returns a sentence for each reason to doubt a model that its metrics give, with what to do
    next.
    """
    doubts = []
    for task, each in metrics.items():
        positives = each.get("positives", 0)
        negatives = each.get("rows", 0) - positives
        if not positives or not negatives:
            continue
        error = auc_error(each["auc"], positives, negatives)
        ratio = each["calibration"]
        if each["auc"] <= 0.5 + NOTICED * error:
            shown = f"AUC {100 * each['auc']:.2f} % ± {100 * error:.2f}"
            doubts.append(
                f"{task}: the model ranks these rows no better than chance ({shown}): {NEXT}."
            )
        elif each["logloss"] > each["rate_logloss"] * (1 - GAIN):
            shown = f"log-loss {each['logloss']:.4g}, of the rate {each['rate_logloss']:.4g}"
            what = "the probabilities are no better than the rate of all rows"
            doubts.append(f"{task}: {what} ({shown}): {NEXT}.")
        elif max(ratio, 1 / ratio) > max(OFF, 1 + NOTICED / np.sqrt(positives)):
            doubts.append(
                f"{task}: {ratio:.2f} times as many positives are predicted as there are: bids from "
                "these probabilities are wrong by that factor; compare the rates of the splits."
            )
    return doubts


def training_doubts(
    run: Run, rows: int, training: TrainingConfig, optimizer: OptimizerConfig
) -> list[str]:
    """Returns a sentence for each reason to doubt that a run was trained to its end.

    Args:
        run: the run, of which the records of the epochs are read.
        rows: the number of training rows.
        training, optimizer: its options.
    """
    trained = run.trained_epochs
    if not trained:
        return []
    steps = round(trained * (rows // training.batch_size))
    if steps < FEWEST_STEPS:
        return [
            f"The model was trained for {steps:,} steps, in which it can hardly leave its start: "
            "lower `--training.batch_size`, raise `--training.max_epochs`, or leave out both, "
            "which then fit the log."
        ]
    decayed = learning_rate(optimizer, steps, optimizer.lr) < 0.1 * optimizer.lr
    if run.best_epoch < trained or trained < training.max_epochs or decayed:
        return []
    epochs = "the one epoch" if trained == 1 else f"the last of {trained:g} epochs"
    longer = f"`--training.max_epochs {2 * training.max_epochs}`"
    return [
        f"Validation is best after {epochs}, so the model may not be trained to its end: compare "
        f"with {longer}."
    ]


def data_doubts(manifest: Manifest) -> list[str]:
    """Returns a sentence that names the fields which are unknown in every validation row."""
    validation = manifest.splits["validation"]
    unknown = [name for name, rows in validation.unknown.items() if rows == validation.rows]
    if not unknown:
        return []
    return [
        f"{', '.join(unknown)}: unknown or missing in every validation row, so validation cannot "
        "tell what such a field is worth: leave it out (`prepare --ignore`) or split otherwise."
    ]


def leaks(
    model: MultiTaskModel, rows: Split, manifest: Manifest, metrics: TaskMetrics, batch_size: int
) -> list[str]:
    """Returns a sentence for each task whose AUC is too good and hangs on one column, which may be
    known only with the label.
    """
    tasks = [task for task, each in metrics.items() if each["auc"] > TOO_GOOD]
    if not tasks:
        return []
    random = np.random.default_rng(0)
    batch = sample(rows, LEAK_ROWS, random)
    order = random.permutation(len(batch))
    places: dict[str, list[int]] = {}  # the fields that read each column
    schema = manifest.parsed
    fields = {field.name: schema.inputs(field.columns) for field in schema.features}
    for place, name in enumerate(manifest.features):
        for column in fields[name]:
            places.setdefault(column, []).append(place)
    doubts = []
    for task in tasks:
        t = model.task_names.index(task)

        def area(part: Split, t: int = t) -> float:
            found = predict(model, part, batch_size)
            return auc(found.labels[:, t], found.logits[:, t], found.weight)

        above_chance = area(Split.of(batch)) - 0.5
        for column, own in places.items():
            permuted = batch
            for place in own:
                permuted = permute_field(permuted, place, order)
            lost = above_chance - (area(Split.of(permuted)) - 0.5)
            if lost > CARRIED * above_chance:
                doubts.append(
                    f"{task}: an AUC of {100 * metrics[task]['auc']:.2f} % hangs on {column} alone, "
                    f"without which {100 * lost:.1f} points are lost: is it known before the "
                    "label? If not, leave it out (`prepare --ignore`)."
                )
    return doubts


def ties(buckets: Mapping[str, ScoreBuckets]) -> list[str]:
    """Returns a sentence for each task of which many rows have the same score."""
    doubts = []
    for task, each in buckets.items():
        # of the bounds of buckets, within rows of one score
        tied = 1 - len(each.rows) / min(COUNT, each.rows.sum())
        if tied > 0:
            doubts.append(
                f"{task}: about {100 * tied:.0f} % of the rows share a score with many others: "
                "compare with a smaller `--optimizer.lr`, or with more fields."
            )
    return doubts


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
