"""The columns of scores: a probability a task, the funnel's rates by their names, the bid. n rows, T tasks.

Every task of the model is a rate over all impressions (docs/decisions.md): conversion is "clicked and converted". So
the second prediction is p_ctcvr, and the conversion rate of those who click is the quotient p_cvr = p_ctcvr / p_ctr.
Nothing in a model keeps p_ctcvr below p_ctr; where it is above, p_cvr is 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from adaftr_fast.errors import DataError, ServingError

SMALLEST = np.finfo(np.float32).tiny  # a p_ctr that underflowed divides nothing by nothing


@dataclass(frozen=True)
class Columns:
    """What ``output_columns`` gives.

    Attributes:
        tasks: the model's, in the order of its outputs.
        funnel: positions of the click and the conversion task; None = no such pair.
        bid: p_c of Eq. 16, a number or the column it stands in; None = no bid.
        bid_weight: w of Eq. 16.
    """

    tasks: Sequence[str]
    funnel: tuple[int, int] | None = None
    bid: float | str | None = None
    bid_weight: float = 1.0

    def inputs(self) -> list[str]:
        """Columns of the rows that are read."""
        return [self.bid] if isinstance(self.bid, str) else []

    def names(self) -> list[str]:
        return [each.name for each in self.fields()]

    def fields(self) -> list[pa.Field]:
        """``p_<task>``, float32; of a funnel p_ctr, p_ctcvr and p_cvr; ``bid``, float64."""
        named = {} if self.funnel is None else dict(zip(self.funnel, ("p_ctr", "p_ctcvr")))
        fields = [pa.field(named.get(t, f"p_{task}"), pa.float32()) for t, task in enumerate(self.tasks)]
        fields += [] if self.funnel is None else [pa.field("p_cvr", pa.float32())]
        return fields + ([] if self.bid is None else [pa.field("bid", pa.float64())])

    def make(self, scores: np.ndarray, rows: pa.RecordBatch) -> list[pa.Array]:
        """The columns [n] of probabilities [n, T] of raw ``rows``.

        Raises:
            DataError: the column of prices holds something other than numbers.
        """
        arrays = [pa.array(np.ascontiguousarray(column)) for column in scores.T]
        if self.funnel is None:
            return arrays
        p_ctr, p_ctcvr = (scores[:, task] for task in self.funnel)
        p_cvr = np.minimum(p_ctcvr / np.maximum(p_ctr, SMALLEST), np.float32(1.0))
        arrays.append(pa.array(p_cvr))
        if self.bid is not None:
            bids = self.bid_weight * p_ctr.astype(np.float64) * p_cvr * self._prices(rows)  # Eq. 16
            arrays.append(pa.array(bids, from_pandas=True))  # nan, of a missing price, is missing
        return arrays

    def _prices(self, rows: pa.RecordBatch) -> np.ndarray | float:
        """p_c [n], nan where it is missing."""
        if not isinstance(self.bid, str):
            return self.bid
        try:
            return rows[self.bid].cast(pa.float64()).to_numpy(zero_copy_only=False)
        except pa.ArrowException as error:
            raise DataError(f"column {self.bid}: expected prices: {error}") from error


def output_columns(
    tasks: Sequence[str],
    *,
    click: str | None = None,
    conversion: str | None = None,
    bid: str | None = None,
    bid_weight: float = 1.0,
) -> Columns:
    """What to make of the probabilities of ``tasks``.

    Args:
        click, conversion: the tasks that are a click, and a click that converts; those of these names by default.
        bid: p_c of Eq. 16: a number, or the name of the column of prices.
        bid_weight: w of Eq. 16.

    Raises:
        ServingError: no such task, a bid without both tasks, or a price or weight that is no finite number >= 0.
    """
    pair = (click or "click", conversion or "conversion")
    for name, task in zip(("click", "conversion"), (click, conversion)):
        if task is not None and task not in tasks:
            raise ServingError(f"--{name}: expected one of {', '.join(tasks)}, got {task!r}")
    funnel = (tasks.index(pair[0]), tasks.index(pair[1])) if set(pair) <= set(tasks) and pair[0] != pair[1] else None
    if funnel is None and (click or conversion or bid):
        raise ServingError(f"--click and --conversion must name two of the tasks {', '.join(tasks)}, got {pair}")
    if not 0 <= bid_weight < math.inf:
        raise ServingError(f"--bid_weight: expected a finite number >= 0, got {bid_weight}")
    return Columns(tasks, funnel, None if bid is None else _price(bid), bid_weight)


def _price(text: str) -> float | str:
    try:
        price = float(text)
    except ValueError:
        return text
    if not 0 <= price < math.inf:
        raise ServingError(f"--bid: expected a price >= 0 or a column's name, got {text}")
    return price
