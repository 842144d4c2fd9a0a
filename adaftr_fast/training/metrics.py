"""Exact AUC, GAUC, log-loss and calibration of all rows, and the CVR AUC of the clicked ones, in
O(n log n).

Shapes: n rows, P positives, N negatives, G groups.

Scores may be logits or probabilities. Logits are preferable, because a saturated sigmoid produces
ties.

The AUC is the share of (positive, negative) pairs in which the positive scores higher (Mann &
Whitney 1947). With sorted negatives, two binary searches per positive count the negatives below it
and the ties. GAUC packs group and score into one integer, so one sort of integers, which NumPy
vectorizes, sorts all groups.

With sample weights, a pair counts with the product of its rows' weights, in float64. Running sums
of the sorted negatives' weights replace the counts. A row of weight 0 has no effect.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np

# of a packed integer; the high bits hold the group
SCORE_BITS = np.uint64(32)
SCORE_MASK = np.uint64((1 << 32) - 1)


def auc(labels: np.ndarray, scores: np.ndarray, sample_weight: np.ndarray | None = None) -> float:
    """Computes the area under the ROC curve: P(score of a positive > score of a negative), with
    ties counted as 1/2.

    Args:
        labels: [n], 0 or 1, any dtype.
        scores: [n], any real dtype.
        sample_weight: [n], the weight of each row, any real dtype, finite and >= 0. Default: 1 for
            all.

    Returns:
        The area in [0, 1], exact up to one division without weights; nan if a class is absent or
        has no weight.

    Raises:
        ValueError: the shapes differ, a label is neither 0 nor 1, a score is nan, or a weight is
            negative or not finite.
    """
    positive, scores = _checked("auc", labels, scores)
    ours, theirs = _by_class(positive, scores, _checked_weight("auc", positive, sample_weight))
    positives = ours.before(len(ours.keys))
    negatives = theirs.before(len(theirs.keys))
    if not positives or not negatives:
        return float("nan")
    wins = ours.weigh(_twice_beaten(ours, theirs)).sum()
    return float(min(wins.item() / (2 * positives * negatives), 1.0))


class GroupedAUC(NamedTuple):
    """The mean AUC over groups, and the number of groups that it is over."""

    mean: float
    groups: int


def gauc(
    labels: np.ndarray,
    scores: np.ndarray,
    groups: np.ndarray,
    weighted_by: Literal["none", "impressions"] = "none",
    sample_weight: np.ndarray | None = None,
) -> float:
    """Computes the mean AUC over the groups (users) that have both classes (Eq. 15), as
    ``grouped_auc`` does.
    """
    return grouped_auc(labels, scores, groups, weighted_by, sample_weight).mean


def grouped_auc(
    labels: np.ndarray,
    scores: np.ndarray,
    groups: np.ndarray,
    weighted_by: Literal["none", "impressions"] = "none",
    sample_weight: np.ndarray | None = None,
) -> GroupedAUC:
    """Computes the mean AUC over the groups (users) that have both classes (Eq. 15).

    Args:
        labels: [n], 0 or 1, any dtype.
        scores: [n], any real dtype. Dtypes that float32 represents exactly are several times
            faster.
        groups: [n], any integer dtype, the group of each row. Rows with a negative group are
            ignored.
        weighted_by: ``none`` gives every group the weight 1, as the paper does. ``impressions``
            weights a group by its number of rows, or by their summed weights.
        sample_weight: [n], the weight of each row within its group, as ``auc`` takes it. A group in
            which a class has no weight is skipped.

    Returns:
        The mean in [0, 1], nan if no group has both classes, and the number of groups that do.

    Raises:
        ValueError: as ``auc``, the groups are not integers, or ``weighted_by`` is unknown.
    """
    if weighted_by not in ("none", "impressions"):
        raise ValueError(f"gauc: weighted_by must be 'none' or 'impressions', got {weighted_by!r}")
    positive, scores = _checked("gauc", labels, scores)
    groups = np.asarray(groups)
    if groups.shape != positive.shape or groups.dtype.kind not in "iu":
        raise ValueError(
            f"gauc: expected integer groups of shape {positive.shape}, got {groups.dtype} "
            f"{groups.shape}"
        )
    weight = _checked_weight("gauc", positive, sample_weight)
    known = groups >= 0
    if not known.all():
        positive = positive[known]
        scores = scores[known]
        groups = groups[known]
        weight = None if weight is None else weight[known]

    ours, theirs = _by_class(
        positive, _group_numbers(groups) << SCORE_BITS | _score_numbers(scores), weight
    )
    # [G], groups with a positive
    starts = np.flatnonzero(np.diff(ours.keys >> SCORE_BITS, prepend=SCORE_MASK))
    if not len(starts):
        return GroupedAUC(float("nan"), 0)
    rows = np.diff(starts, append=len(ours.keys))
    group = ours.keys[starts] & ~SCORE_MASK
    # [G], negatives of the groups before
    below = theirs.before(np.searchsorted(theirs.keys, group))
    negatives = theirs.before(np.searchsorted(theirs.keys, group | SCORE_MASK, "right")) - below
    positives = rows if ours.weight is None else np.add.reduceat(ours.weight, starts)
    # Subtracted before the sum, because weights of other groups would otherwise cost digits.
    wins = np.add.reduceat(
        ours.weigh(_twice_beaten(ours, theirs) - np.repeat(2 * below, rows)), starts
    )
    mixed = (positives > 0) & (negatives > 0)
    if not mixed.any():
        return GroupedAUC(float("nan"), 0)
    areas = np.clip(wins[mixed] / (2 * positives * negatives)[mixed], 0.0, 1.0)
    weights = (positives + negatives)[mixed] if weighted_by == "impressions" else None
    return GroupedAUC(float(np.average(areas, weights=weights)), len(areas))


def log_loss(
    labels: np.ndarray, logits: np.ndarray, sample_weight: np.ndarray | None = None
) -> float:
    """Computes the mean of -[y log p + (1 - y) log(1 - p)] with p = sigmoid(logit), in float64
    without overflow.

    Args:
        labels: [n], 0 or 1, any dtype.
        logits: [n], any real dtype.
        sample_weight: [n], the weight of each row in the mean, as ``auc`` takes it.

    Raises:
        ValueError: as ``auc``, or there are no rows, or none with a positive weight.
    """
    positive, logits = _checked("log_loss", labels, logits)
    weight = _checked_weight("log_loss", positive, sample_weight)
    if len(positive) == 0:
        raise ValueError("log_loss: no rows")
    logits = logits.astype(np.float64)
    losses = np.logaddexp(0.0, np.where(positive, -logits, logits))
    if weight is None:
        return float(np.mean(losses))
    counted = weight > 0  # an infinite loss of weight 0 would be nan
    if not counted.any():
        raise ValueError("log_loss: no rows of positive weight")
    return float(np.average(losses[counted], weights=weight[counted]))


def rate_log_loss(labels: np.ndarray, sample_weight: np.ndarray | None = None) -> float:
    """Computes the log-loss of a constant, the rate of the rows, which a model must stay below.

    Args:
        labels: [n], 0 or 1, any dtype.
        sample_weight: [n], the weight of each row, as ``log_loss`` takes it.

    Raises:
        ValueError: as ``log_loss``.
    """
    if len(labels) == 0:
        raise ValueError("rate_log_loss: no rows")
    rate = np.average(np.asarray(labels) == 1, weights=sample_weight)
    if not 0 < rate < 1:
        return 0.0
    return float(-(rate * np.log(rate) + (1 - rate) * np.log1p(-rate)))


def calibration(
    labels: np.ndarray, logits: np.ndarray, sample_weight: np.ndarray | None = None
) -> float:
    """Computes predicted over observed positives: sum of sigmoid(logit) / sum of y.

    A calibrated model has the value 1; a larger value means overestimation.

    Args:
        labels: [n], 0 or 1, any dtype.
        logits: [n], any real dtype.
        sample_weight: [n], the weight of each row in both sums, as ``auc`` takes it.

    Returns:
        The ratio, computed in float64; nan without positives.

    Raises:
        ValueError: as ``auc``.
    """
    positive, logits = _checked("calibration", labels, logits)
    weight = _checked_weight("calibration", positive, sample_weight)
    rates = np.exp(-np.logaddexp(0.0, -logits.astype(np.float64)))
    positives = np.count_nonzero(positive) if weight is None else weight[positive].sum()
    predicted = rates.sum() if weight is None else rates @ weight
    return float(predicted / positives) if positives else float("nan")


def cvr_auc(
    clicks: np.ndarray,
    conversions: np.ndarray,
    click_logits: np.ndarray,
    logits: np.ndarray,
    sample_weight: np.ndarray | None = None,
) -> float:
    """Computes the AUC of p_cvr = p_ctcvr / p_ctr on the clicked rows.

    p_ctr = sigmoid(click_logits) and p_ctcvr = sigmoid(logits) are rates over all impressions
    (docs/decisions.md). The ratio is taken in logarithms, in float64, and is not clamped to 1,
    which would produce ties.

    Args:
        clicks: [n], 0 or 1, any dtype.
        conversions: [n], 0 or 1, any dtype.
        click_logits: [n], logits of the click task.
        logits: [n], logits of the conversion task, which is click and conversion.
        sample_weight: [n], the weight of each row, as ``auc`` takes it.

    Returns:
        The area in [0, 1]; nan if the clicked rows have a single class.

    Raises:
        ValueError: as ``auc``.
    """
    clicked, click_logits = _checked("cvr_auc", clicks, click_logits)
    converted, logits = _checked("cvr_auc", conversions, logits)
    if converted.shape != clicked.shape:
        raise ValueError(
            f"cvr_auc: expected clicks and conversions [n], got {clicked.shape} and "
            f"{converted.shape}"
        )
    log_p_ctr, log_p_ctcvr = (
        -np.logaddexp(0.0, -z[clicked].astype(np.float64)) for z in (click_logits, logits)
    )
    weight = None if sample_weight is None else np.asarray(sample_weight)[clicked]
    return auc(converted[clicked], log_p_ctcvr - log_p_ctr, weight)


class _Rows(NamedTuple):
    """Rows of one class in ascending order of their keys. Without weights, a row has
    the weight 1.
    """

    keys: np.ndarray  # [r]
    weight: np.ndarray | None = None  # float64 [r]
    # float64 [r + 1], the sum of the weights before each position
    running: np.ndarray | None = None

    def before(self, positions: Any) -> Any:
        """Returns the weight of all rows before each of ``positions``."""
        return positions if self.running is None else self.running[positions]

    def weigh(self, values: np.ndarray) -> np.ndarray:
        """Returns the values [r] times the weights of the rows."""
        return values if self.weight is None else values * self.weight


def _by_class(
    positive: np.ndarray, keys: np.ndarray, weight: np.ndarray | None
) -> tuple[_Rows, _Rows]:
    """Returns the positives [P] and the negatives [N]."""
    ours, theirs = (
        _sorted(keys[mask], None if weight is None else weight[mask])
        for mask in (positive, ~positive)
    )
    return ours, theirs


def _sorted(keys: np.ndarray, weight: np.ndarray | None) -> _Rows:
    if weight is None:
        keys.sort()
        return _Rows(keys)
    order = np.argsort(keys)
    return _Rows(keys[order], weight[order], np.append(0.0, np.cumsum(weight[order])))


def _twice_beaten(ours: _Rows, theirs: _Rows) -> np.ndarray:
    """Returns twice the weight of ``theirs`` [N] below each of ``ours`` [P], plus that
    of the ties.
    """
    below, upto = (np.searchsorted(theirs.keys, ours.keys, side) for side in ("left", "right"))
    beaten: np.ndarray = theirs.before(below) + theirs.before(upto)
    return beaten


def _score_numbers(scores: np.ndarray) -> np.ndarray:
    """Maps scores to integers below 2^32, uint64 [n], of the same order."""
    if not np.can_cast(scores.dtype, np.float32, "safe"):
        return _ranks(scores)
    bits = (scores.astype(np.float32) + np.float32(0.0)).view(np.uint32)  # -0.0 + 0.0 = 0.0
    # IEEE floats compare like sign-magnitude integers.
    return np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31)).astype(np.uint64)


def _group_numbers(groups: np.ndarray) -> np.ndarray:
    """Maps groups (>= 0) to numbers below 2^32, uint64 [n]."""
    return (
        groups.astype(np.uint64) if not len(groups) or groups.max() < SCORE_MASK else _ranks(groups)
    )


def _ranks(values: np.ndarray) -> np.ndarray:
    return np.unique(values, return_inverse=True)[1].astype(np.uint64)


def _checked(name: str, labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Checks the arguments; returns the mask of positives, bool [n], and the scores [n]."""
    labels = np.asarray(labels)
    scores = np.asarray(scores)
    if labels.ndim != 1 or labels.shape != scores.shape:
        raise ValueError(
            f"{name}: expected labels and scores [n], got {labels.shape} and {scores.shape}"
        )
    positive = labels == 1
    if not (positive | (labels == 0)).all():
        raise ValueError(
            f"{name}: labels must be 0 or 1, got values in [{labels.min()}, {labels.max()}]"
        )
    if wrong := np.count_nonzero(np.isnan(scores)):
        raise ValueError(f"{name}: {wrong} of {len(scores)} scores are nan")
    # float32 holds every float16, and NumPy sorts it faster.
    return positive, scores.astype(np.float32) if scores.dtype == np.float16 else scores


def _checked_weight(name: str, rows: np.ndarray, weight: np.ndarray | None) -> np.ndarray | None:
    """Checks the weights of ``rows`` [n]; returns them as float64 [n]."""
    if weight is None:
        return None
    weight = np.asarray(weight)
    if weight.shape != rows.shape or weight.dtype.kind not in "biuf":
        expected = f"real numbers of shape {rows.shape}"
        raise ValueError(
            f"{name}: sample_weight must be {expected}, got {weight.dtype} {weight.shape}"
        )
    if wrong := np.count_nonzero(~(np.isfinite(weight) & (weight >= 0))):
        raise ValueError(
            f"{name}: {wrong} of {len(weight)} sample weights are not finite numbers >= 0"
        )
    return weight.astype(np.float64)
