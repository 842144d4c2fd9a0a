"""From raw columns to embedding ids: 0 is "unknown or missing" in every field, training values start at 1."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from adaftr_fast.data.encode.counts import ValueCounts
from adaftr_fast.data.hashing import text_hash
from adaftr_fast.data.parallel import ordered_map
from adaftr_fast.data.schema.types import Field
from adaftr_fast.errors import DataError

SEARCH_RATIO = 16  # a batch this much smaller than a vocabulary is found by bisection
CROSS_SEPARATOR = "\x1f"  # ASCII unit separator: does not occur inside real values, so crosses are unambiguous


@dataclass(frozen=True)
class Vocabulary:
    """Ids of known values, most frequent first (ties by value), so that hot embedding rows are neighbours."""

    values: pa.Array
    counts: pa.Array

    @classmethod
    def fit(cls, counts: ValueCounts, min_count: int) -> Vocabulary:
        table = counts.table()
        table = table.filter(pc.greater_equal(table["count"], min_count))
        table = table.sort_by([("count", "descending"), ("value", "ascending")]).combine_chunks()
        return cls(one_array(table["value"]), one_array(table["count"]))

    @property
    def num_embeddings(self) -> int:
        return len(self.values) + 1

    def encode(self, values: pa.Array) -> pa.Array:
        """Integers or text [n] to int32 ids [n]; a number and its text are the same value."""
        known = self._integers if pa.types.is_integer(values.type) else self._text
        values = values.cast(known.type)
        if pa.types.is_integer(known.type) and len(values) * SEARCH_RATIO < len(known):
            return self._encode_by_search(values)
        found = pc.index_in(values, value_set=known, skip_nulls=True)  # which hashes all known values every time
        return pc.add(pc.fill_null(found, -1), pa.scalar(1, pa.int32()))

    def _encode_by_search(self, values: pa.Array) -> pa.Array:
        """The same for a few integers, as a request has them."""
        known, ids = self._sorted
        plain = values.fill_null(0).to_numpy()
        position = np.minimum(np.searchsorted(known, plain), len(known) - 1)
        found = (known[position] == plain) & values.is_valid().to_numpy(zero_copy_only=False)
        return pa.array(np.where(found, ids[position], np.int32(0)))

    @cached_property
    def _sorted(self) -> tuple[np.ndarray, np.ndarray]:
        """The integers in ascending order, and their ids."""
        known = self._integers.to_numpy()
        order = np.argsort(known)
        return known[order], order.astype(np.int32) + 1

    def grown(self, newer: Vocabulary) -> Vocabulary:
        """The known values under the ids they have, then those that only ``newer`` has; counts add up."""
        added = pc.fill_null(newer.counts.take(pc.index_in(self._text, value_set=newer._text)), 0)
        is_new = pc.invert(pc.is_in(newer._text, value_set=self._text))
        values = pa.concat_arrays([self._text, newer._text.filter(is_new)])
        return Vocabulary(values, pa.concat_arrays([pc.add(self.counts, added), newer.counts.filter(is_new)]))

    @cached_property
    def _text(self) -> pa.Array:
        return self.values.cast(pa.string())

    @cached_property
    def _integers(self) -> pa.Array:
        """The values as int64, or as text where one of them is not written as an integer is."""
        try:
            integers = self.values.cast(pa.int64())
        except pa.ArrowException:
            return self._text
        return integers if integers.cast(pa.string()).equals(self._text) else self._text


@dataclass(frozen=True)
class Buckets:
    """Ids of intervals ``(edges[k-1], edges[k]]`` between training quantiles.

    An edge is a value of the training data and belongs to the interval below it. Equal quantiles are one edge,
    so the smallest value has its own bucket where it fills several quantiles (93 % zeros of a rain gauge).
    """

    edges: np.ndarray  # float64, ascending

    @classmethod
    def fit(cls, counts: ValueCounts, buckets: int) -> Buckets:
        table = counts.table()
        values, weights = table["value"].to_numpy(), table["count"].to_numpy()
        if len(values) == 0:
            return cls(np.empty(0))
        cumulative = np.cumsum(weights)
        targets = cumulative[-1] * (np.arange(1, buckets) / buckets)
        quantiles = np.unique(values[np.searchsorted(cumulative, targets)])
        quantiles = quantiles[quantiles < values[-1]]  # nothing lies above an edge at the maximum
        return cls(np.maximum(quantiles, np.finfo(np.float64).min))  # of -inf, which JSON lacks

    @property
    def num_embeddings(self) -> int:
        return len(self.edges) + 2

    def encode(self, values: pa.Array) -> pa.Array:
        """Float64 values [n] to int32 ids [n]."""
        ids = np.searchsorted(self.edges, values.fill_null(0.0).to_numpy(), side="left").astype(np.int32) + 1
        return pc.if_else(values.is_valid(), pa.array(ids, pa.int32()), pa.scalar(0, pa.int32()))


@dataclass(frozen=True)
class Hashed:
    """Ids 1 ... ``ids`` by a hash of the value's text, the same for every data set; different values may share one."""

    ids: int

    @property
    def num_embeddings(self) -> int:
        return self.ids + 1

    def encode(self, values: pa.Array) -> pa.Array:
        """Values [n] of any type to int32 ids [n]."""
        ids = (text_hash(values) % np.uint64(self.ids)).astype(np.int32) + 1
        return pc.if_else(values.is_valid(), pa.array(ids, pa.int32()), pa.scalar(0, pa.int32()))


