"""Buckets of rows by score: calibration, lift and gain. Shapes: n rows, K buckets."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from adaftr_fast.display.tables import Shown, Table

COUNT = 10  # of buckets
Z = 1.959964  # standard errors of a normal distribution within which 95 % of it lie


@dataclass(frozen=True, repr=False)
class ScoreBuckets(Shown):
    """The rows of one task in buckets of equal size, from the highest scores to the lowest. It
    prints as a table.

    Rows of equal score are in one bucket, so there are fewer, of other sizes, where many scores are
    equal.

    Attributes:
        rows: the number of rows, int64 [K].
        predicted: the mean probability, float64 [K].
        observed: the share of positives, float64 [K].
        weight: the summed sample weights of the rows, float64 [K], by which all means are weighted;
            ``rows`` without weights.
        effective: the number of rows of equal weight whose means vary as much, float64 [K] (Kish,
            1965); ``rows`` without weights.
    """

    rows: np.ndarray
    predicted: np.ndarray
    observed: np.ndarray
    weight: np.ndarray
    effective: np.ndarray

    @classmethod
    def of(
        cls,
        labels: np.ndarray,
        logits: np.ndarray,
        sample_weight: np.ndarray | None = None,
        count: int = COUNT,
    ) -> ScoreBuckets:
        """Divides rows into ``count`` buckets.

        Args:
            labels: [n], 0 or 1.
            logits: [n], any real dtype, finite.
            sample_weight: [n], the weight of each row, finite and >= 0; rows of weight 0 are left
                out. Default: 1 for all.
            count: the number of buckets.
        """
        if sample_weight is not None:
            counted = sample_weight > 0
            labels = labels[counted]
            logits = logits[counted]
            sample_weight = sample_weight[counted]
        order = np.argsort(-logits, kind="stable")
        z = logits[order].astype(np.float64)
        places = np.arange(count) * len(z) // count
        # the first row of the same score
        starts = np.unique(np.searchsorted(-z, -z[places], "left"))
        rows = np.diff(starts, append=len(z))
        probabilities = np.exp(-np.logaddexp(0.0, -z))
        w = np.ones(len(z)) if sample_weight is None else sample_weight[order].astype(np.float64)
        weight = np.add.reduceat(w, starts)
        predicted = np.add.reduceat(w * probabilities, starts) / weight
        observed = np.add.reduceat(w * labels[order], starts) / weight
        effective = weight**2 / np.add.reduceat(w**2, starts)
        return cls(rows, predicted, observed, weight, effective)

    @property
    def rate(self) -> float:
        """The share of positives of all rows."""
        return float(np.average(self.observed, weights=self.weight))

    @property
    def interval(self) -> np.ndarray:
        """The ends of the 95 % interval of ``observed`` (Wilson's), float64 [2, K], as of rows that
        are independent.
        """
        n = self.effective
        p = self.observed
        middle = (p + Z**2 / (2 * n)) / (1 + Z**2 / n)
        half = Z / (1 + Z**2 / n) * np.sqrt(p * (1 - p) / n + Z**2 / (4 * n**2))
        return np.clip(np.stack([middle - half, middle + half]), 0.0, 1.0)

    @property
    def lift(self) -> np.ndarray:
        """The share of positives over that of all rows, float64 [K]; nan if there are none."""
        with np.errstate(invalid="ignore"):
            return self.observed / self.rate

    @property
    def gain(self) -> np.ndarray:
        """The share of all positives in a bucket and those above it, float64 [K]; nan if there are
        none.
        """
        positives = np.cumsum(self.observed * self.weight)
        with np.errstate(invalid="ignore"):
            return positives / positives[-1]

    @property
    def calibration_error(self) -> float:
        """The mean of |predicted - observed| over the rows (the expected calibration error)."""
        return float(np.average(np.abs(self.predicted - self.observed), weights=self.weight))

    def table(self) -> Table:
        """Returns a row per bucket; shares and probabilities are in percent."""
        upto = np.cumsum(self.rows) / self.rows.sum()
        low, high = 100 * self.interval
        cells = [
            [
                f"{100 * upto[k]:.0f} %",
                f"{self.rows[k]:,}",
                f"{100 * self.predicted[k]:.2f}",
                f"{100 * self.observed[k]:.2f} ({low[k]:.2f} to {high[k]:.2f})",
                f"{self.lift[k]:.2f}",
                f"{100 * self.gain[k]:.1f}",
            ]
            for k in range(len(self.rows))
        ]
        header = [
            "highest scores, up to",
            "rows",
            "predicted %",
            "observed %, 95 % interval",
            "lift",
            "gain %",
        ]
        return Table(header, cells)

    def _parts(self) -> list[str | Table]:
        return [self.table()]
