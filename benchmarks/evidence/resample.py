"""AUC of resampled days, users or rows, and intervals from these and from seeds.

Shapes: n rows, U units, R resamples, S seeds.
"""

from __future__ import annotations

import numpy as np

RESAMPLES = 200
SEED = 20261203
DRAWS = 10  # of the seeds, for each resample of the units


def counts(units: np.ndarray) -> np.ndarray:
    """Returns how often each row is drawn when the units of a test split are drawn with
    replacement, float32 [R, n]. Equal units give equal resamples, whatever the row.
    """
    number = np.unique(units, return_inverse=True)[1]
    many = int(number.max()) + 1
    random = np.random.default_rng(SEED)
    drawn = [
        np.bincount(random.integers(many, size=many), minlength=many) for _ in range(RESAMPLES)
    ]
    return np.asarray(drawn, np.float32)[:, number]


def areas(scores: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Computes AUC with several weights of the rows, float64 [R].

    Args:
        scores: [n].
        positive: labels, or probabilities, of which each row counts as a positive with its
            probability and as a negative with the rest, [n].
        weights: of the rows, [R, n].
    """
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.diff(scores[order], prepend=np.nan) != 0)  # of equal scores
    share = positive[order].astype(np.float64)
    found = []
    for weight in weights[:, order].astype(np.float64):
        ours, theirs = (np.add.reduceat(weight * each, starts) for each in (share, 1 - share))
        below = np.cumsum(theirs) - theirs / 2
        found.append(ours @ below / (ours.sum() * theirs.sum()))
    return np.asarray(found)


def replicates(gains: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Returns the mean gain over seeds for drawn units and drawn seeds, [R * DRAWS].

    Args:
        gains: differences of two rows, by seed and resample, [S, R].
        random: draws the seeds.
    """
    seeds, resamples = gains.shape
    chosen = random.integers(seeds, size=(DRAWS, resamples, seeds))
    each: np.ndarray = gains[chosen, np.arange(resamples)[None, :, None]].mean(2).ravel()
    return each
