"""Exact AUC, GAUC, log-loss and calibration of all rows, and the CVR AUC of the clicked ones, in O(n log n).

Shapes: n rows, P positives, N negatives, G groups.

Scores may be logits or probabilities. Logits are preferable, because a saturated sigmoid produces ties.

The AUC is the share of (positive, negative) pairs in which the positive scores higher (Mann & Whitney 1947). With
sorted negatives, two binary searches per positive count the negatives below it and the ties. GAUC packs group and score
into one integer, so one sort of integers, which NumPy vectorizes, sorts all groups.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

SCORE_BITS, SCORE_MASK = np.uint64(32), np.uint64((1 << 32) - 1)  # of a packed integer; the high bits hold the group


def auc(labels: np.ndarray, scores: np.ndarray) -> float:
    """Computes the area under the ROC curve: P(score of a positive > score of a negative), with ties counted as 1/2.

    Args:
        labels: [n], 0 or 1, any dtype.
        scores: [n], any real dtype.

    Returns:
        The area in [0, 1], exact up to one division; nan if a class is absent.

    Raises:
        ValueError: the shapes differ, a label is neither 0 nor 1, or a score is nan.
    """
    positive, scores = _checked("auc", labels, scores)
    ours, theirs = _sorted_classes(positive, scores)
    if not len(ours) or not len(theirs):
        return float("nan")
    return int(_twice_beaten(ours, theirs).sum()) / (2 * len(ours) * len(theirs))


def gauc(
    labels: np.ndarray,
    scores: np.ndarray,
    groups: np.ndarray,
    weighted_by: Literal["none", "impressions"] = "none",
) -> float:
    """Computes the mean AUC over the groups (users) that have both classes (Eq. 15).

    Args:
        labels: [n], 0 or 1, any dtype.
        scores: [n], any real dtype. Dtypes that float32 represents exactly are several times faster.
        groups: [n], any integer dtype, the group of each row. Rows with a negative group are ignored.
        weighted_by: ``none`` gives every group the weight 1, as the paper does. ``impressions`` weights a group by its
            number of rows.

    Returns:
        The mean in [0, 1]; nan if no group has both classes.

    Raises:
        ValueError: as ``auc``, the groups are not integers, or ``weighted_by`` is unknown.
    """
    if weighted_by not in ("none", "impressions"):
        raise ValueError(f"gauc: weighted_by must be 'none' or 'impressions', got {weighted_by!r}")
    positive, scores = _checked("gauc", labels, scores)
    groups = np.asarray(groups)
    if groups.shape != positive.shape or groups.dtype.kind not in "iu":
        raise ValueError(f"gauc: expected integer groups of shape {positive.shape}, got {groups.dtype} {groups.shape}")
    known = groups >= 0
    if not known.all():
        positive, scores, groups = positive[known], scores[known], groups[known]

    ours, theirs = _sorted_classes(positive, _group_numbers(groups) << SCORE_BITS | _score_numbers(scores))
    starts = np.flatnonzero(np.diff(ours >> SCORE_BITS, prepend=SCORE_MASK))  # [G], groups with a positive
    if not len(starts):
        return float("nan")
    group = ours[starts] & ~SCORE_MASK
    below = np.searchsorted(theirs, group)  # [G], negatives of the groups before
    positives, negatives = (
        np.diff(starts, append=len(ours)),
        np.searchsorted(theirs, group | SCORE_MASK, "right") - below,
    )
    wins = np.add.reduceat(_twice_beaten(ours, theirs), starts) - 2 * positives * below
    mixed = negatives > 0
    if not mixed.any():
        return float("nan")
    areas = wins[mixed] / (2 * positives * negatives)[mixed]
    return float(np.average(areas, weights=(positives + negatives)[mixed] if weighted_by == "impressions" else None))


def log_loss(labels: np.ndarray, logits: np.ndarray) -> float:
    """Computes the mean of -[y log p + (1 - y) log(1 - p)] with p = sigmoid(logit), in float64 without overflow.

    Raises:
        ValueError: as ``auc``, or there are no rows.
    """
    positive, logits = _checked("log_loss", labels, logits)
    if len(positive) == 0:
        raise ValueError("log_loss: no rows")
    logits = logits.astype(np.float64)
    return float(np.mean(np.logaddexp(0.0, np.where(positive, -logits, logits))))


def calibration(labels: np.ndarray, logits: np.ndarray) -> float:
    """Computes predicted over observed positives: sum of sigmoid(logit) / sum of y.

    A calibrated model has the value 1; a larger value means overestimation.

    Returns:
        The ratio, computed in float64; nan without positives.

    Raises:
        ValueError: as ``auc``.
    """
    positive, logits = _checked("calibration", labels, logits)
    positives = np.count_nonzero(positive)
    predicted = np.exp(-np.logaddexp(0.0, -logits.astype(np.float64))).sum()
    return float(predicted / positives) if positives else float("nan")


def cvr_auc(clicks: np.ndarray, conversions: np.ndarray, click_logits: np.ndarray, logits: np.ndarray) -> float:
    """Computes the AUC of p_cvr = p_ctcvr / p_ctr on the clicked rows.

    p_ctr = sigmoid(click_logits) and p_ctcvr = sigmoid(logits) are rates over all impressions (docs/decisions.md). The
    ratio is taken in logarithms, in float64, and is not clamped to 1, which would produce ties.

    Args:
        clicks: [n], 0 or 1, any dtype.
        conversions: [n], 0 or 1, any dtype.
        click_logits: [n], logits of the click task.
        logits: [n], logits of the conversion task, which is click and conversion.

    Returns:
        The area in [0, 1]; nan if the clicked rows have a single class.

    Raises:
        ValueError: as ``auc``.
    """
    clicked, click_logits = _checked("cvr_auc", clicks, click_logits)
    converted, logits = _checked("cvr_auc", conversions, logits)
    if converted.shape != clicked.shape:
        raise ValueError(f"cvr_auc: expected clicks and conversions [n], got {clicked.shape} and {converted.shape}")
    log_p_ctr, log_p_ctcvr = (-np.logaddexp(0.0, -z[clicked].astype(np.float64)) for z in (click_logits, logits))
    return auc(converted[clicked], log_p_ctcvr - log_p_ctr)


def _sorted_classes(positive: np.ndarray, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the keys of the positives [P] and of the negatives [N], each in ascending order."""
    ours, theirs = keys[positive], keys[~positive]
    ours.sort()
    theirs.sort()
    return ours, theirs


