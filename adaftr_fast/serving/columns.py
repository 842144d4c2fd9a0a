"""Output columns of predictions: one probability per task, the rates of the funnel, and the bid.

Shapes: n rows, T tasks.

Every task of a model is a rate over all impressions (docs/decisions.md). Conversion means "clicked
and converted", so its prediction is p_ctcvr, and the conversion rate after a click is p_cvr =
p_ctcvr / p_ctr. A model does not guarantee p_ctcvr <= p_ctr; p_cvr is clamped to 1. This is the
``cvr`` "quotient".

With ``cvr`` "output", the prediction is the y_cvr of Eq. 16 itself, and p_ctcvr = p_ctr p_cvr,
without a clamp.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import pyarrow as pa

from adaftr_fast.data.encode.canonical import as_float64
from adaftr_fast.data.encode.written import holds_text, read_numbers
from adaftr_fast.data.schema.types import PLAIN_TEXT, TextFormat
from adaftr_fast.errors import DataError, ServingError

Cvr = Literal["quotient", "output"]
SMALLEST = np.finfo(np.float32).tiny  # avoids 0 / 0 for a p_ctr that underflowed


@dataclass(frozen=True)
class Columns:
    """The output columns; ``output_columns`` makes them.

    Attributes:
        tasks: the tasks, in the order of the model's outputs.
        funnel: positions of the click and the conversion task. None without such a pair.
        bid: p_c of Eq. 16, as a number or as the name of a column. None without a bid.
        bid_weight: w of Eq. 16.
        cvr: whether p_cvr is the quotient p_ctcvr / p_ctr, or the output of the conversion task.
    """

    tasks: Sequence[str]
    funnel: tuple[int, int] | None = None
    bid: float | str | None = None
    bid_weight: float = 1.0
    cvr: Cvr = "quotient"

    def inputs(self) -> list[str]:
        """Returns the names of the input columns to read."""
        return [self.bid] if isinstance(self.bid, str) else []

    def names(self) -> list[str]:
        """Returns the names of the output columns."""
        return [each.name for each in self.fields()]

    def fields(self) -> list[pa.Field]:
        """Returns the types: ``p_<task>`` float32, or p_ctr, p_ctcvr and p_cvr of a funnel; ``bid``
        float64.
        """
        output, derived = ("p_ctcvr", "p_cvr") if self.cvr == "quotient" else ("p_cvr", "p_ctcvr")
        named = {} if self.funnel is None else dict(zip(self.funnel, ("p_ctr", output)))
        fields = [
            pa.field(named.get(t, f"p_{task}"), pa.float32()) for t, task in enumerate(self.tasks)
        ]
        fields += [] if self.funnel is None else [pa.field(derived, pa.float32())]
        return fields + ([] if self.bid is None else [pa.field("bid", pa.float64())])

    def make(
        self, scores: np.ndarray, rows: pa.RecordBatch, form: TextFormat = PLAIN_TEXT
    ) -> list[pa.Array]:
        """Computes the output columns, [n] each.

        Args:
            scores: the probabilities [n, T].
            rows: the raw rows, which hold the prices, if a column does.
            form: how text holds numbers.

        Raises:
            DataError: a price is not a finite number >= 0.
        """
        arrays = [pa.array(np.ascontiguousarray(column)) for column in scores.T]
        if self.funnel is None:
            return arrays
        p_ctr, output = (scores[:, task] for task in self.funnel)
        quotient = self.cvr == "quotient"
        p_cvr = (
            np.minimum(output / np.maximum(p_ctr, SMALLEST), np.float32(1.0))
            if quotient
            else output
        )
        arrays.append(pa.array(p_cvr if quotient else p_ctr * p_cvr))
        if self.bid is not None:
            # Eq. 16
            bids = (
                self.bid_weight * p_ctr.astype(np.float64) * p_cvr * _prices(self.bid, rows, form)
            )
            # nan, for a missing price, becomes null
            arrays.append(pa.array(bids, from_pandas=True))
        return arrays


def _prices(bid: float | str, rows: pa.RecordBatch, form: TextFormat) -> np.ndarray | float:
    """Returns p_c [n], with nan for missing prices."""
    if not isinstance(bid, str):
        return bid
    values = rows[bid]
    try:
        numbers = read_numbers(values, form) if holds_text(values.type) else as_float64(values)
    except pa.ArrowException as error:
        raise DataError(f"column {bid}: expected numeric prices: {error}") from error
    prices = numbers.to_numpy(zero_copy_only=False)
    wrong = prices[np.isinf(prices) | (prices < 0)]
    if len(wrong):
        raise DataError(f"column {bid}: expected finite prices >= 0, got {wrong[0]:g}")
    return prices


def output_columns(
    tasks: Sequence[str],
    funnel: Sequence[str] = (),
    *,
    click: str | None = None,
    conversion: str | None = None,
    bid: str | None = None,
    bid_weight: float = 1.0,
    cvr: Cvr = "quotient",
) -> Columns:
    """Makes the output columns for the probabilities of ``tasks``.

    Args:
        tasks: the tasks, in the order of the model's outputs.
        funnel: the stages that the schema declares (``Schema.funnel``).
        click: the click task. Default: the first of two stages of the funnel, else the task
            ``click``, if there is one.
        conversion: the conversion task. Default: the second of two stages, else the task
            ``conversion``, if there is one.
        bid: p_c of Eq. 16, as a number or as the name of the column of prices.
        bid_weight: w of Eq. 16.
        cvr: ``quotient`` if conversion means clicked and converted, so that its output is p_ctcvr;
            ``output`` if its output is y_cvr of Eq. 16, as where purchases also come from other
            links.

    Raises:
        ServingError: a task is unknown, a bid or the ``cvr`` "output" lacks one of the two tasks,
            ``cvr`` is unknown, or a price or weight is not a finite number >= 0.
    """
    if cvr not in get_args(Cvr):
        raise ServingError(f"--cvr: expected {' or '.join(get_args(Cvr))}, got {cvr!r}")
    first, second = funnel if len(funnel) == 2 else ("click", "conversion")
    pair = (click or first, conversion or second)
    for name, task in zip(("click", "conversion"), (click, conversion)):
        if task is not None and task not in tasks:
            raise ServingError(f"--{name}: expected one of {', '.join(tasks)}, got {task!r}")
    places = (
        (tasks.index(pair[0]), tasks.index(pair[1]))
        if set(pair) <= set(tasks) and pair[0] != pair[1]
        else None
    )
    if places is None and (click or conversion or bid or cvr != "quotient"):
        asked = "--cvr output: " if cvr != "quotient" else ""
        raise ServingError(
            f"{asked}--click and --conversion must name two of the tasks {', '.join(tasks)}, got "
            f"{pair}"
        )
    if not 0 <= bid_weight < math.inf:
        raise ServingError(f"--bid_weight: expected a finite number >= 0, got {bid_weight}")
    return Columns(tasks, places, None if bid is None else _price(bid), bid_weight, cvr)


def _price(text: str) -> float | str:
    try:
        price = float(text)
    except ValueError:
        return text
    if not 0 <= price < math.inf:
        raise ServingError(f"--bid: expected a price >= 0 or the name of a column, got {text}")
    return price
