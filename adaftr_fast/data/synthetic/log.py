"""Generates an impression log by row number: users, items, fields, labels and the true
probabilities of the labels.

Fields and rates have the form of Ali-CCP or of the paper's Ecomm-Ads.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import pyarrow as pa

from adaftr_fast.data import hashing
from adaftr_fast.data.synthetic.truth import Truth, Values
from adaftr_fast.errors import DataError

CHUNK_ROWS = 1 << 13  # rows that are computed at a time, so that the arrays stay in the cache
CALIBRATION_ROWS = 1 << 16  # first rows of the log, whose mean probabilities equal the rates
USER_ZIPF = 0.5  # user activity is skewed, but nearly all users have several impressions
ITEM_ZIPF = 1.05
VALUE_ZIPF = 1.05
PROBABILITY = "p_"  # prefix of the true probability columns
DAY = "day"
RELATEDNESS = "relatedness"
Owner = Literal["user", "item", "row"]


@dataclass(frozen=True)
class LogField:
    """One field of a log.

    Attributes:
        owner: entity the field is a property of. A field with 0 values is the id of this entity.
        values: number of distinct values; 0 for the id of the user or item.
        tokens: mean number of tokens of a multi-valued field before ``list_scale``; 1 for a
            single-valued field.
        missing: share of owners without a value.
    """

    name: str
    owner: Owner
    values: int
    tokens: int = 1
    missing: float = 0.0


@dataclass(frozen=True)
class Layout:
    """Fields and funnel of a log.

    Attributes:
        rates: share of impressions that reach each stage of the funnel, in order.
        spread: standard deviation over rows of each stage's logit, given the stage before.
        segments: user field and item field that together determine the relatedness of the tasks.
        group: field that identifies the user.
    """

    fields: tuple[LogField, ...]
    rates: dict[str, float]
    spread: float
    segments: tuple[str, str]
    group: str


def _aliccp() -> Layout:
    """Ali-CCP: field names, token counts, missing shares and rates of its training split (Ma et al.
    2018).
    """
    profile = {"121": 98, "122": 14, "124": 3, "125": 8, "126": 4, "127": 4, "128": 3, "129": 5}
    history = {
        "109_14": (12_000, 40),
        "110_14": (400_000, 250),
        "127_14": (100_000, 154),
        "150_14": (60_000, 136),
    }
    user = [LogField("101", "user", 0)]
    user += [
        LogField(name, "user", values, missing=0.36 * (name == "129"))
        for name, values in profile.items()
    ]
    user += [LogField(name, "user", values, tokens) for name, (values, tokens) in history.items()]
    item = [
        LogField("205", "item", 0),
        LogField("206", "item", 5_000),
        LogField("207", "item", 300_000),
    ]
    item += [LogField("210", "item", 80_000, tokens=6), LogField("216", "item", 100_000)]
    missing = {"508": 0.30, "509": 0.78, "702": 0.0, "853": 0.0}
    combined = [LogField(name, "row", 50_000, missing=share) for name, share in missing.items()]
    fields = (*user, *item, *combined, LogField("301", "row", 3))
    return Layout(fields, {"click": 0.03887, "conversion": 0.000214}, 1.0, ("121", "206"), "101")


def _ecomm() -> Layout:
    """Ecomm-Ads: "over one hundred categorical features" and three behaviours, at the rates of the
    paper's Table 2.
    """
    sizes = (3, 10, 30, 100, 300, 1_000, 10_000, 100_000)
    fields = [LogField("user", "user", 0), LogField("item", "item", 0)]
    counts: dict[Owner, int] = {"user": 48, "item": 34, "row": 16}
    for owner, count in counts.items():
        fields += [LogField(f"{owner}_{n:02d}", owner, sizes[n % len(sizes)]) for n in range(count)]
    fields += [LogField(f"user_list_{n}", "user", 50_000, tokens=50) for n in range(6)]
    fields += [LogField(f"item_list_{n}", "item", 5_000, tokens=6) for n in range(2)]
    rates = {"click": 0.0286, "view": 0.0124, "conversion": 0.00157}
    return Layout(tuple(fields), rates, 1.8, ("user_02", "item_02"), "user")


LAYOUTS = {"aliccp": _aliccp, "ecomm": _ecomm}


@dataclass(frozen=True)
class LogConfig:
    """Configuration of a log. Equal configurations give bit-identical logs."""

    rows: int
    """Number of impressions."""
    layout: str = "aliccp"
    """``aliccp`` (23 fields, click and conversion) or ``ecomm`` (108 fields; click, view,
    conversion).
    """
    seed: int = 0
    """Seed of all random numbers."""
    users: int = 0
    """Number of users; 0 for one per 50 rows."""
    items: int = 0
    """Number of items; 0 for one per 200 rows."""
    days: int = 8
    """Number of days. Rows are spread evenly over them, in order. Splits are by day."""
    rates: dict[str, float] = field(default_factory=dict)
    """Share of impressions that reach each stage of the funnel; {} for the rates of the paper's
    data.
    """
    spread: float = 0.0
    """Standard deviation of each stage's logit (1 gives an AUC of about .76); 0 for the layout's
    value.
    """
    relatedness_low: float = 0.0
    """Lower bound of a row's task relatedness, >= -1 (see ``truth``)."""
    relatedness_high: float = 0.95
    """Upper bound of the relatedness, <= 1."""
    list_scale: float = 0.1
    """Factor on the number of tokens of multi-valued fields. 1 is Ali-CCP's, 250 tokens in one
    field alone.
    """

    def __post_init__(self) -> None:
        minimums = {"rows": 1, "seed": 0, "users": 0, "items": 0, "days": 1, "spread": 0.0}
        for name, bound in minimums.items():
            value = getattr(self, name)
            if not bound <= value < 2**63:
                expected = "< 2^63" if value >= bound else f">= {bound}"
                raise DataError(f"synthetic log: {name}: expected {expected}, got {value}")
        if self.layout not in LAYOUTS:
            raise DataError(
                f"synthetic log: layout: expected one of {', '.join(LAYOUTS)}, got {self.layout!r}"
            )
        if not 0.0 < self.list_scale <= 10.0:
            raise DataError(
                f"synthetic log: list_scale: expected a number in (0, 10], got {self.list_scale}"
            )
        shares = [1.0, *self.rates.values(), 0.0]
        if not all(low < high for high, low in itertools.pairwise(shares)):
            raise DataError(
                f"synthetic log: rates: expected decreasing shares in (0, 1), got {self.rates}"
            )
        low = self.relatedness_low
        high = self.relatedness_high
        if not -1.0 <= low <= high <= 1.0:
            raise DataError(
                f"synthetic log: relatedness: expected low <= high within [-1, 1], got {low} and "
                f"{high}"
            )