def _twice_beaten(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """Returns twice the number of ``theirs`` [N] below each of ``ours`` [P], plus the ties; both are sorted."""
    return np.searchsorted(theirs, ours, "left") + np.searchsorted(theirs, ours, "right")


def _score_numbers(scores: np.ndarray) -> np.ndarray:
    """Maps scores to integers below 2^32, uint64 [n], of the same order."""
    if not np.can_cast(scores.dtype, np.float32, "safe"):
        return _ranks(scores)
    bits = (scores.astype(np.float32) + np.float32(0.0)).view(np.uint32)  # -0.0 + 0.0 = 0.0
    # IEEE floats compare like sign-magnitude integers.
    return np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31)).astype(np.uint64)


def _group_numbers(groups: np.ndarray) -> np.ndarray:
    """Maps groups (>= 0) to numbers below 2^32, uint64 [n]."""
    return groups.astype(np.uint64) if not len(groups) or groups.max() < SCORE_MASK else _ranks(groups)


def _ranks(values: np.ndarray) -> np.ndarray:
    return np.unique(values, return_inverse=True)[1].astype(np.uint64)


def _checked(name: str, labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Checks the arguments; returns the mask of positives, bool [n], and the scores [n]."""
    labels, scores = np.asarray(labels), np.asarray(scores)
    if labels.ndim != 1 or labels.shape != scores.shape:
        raise ValueError(f"{name}: expected labels and scores [n], got {labels.shape} and {scores.shape}")
    positive = labels == 1
    if not (positive | (labels == 0)).all():
        raise ValueError(f"{name}: labels must be 0 or 1, got values in [{labels.min()}, {labels.max()}]")
    if wrong := np.count_nonzero(np.isnan(scores)):
        raise ValueError(f"{name}: {wrong} of {len(scores)} scores are nan")
    return positive, scores
