"""The metrics of Table 7, their relative differences, and bootstrap intervals of these.

Shapes: S training seeds, n auctions, R bootstrap samples, M metrics. Counts have the columns of ``COUNTS``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import t

SAMPLES = 1000
LEVEL = 0.95
METRICS = ("CTR", "CVR", "CPC", "eCPM", "conversions", "value")
"""Clicks per impression; conversions per click; cost per conversion; and cost, conversions and the sum of the prices of
conversions per 1,000 impressions. CPC is the paper's cost per conversion, not per click."""
PAPER = {"CTR": 2.37, "CVR": 4.82, "CPC": -5.78}
"""Relative improvements of Table 7, in percent."""


@dataclass(frozen=True)
class Lift:
    """The relative difference of one metric between the arms, in percent of the control's.

    Attributes:
        metric: the metric.
        mean: the difference of the metrics over the auctions of all seeds together.
        auctions: the bounds of the 95 % interval over resampled auctions, for these models.
        seeds: the bounds over auctions and training seeds, a t interval; None for one seed.
        by_seed: the difference for each seed, [S].
    """

    metric: str
    mean: float
    auctions: tuple[float, float]
    seeds: tuple[float, float] | None
    by_seed: list[float]


def rates(counts: np.ndarray, impressions: float) -> np.ndarray:
    """Computes ``METRICS`` [..., M] of summed counts [..., 4]; nan without clicks or conversions."""
    clicks, conversions, cost, value = np.moveaxis(counts, -1, 0)
    per_thousand = 1000 / impressions
    with np.errstate(divide="ignore", invalid="ignore"):
        found = [clicks / impressions, conversions / clicks, cost / conversions]
    found += [each * per_thousand for each in (cost, conversions, value)]
    return np.moveaxis(np.where(np.isfinite(found), found, np.nan), 0, -1)


def lifts(control: Sequence[np.ndarray], treatment: Sequence[np.ndarray], samples: int = SAMPLES) -> list[Lift]:
    """Compares two arms whose counts [n, 4] belong to the same auctions, seed by seed.

    For the first interval, auctions are resampled with replacement, each with what it adds in both arms and for every
    seed; the bounds are percentiles. The second is ``mean`` -+ t sqrt(v + s^2 / S), with the variance v of these
    samples, the standard deviation s of ``by_seed``, and t of S - 1 degrees of freedom; a bootstrap over few seeds
    would be too narrow.
    """
    arms = np.stack([control, treatment])  # [2, S, n, 4]
    by_seed = _relative(arms.sum(2))  # [S, M]
    mean = _relative(arms.sum((1, 2)))
    resampled = np.stack([*_resampled(arms, samples)])  # [R, 2, S, 4]
    drawn = _relative(resampled.sum(2).swapaxes(0, 1))  # [R, M]
    fixed, over_seeds = _bounds(drawn), _t_bounds(mean, drawn.var(0), by_seed)
    return [
        Lift(name, float(mean[m]), fixed[m], None if over_seeds is None else over_seeds[m], by_seed[:, m].tolist())
        for m, name in enumerate(METRICS)
    ]


def _relative(arms: np.ndarray) -> np.ndarray:
    """Returns the differences in percent [..., M] of summed counts [2, ..., 4]; nan where the control's is 0."""
    control, treatment = rates(arms, 1.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        found = 100 * (treatment / control - 1)
    return np.where(np.isfinite(found), found, np.nan)


def _resampled(arms: np.ndarray, samples: int) -> Iterator[np.ndarray]:
    """Yields the summed counts [2, S, 4] of resampled auctions."""
    auctions = arms.shape[2]
    columns = np.ascontiguousarray(np.moveaxis(arms, 2, 0).reshape(auctions, -1))
    random = np.random.default_rng(0)
    for _ in range(samples):
        times = np.bincount(random.integers(0, auctions, auctions), minlength=auctions)
        yield (times.astype(np.float64) @ columns).reshape(arms.shape[0], arms.shape[1], -1)


def _t_bounds(mean: np.ndarray, variance: np.ndarray, by_seed: np.ndarray) -> list[tuple[float, float]] | None:
    """Returns the bounds of ``mean`` [M] over auctions, with this ``variance`` [M], and seeds [S, M]; None for one."""
    seeds = len(by_seed)
    if seeds < 2:
        return None
    quantile = float(t.ppf((1 + LEVEL) / 2, seeds - 1))
    width = quantile * np.sqrt(variance + by_seed.var(0, ddof=1) / seeds)
    return list(zip((mean - width).tolist(), (mean + width).tolist()))


def _bounds(values: np.ndarray) -> list[tuple[float, float]]:
    """Returns the percentiles of samples [R, M] by metric; nan where a sample is nan."""
    low, high = np.quantile(values, ((1 - LEVEL) / 2, (1 + LEVEL) / 2), axis=0)
    return list(zip(low.tolist(), high.tolist()))