class ImpressionLog:
    """Rows of a log. Each row is a function of its number and the configuration only."""

    def __init__(self, config: LogConfig) -> None:
        self.config = config
        self.layout: Layout = LAYOUTS[config.layout]()
        self.users = config.users or max(1, config.rows // 50)
        self.items = config.items or max(1, config.rows // 200)
        self.stages = list(config.rates or self.layout.rates)
        sample = self.values(np.arange(min(config.rows, CALIBRATION_ROWS)))
        self.truth = Truth(
            config.seed,
            config.rates or self.layout.rates,
            config.spread or self.layout.spread,
            (config.relatedness_low, config.relatedness_high),
            self.layout.segments,
            sample,
            {
                field.name: field.values
                for field in self.layout.fields
                if 0 < field.values <= config.rows * self._mean_tokens(field)
            },
        )

    def owners(self, row: np.ndarray) -> dict[str, np.ndarray]:
        """Returns the user and the item of each row (numbers from 1) and the row
        itself, int64 [n].
        """
        user = hashing.zipf(self._uniform(row, "user"), self.users, USER_ZIPF)
        item = hashing.zipf(self._uniform(row, "item"), self.items, ITEM_ZIPF)
        return {"user": user, "item": item, "row": row}

    def values(self, row: np.ndarray) -> dict[str, Values]:
        """Returns all fields of the rows."""
        owners = self.owners(row)
        return {
            field.name: self.field_values(field, owners[field.owner])
            for field in self.layout.fields
        }

    def field_values(self, field: LogField, owner: np.ndarray) -> Values:
        """Returns a field of its owners: users, items or rows, by number."""
        if field.values == 0:
            return owner
        if field.tokens > 1:
            return self._tokens(field, owner, self._mean_tokens(field))
        drawn = hashing.zipf(self._uniform(owner, "value", field.name), field.values, VALUE_ZIPF)
        if field.missing:
            drawn[self._uniform(owner, "missing", field.name) < field.missing] = 0
        return drawn

    @property
    def row_bytes(self) -> int:
        """The mean bytes of a row."""
        return 8 * (
            sum(self._mean_tokens(field) for field in self.layout.fields) + 2 * len(self.stages) + 2
        )

    def _mean_tokens(self, field: LogField) -> int:
        return max(1, round(field.tokens * self.config.list_scale))

    def _tokens(self, field: LogField, owner: np.ndarray, mean: int) -> Values:
        """Returns between 1 and 2 mean - 1 tokens per owner."""
        drawn = self._uniform(owner, "length", field.name)
        lengths = 1 + (drawn * (2 * mean - 1)).astype(np.int64)
        offsets = np.append(0, np.cumsum(lengths))
        # modulo 2^64
        before = hashing.bits(self._key("token", field.name), owner) - offsets[:-1].astype(
            np.uint64
        )
        token_index = np.repeat(before, lengths) + np.arange(offsets[-1], dtype=np.uint64)
        samples = self._uniform(token_index, "value", field.name)
        return hashing.zipf(samples, field.values, VALUE_ZIPF), offsets

    def batch(self, start: int, stop: int) -> pa.RecordBatch:
        """Returns rows ``start`` to ``stop - 1``.

        Columns: ``day`` int32; the fields, int64 or list of int64, null if missing; a uint8 label
        per stage; ``p_STAGE``, its true probability over all impressions, and ``relatedness``,
        float64.
        """
        firsts = range(start, stop, CHUNK_ROWS)
        return pa.concat_batches(
            [self._chunk(np.arange(first, min(first + CHUNK_ROWS, stop))) for first in firsts]
        )

    def _chunk(self, row: np.ndarray) -> pa.RecordBatch:
        values = self.values(row)
        outcome = self.truth.outcome(values)
        columns = {DAY: pa.array(row * self.config.days // self.config.rows, pa.int32())}
        columns |= {name: as_arrow(field_values) for name, field_values in values.items()}
        happened = np.ones(len(row), bool)
        for k, stage in enumerate(self.stages):
            happened &= self._uniform(row, "label", stage) < outcome.conditional[:, k]
            columns[stage] = pa.array(happened.astype(np.uint8))
        for k, stage in enumerate(self.stages):
            columns[PROBABILITY + stage] = pa.array(outcome.probability[:, k])
        columns[RELATEDNESS] = pa.array(outcome.relatedness)
        return pa.RecordBatch.from_pydict(columns)

    def _uniform(self, index: np.ndarray, *names: str) -> np.ndarray:
        return hashing.uniform(self._key(*names), index)

    def _key(self, *names: str) -> np.uint64:
        return hashing.stream_key(self.config.seed, *names)


def as_arrow(values: Values) -> pa.Array:
    """Converts a field to int64 or list<int64>; 0 becomes null."""
    if isinstance(values, tuple):
        tokens, offsets = values
        return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), pa.array(tokens))
    return pa.array(values, mask=values == 0)
