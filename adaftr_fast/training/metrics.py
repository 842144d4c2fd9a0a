"""Exact AUC, GAUC and log-loss on all rows at once, O(n log n). n rows.

Scores may be logits or probabilities; logits are better, since a sigmoid that saturates makes ties.
"""

from __future__ import annotations

from typing import Literal

import numpy as np


def auc(labels: np.ndarray, scores: np.ndarray) -> float:
    """Area under the ROC curve: P(score of a positive > score of a negative), a tie counting one half.

    Args:
        labels: [n] of 0 and 1, any dtype.
        scores: [n], any real dtype.

    Returns:
        The area in [0, 1], computed in integers until one last division; nan when one class is absent.

    Raises:
        ValueError: shapes that differ, a label outside {0, 1}, or a nan score.
    """
    labels, scores = _checked("auc", labels, scores)
    wins, positives, negatives = _count_wins(labels, scores, np.zeros(len(labels), np.int64))
    return float(_ratio(wins, positives, negatives)[0]) if len(wins) else float("nan")


def gauc(
    labels: np.ndarray,
    scores: np.ndarray,
    groups: np.ndarray,
    weighted_by: Literal["none", "impressions"] = "none",
) -> float:
    """Mean of the AUCs within groups (users) that have both classes; the other groups are skipped.

    Args:
        labels, scores: as for ``auc``.
        groups: int [n], the group of each row; rows with a negative number belong to no group and are left out.
        weighted_by: ``none`` weighs every group alike (w = 1, as in the paper), ``impressions`` by its rows.

    Returns:
        The mean in [0, 1]; nan when no group has both classes.

    Raises:
        ValueError: as for ``auc``, or an unknown weighting.
    """
    if weighted_by not in ("none", "impressions"):
        raise ValueError(f"gauc: weighted_by must be 'none' or 'impressions', got {weighted_by!r}")
    labels, scores = _checked("gauc", labels, scores)
    groups = np.asarray(groups)
    if groups.shape != labels.shape:
        raise ValueError(f"gauc: expected groups of shape {labels.shape}, got {groups.shape}")
    known = groups >= 0
    wins, positives, negatives = _count_wins(labels[known], scores[known], groups[known])
    mixed = (positives > 0) & (negatives > 0)
    if not mixed.any():
        return float("nan")
    areas = _ratio(wins[mixed], positives[mixed], negatives[mixed])
    weights = (positives + negatives)[mixed] if weighted_by == "impressions" else None
    return float(np.average(areas, weights=weights))


def log_loss(labels: np.ndarray, logits: np.ndarray) -> float:
    """Mean of -[y log p + (1 - y) log(1 - p)] with p = sigmoid(logit), in float64 and without overflow.

    Raises:
        ValueError: as for ``auc``, or no rows.
    """
    labels, logits = _checked("log_loss", labels, logits)
    if len(labels) == 0:
        raise ValueError("log_loss: no rows")
    logits = logits.astype(np.float64)
    return float(np.mean(np.logaddexp(0.0, logits) - labels * logits))


def _count_wins(
    labels: np.ndarray, scores: np.ndarray, groups: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Per group, int64: twice the pairs in which the positive wins (a tie counts 1), positives, negatives."""
    if len(labels) == 0:
        return (np.zeros(0, np.int64),) * 3
    order = np.lexsort((scores, groups))
    labels, scores, groups = labels[order], scores[order], groups[order]
    new_group = np.append(True, groups[1:] != groups[:-1])
    new_tie = new_group | np.append(True, scores[1:] != scores[:-1])
    ties = np.flatnonzero(new_tie)  # first row of each run of equal scores
    first_tie = np.flatnonzero(new_group[ties])  # first such run of each group

    rows = np.diff(np.append(ties, len(labels)))
    positives = np.add.reduceat(labels, ties)
    negatives = rows - positives
    below = np.cumsum(negatives) - negatives  # negatives before the run, of earlier groups too
    runs_in_group = np.diff(np.append(first_tie, len(ties)))
    below -= np.repeat(below[first_tie], runs_in_group)
    wins = positives * (2 * below + negatives)
    return tuple(np.add.reduceat(each, first_tie) for each in (wins, positives, negatives))


def _ratio(wins: np.ndarray, positives: np.ndarray, negatives: np.ndarray) -> np.ndarray:
    pairs = 2.0 * positives * negatives
    return np.divide(wins, pairs, out=np.full(len(pairs), np.nan), where=pairs > 0)


def _checked(name: str, labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    labels, scores = np.asarray(labels), np.asarray(scores)
    if labels.ndim != 1 or labels.shape != scores.shape:
        raise ValueError(f"{name}: expected labels and scores [n], got {labels.shape} and {scores.shape}")
    whole = labels.astype(np.int64)
    if not np.array_equal(whole, labels) or not np.isin(whole, (0, 1)).all():
        raise ValueError(f"{name}: labels must be 0 or 1, got values in [{labels.min()}, {labels.max()}]")
    if np.isnan(scores).any():
        raise ValueError(f"{name}: {np.isnan(scores).sum()} of {len(scores)} scores are nan")
    return whole, scores
