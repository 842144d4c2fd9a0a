"""The page of an evaluation: metrics, what they mean and what to do next, importance, calibration,
lift and gain.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from adaftr_fast.display.figures import BLUE, GRAY, Picture, plain
from adaftr_fast.explain.buckets import ScoreBuckets
from adaftr_fast.explain.importance import Importance

PAGE = "evaluation.md"
PAGE_PICTURE = "evaluation.png"
SHOWN = 5  # fields that a sentence names
TOLERATED = 0.05  # of the ratio of predicted to true positives

BUCKETS_MEAN = (
    "The rows of a task are sorted by score and divided into buckets of equal size. Predicted is "
    "the mean probability of a bucket, observed its share of positives with Wilson's 95 % "
    "interval, lift that share over the one of all rows, and gain the share of all positives in "
    "the bucket and those above it."
)
IMPORTANCE_MEANS = (
    "The values of one field at a time are permuted among the rows. The table has the AUC that is "
    "lost, in percentage points, with the standard error of its mean over the permutations. Fields "
    "that tell the same, such as a cross and its columns, stand in for each other: each may lose "
    "little although together they matter."
)


def page_sections(
    title: str,
    metrics: Sequence[str],
    doubts: Sequence[str],
    buckets: Mapping[str, ScoreBuckets],
    importance: Importance | None,
) -> list[str]:
    """Returns the parts of the page, which shows the picture ``PAGE_PICTURE``; what is doubtful
    comes first.
    """
    sections = [
        f"# {title}",
        *(f"**Before you read on:** {each}" for each in doubts),
        *metrics,
    ]
    sections.append("\n".join(f"- {each}" for each in findings(buckets, importance, doubts)))
    if importance is not None:
        head = (
            f"## Importance of fields ({importance.rows:,} rows, {len(importance.drops)} "
            "permutations)"
        )
        sections += [head, IMPORTANCE_MEANS, importance.table().markdown()]
    sections += [
        "## Calibration, lift and gain",
        BUCKETS_MEAN,
        f"![calibration and gain]({PAGE_PICTURE})",
    ]
    for task, each in buckets.items():
        sections += [f"### {task}", each.table().markdown()]
    return sections


def findings(
    buckets: Mapping[str, ScoreBuckets], importance: Importance | None, doubts: Sequence[str] = ()
) -> list[str]:
    """Returns what the numbers say, and what to do next, a sentence each.

    Where the model is in doubt, the importance of its fields is not interpreted.
    """
    lines = []
    for task, each in buckets.items():
        if not each.observed.any():
            lines.append(f"{task}: the rows have no positives.")
            continue
        top = f"{100 * each.rows[0] / each.rows.sum():.0f} % of the rows with the highest scores"
        lines.append(
            f"{task}: the {top} hold {100 * each.gain[0]:.0f} % of the positives (lift "
            f"{each.lift[0]:.2f})."
        )
        lines.append(_calibration(task, each))
    if importance is None:
        return [*lines, "Which fields matter: evaluate with importance (`--importance`)."]
    if doubts:
        return [*lines, "The importance of fields means little until the doubts above are gone."]
    for t, task in enumerate(importance.tasks):
        best = sorted(
            range(len(importance.fields)), key=lambda f: -np.nan_to_num(importance.mean[f, t])
        )[:SHOWN]
        named = ", ".join(
            f"{importance.fields[f]} ({100 * importance.mean[f, t]:.2f})" for f in best
        )
        lines.append(f"{task}: the fields that are worth most, in points of AUC: {named}.")
    if unnoticed := importance.unnoticed():
        names = ", ".join(unnoticed)
        lines.append(
            f"No task notices that {names} are permuted: train without them (`prepare --ignore`) "
            "and compare."
        )
    return lines


def _calibration(task: str, buckets: ScoreBuckets) -> str:
    predicted, observed = (
        np.average(each, weights=buckets.weight) for each in (buckets.predicted, buckets.observed)
    )
    ratio = predicted / observed
    error = f"on average a bucket is off by {100 * buckets.calibration_error:.2f} percentage points"
    positives = (buckets.observed * buckets.effective).sum()
    # two standard errors of a count
    if abs(ratio - 1) <= max(TOLERATED, 2 / np.sqrt(max(positives, 1))):
        return (
            f"{task}: calibrated on average: {ratio:.3f} times as many positives are predicted as "
            f"there are; {error}."
        )
    advice = (
        "bids from these probabilities are wrong by that factor; compare the rates of the splits, "
        "which may drift"
    )
    found = f"{ratio:.3f} times as many positives are predicted as there are"
    return f"{task}: not calibrated: {found}; {error}; {advice}."


def draw(buckets: Mapping[str, ScoreBuckets]) -> Picture:
    """Draws observed over predicted rates and the cumulative gain of each task."""
    picture = Picture(max(3.3 * len(buckets), 3.6), 5.6)
    grid = picture.subplots(2, len(buckets), squeeze=False)
    for column, (task, each) in enumerate(buckets.items()):
        calibration, gain = grid[:, column]
        ends = [0.0, float(max(each.predicted.max(), each.observed.max()))]
        calibration.plot(ends, ends, color=GRAY, linewidth=1)
        bars = np.abs(each.interval - each.observed)
        calibration.errorbar(each.predicted, each.observed, bars, color=BLUE, marker=".")
        calibration.set(
            title=f"{task}: calibration", xlabel="predicted", ylabel="observed (bar: 95 % interval)"
        )
        share = np.append(0.0, np.cumsum(each.weight) / each.weight.sum())
        gain.plot([0, 1], [0, 1], color=GRAY, linewidth=1)
        gain.plot(share, np.append(0.0, each.gain), color=BLUE, marker=".")
        gain.set(
            title=f"{task}: gain",
            xlabel="share of rows, highest scores first",
            ylabel="share of positives",
        )
        plain(calibration)
        plain(gain)
    return picture
