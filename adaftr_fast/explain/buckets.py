"""Buckets of rows by score: calibration, lift and gain. Shapes: n rows, K buckets."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from adaftr_fast._tables import Table

COUNT = 10  # of buckets


@dataclass(frozen=True)
class Buckets:
    """The rows of one task in buckets of equal size, from the highest scores to the lowest. It prints as a table.

    Rows of equal score are in one bucket, so there are fewer, of other sizes, where many scores are equal.

    Attributes:
        rows: the number of rows, int64 [K].
        predicted: the mean probability, float64 [K].
        observed: the share of positives, float64 [K].
    """

    rows: np.ndarray
    predicted: np.ndarray
    observed: np.ndarray

    @classmethod
    def of(cls, labels: np.ndarray, logits: np.ndarray, count: int = COUNT) -> Buckets:
        """Divides rows into ``count`` buckets.

        Args:
            labels: [n], 0 or 1.
            logits: [n], any real dtype, finite.
            count: the number of buckets.
        """
        order = np.argsort(-logits, kind="stable")
        z = logits[order].astype(np.float64)
        places = np.arange(count) * len(z) // count
        starts = np.unique(np.searchsorted(-z, -z[places], "left"))  # the first row of the same score
        rows = np.diff(starts, append=len(z))
        probabilities = np.exp(-np.logaddexp(0.0, -z))
        positives = np.add.reduceat(labels[order].astype(np.float64), starts)
        return cls(rows, np.add.reduceat(probabilities, starts) / rows, positives / rows)

    @property
    def standard_error(self) -> np.ndarray:
        """The standard error of ``observed``, float64 [K], as of rows that are independent."""
        return np.sqrt(self.observed * (1 - self.observed) / self.rows)

    @property
    def lift(self) -> np.ndarray:
        """The share of positives over that of all rows, float64 [K]; nan if there are none."""
        with np.errstate(invalid="ignore"):
            return self.observed / np.average(self.observed, weights=self.rows)

    @property
    def gain(self) -> np.ndarray:
        """The share of all positives in a bucket and those above it, float64 [K]; nan if there are none."""
        positives = np.cumsum(self.observed * self.rows)
        with np.errstate(invalid="ignore"):
            return positives / positives[-1]

    @property
    def calibration_error(self) -> float:
        """The mean of |predicted - observed| over the rows (the expected calibration error)."""
        return float(np.average(np.abs(self.predicted - self.observed), weights=self.rows))

    def table(self) -> Table:
        """Returns a row per bucket; shares and probabilities are in percent."""
        upto = np.cumsum(self.rows) / self.rows.sum()
        cells = [
            [
                f"{100 * upto[k]:.0f} %",
                f"{self.rows[k]:,}",
                f"{100 * self.predicted[k]:.2f}",
                f"{100 * self.observed[k]:.2f} ± {100 * self.standard_error[k]:.2f}",
                f"{self.lift[k]:.2f}",
                f"{100 * self.gain[k]:.1f}",
            ]
            for k in range(len(self.rows))
        ]
        return Table(["highest scores, up to", "rows", "predicted %", "observed %", "lift", "gain %"], cells)

    def __repr__(self) -> str:
        return self.table().markdown()

    def _repr_html_(self) -> str:
        return self.table().html()