Encoder = Vocabulary | Buckets | Hashed


def count_values(fields: Iterable[Field], batches: Iterable[pa.RecordBatch]) -> dict[str, ValueCounts]:
    """The values of every field that needs counting, over rows of any number; {} of none.

    Memory grows with the distinct values.

    Raises:
        DataError: a column that cannot be read as the schema says.
    """
    counted = [field for field in fields if not field.hashed]
    counts: dict[str, ValueCounts] = {}
    for batch_counts in ordered_map(lambda batch: {field.name: _count(field, batch) for field in counted}, batches):
        for name, field_counts in batch_counts.items():
            if name in counts:
                counts[name].merge(field_counts)
            else:
                counts[name] = field_counts
    return counts


def _count(field: Field, batch: pa.RecordBatch) -> ValueCounts:
    values = field_values(field, batch)
    if pa.types.is_list(values.type):
        values = values.flatten()
    counts = ValueCounts(values.type)
    counts.update(values)
    return counts


def fit_encoder(field: Field, counts: ValueCounts | None) -> Encoder:
    """The vocabulary or the buckets of a field's values in training, which a hashed field (None) does not need."""
    if field.hashed:
        return Hashed(field.hashed)
    if field.kind == "numeric":
        return Buckets.fit(counts, field.buckets)
    return Vocabulary.fit(counts, field.min_count)


def encode_field(field: Field, encoder: Encoder, batch: pa.RecordBatch) -> pa.Array:
    """A field's ids [n]: int32, or lists of int32 where all of several tokens are read.

    Raises:
        DataError: a column cannot be read as the schema says.
    """
    values = field_values(field, batch)
    if pa.types.is_list(values.type):
        return pa.ListArray.from_arrays(values.offsets, encoder.encode(values.values))
    return encoder.encode(values)


def field_values(field: Field, batch: pa.RecordBatch) -> pa.Array:
    """A field's raw values [n]: float64 (numeric), else int64 or string, or lists of these; NaN becomes missing.

    Raises:
        DataError: a column cannot be read as the schema says.
    """
    try:
        if field.kind == "numeric":
            return _numbers(batch[field.columns[0]])
        if field.kind == "categorical":
            values = batch[field.columns[0]]
            return (
                canonical_values(values)
                if field.tokens is None
                else _select_tokens(_token_lists(values, field), field.tokens)
            )
        texts = [canonical_values(batch[column]).cast(pa.string()) for column in field.columns]
        return pc.binary_join_element_wise(*texts, CROSS_SEPARATOR)
    except pa.ArrowException as error:
        kinds = ", ".join(f"{column} ({batch.schema.field(column).type})" for column in field.columns)
        raise DataError(f"field {field.name}: cannot read {kinds} as {field.kind}: {error}") from error


def _token_lists(values: pa.Array, field: Field) -> pa.Array:
    """Tokens as lists [n] without gaps between them; a missing list is empty."""
    if field.separator is not None:
        splits = 1 if field.tokens == "last" else None
        text = values.cast(pa.string())
        text = pc.if_else(pc.equal(text, ""), None, text)  # no token, rather than an empty one
        values = pc.split_pattern(text, field.separator, max_splits=splits, reverse=True)
    if not pa.types.is_list(values.type) and not pa.types.is_large_list(values.type):
        raise pa.ArrowTypeError("tokens are read of a column of lists, or of text with a separator")
    ends = np.cumsum(pc.list_value_length(values).fill_null(0).to_numpy())
    return pa.ListArray.from_arrays(pa.array(np.append(0, ends), pa.int32()), values.flatten())


def _select_tokens(lists: pa.Array, which: Literal["last", "all"]) -> pa.Array:
    """All tokens of each list [n], or the last one, missing where the list is empty."""
    if which == "all":
        return pa.ListArray.from_arrays(lists.offsets, canonical_values(lists.values))
    last = pc.if_else(pc.greater(pc.list_value_length(lists), 0), pc.subtract(lists.offsets.slice(1), 1), None)
    return canonical_values(lists.values.take(last))


def canonical_values(values: pa.Array) -> pa.Array:
    """Discrete values in one of two types: int64 for integers, string for everything else."""
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    if pa.types.is_floating(values.type):
        values = _without_nan(values)
    return values.cast(pa.int64() if pa.types.is_integer(values.type) else pa.string())


def _numbers(values: pa.Array) -> pa.Array:
    return _without_nan(values.cast(pa.float64(), safe=False))


def _without_nan(values: pa.Array) -> pa.Array:
    return pc.if_else(pc.is_nan(values), pa.scalar(None, values.type), values)


def one_array(column: pa.ChunkedArray) -> pa.Array:
    """The column in one piece."""
    return column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays([*column.chunks, pa.array([], column.type)])
