"""Encodes raw columns as embedding ids. Id 0 means unknown or missing in every field; training
values start at 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from adaftr_fast.data.arrow import one_array
from adaftr_fast.data.encode.canonical import (
    as_float64,
    canonical_text,
    canonical_values,
    without_nan,
)
from adaftr_fast.data.encode.counts import ValueCounts
from adaftr_fast.data.encode.lookup import Lookup
from adaftr_fast.data.encode.moments import Moments
from adaftr_fast.data.encode.typed import as_written
from adaftr_fast.data.encode.written import holds_text
from adaftr_fast.data.hashing import text_hash
from adaftr_fast.data.memory import DEFAULT, Memory, encoding
from adaftr_fast.data.parallel import ordered_map
from adaftr_fast.data.schema.types import Field, Schema
from adaftr_fast.errors import DataError

MOST_SPLITS = 1 << 16  # of a text: Arrow reserves memory for as many tokens as it may make
CROSS_SEPARATOR = "\x1f"  # ASCII unit separator: not in real values, so crosses are unambiguous


@dataclass(frozen=True)
class Vocabulary:
    """Ids of known values, most frequent first (ties by value), so that frequently used embedding
    rows are adjacent.
    """

    values: pa.Array
    counts: pa.Array

    @classmethod
    def fit(cls, counts: ValueCounts, min_count: int) -> Vocabulary:
        """Builds the vocabulary of all values counted at least ``min_count`` times."""
        table = counts.table()
        table = table.filter(pc.greater_equal(table["count"], min_count))
        table = table.sort_by([("count", "descending"), ("value", "ascending")]).combine_chunks()
        return cls(one_array(table["value"]), one_array(table["count"]))

    @property
    def num_embeddings(self) -> int:
        """Number of ids, including 0."""
        return len(self.values) + 1

    def encode(self, values: pa.Array) -> pa.Array:
        """Encodes integers or text [n] as int32 ids [n]. A number and its text are the
        same value.
        """
        lookup = self._by_integer if pa.types.is_integer(values.type) else self._by_text
        return pc.add(lookup.find(values), pa.scalar(1, pa.int32()))

    def grown(self, newer: Vocabulary) -> Vocabulary:
        """Returns a vocabulary with the values of ``newer`` added. Known values keep their ids;
        counts are summed.
        """
        known, text = self._by_text, newer._by_text.known
        added = pc.fill_null(newer.counts.take(pc.index_in(known.known, value_set=text)), 0)
        is_new = pc.equal(known.find(text), -1)
        values = pa.concat_arrays([known.known, text.filter(is_new)])
        return Vocabulary(
            values, pa.concat_arrays([pc.add(self.counts, added), newer.counts.filter(is_new)])
        )

    @cached_property
    def _by_text(self) -> Lookup:
        return Lookup(self.values.cast(pa.string()))

    @cached_property
    def _by_integer(self) -> Lookup:
        """The values as int64; as text if one of them is not the canonical text of an integer."""
        try:
            integers = self.values.cast(pa.int64())
        except pa.ArrowException:
            return self._by_text
        is_canonical = integers.cast(pa.string()).equals(self._by_text.known)
        return Lookup(integers) if is_canonical else self._by_text


@dataclass(frozen=True)
class Buckets:
    """Ids of intervals ``(edges[k-1], edges[k]]`` between training quantiles.

    An edge is a training value and belongs to the interval below it. Equal quantiles are merged
    into one edge, so the smallest value has a bucket of its own if it fills several quantiles (93 %
    zeros of a rain gauge).
    """

    edges: np.ndarray  # float64, ascending

    @classmethod
    def fit(cls, counts: ValueCounts, buckets: int) -> Buckets:
        """Computes the edges from the exact quantiles of the counted values."""
        values, quantiles = counts.quantiles(buckets)
        if len(values) == 0:
            return cls(np.empty(0))
        quantiles = quantiles[quantiles < values[-1]]  # no value lies above an edge at the maximum
        return cls(np.maximum(quantiles, np.finfo(np.float64).min))  # JSON cannot represent -inf

    @property
    def num_embeddings(self) -> int:
        """Number of ids, including 0."""
        return len(self.edges) + 2

    def encode(self, values: pa.Array) -> pa.Array:
        """Encodes float64 values [n] as int32 ids [n]."""
        values_or_zero = values.fill_null(0.0).to_numpy()
        return _present(values, np.searchsorted(self.edges, values_or_zero, side="left"))


@dataclass(frozen=True)
class Hashed:
    """Hashing trick: ids 1 ... ``ids`` by a hash of the value's text, the same for every data set.
    Ids may collide.
    """

    ids: int

    @property
    def num_embeddings(self) -> int:
        """Number of ids, including 0."""
        return self.ids + 1

    def encode(self, values: pa.Array) -> pa.Array:
        """Encodes values [n] of any type as int32 ids [n]."""
        return _present(values, text_hash(values) % np.uint64(self.ids))


def _present(values: pa.Array, places: np.ndarray) -> pa.Array:
    """Returns the ids of values [n] at places [n], which count from 0; 0 for missing values."""
    ids = pa.array(places.astype(np.int32) + 1)
    return pc.if_else(values.is_valid(), ids, pa.scalar(0, pa.int32()))


Encoder = Vocabulary | Buckets | Hashed


def count_values(
    fields: Iterable[Field], batches: Iterable[pa.RecordBatch], memory: Memory = DEFAULT
) -> dict[str, ValueCounts | Moments]:
    """Counts the values of every field that needs counts: moments of dense fields. Returns {} if
    there are no rows.

    Memory grows with the number of distinct values, not with the number of rows.

    Raises:
        DataError: a column cannot be read as the schema says.
    """
    counted = [field for field in fields if field.counted]
    counts: dict[str, Any] = {}

    def count(batch: pa.RecordBatch) -> dict[str, ValueCounts | Moments]:
        return {field.name: _count(field, batch) for field in counted}

    for batch_counts in ordered_map(count, batches, encoding, memory):
        for name, field_counts in batch_counts.items():
            if name in counts:
                counts[name].merge(field_counts)
            else:
                counts[name] = field_counts
    return counts


def _count(field: Field, batch: pa.RecordBatch) -> ValueCounts | Moments:
    values = field_values(field, batch)
    if field.encoding is not None:
        return Moments.of(values, field.encoding)
    if pa.types.is_list(values.type):
        values = values.flatten()
    counts = ValueCounts(values.type)
    counts.update(values)
    return counts


def fit_encoder(field: Field, counts: ValueCounts | None) -> Encoder:
    """Fits the vocabulary or the buckets of a field to its training values. A hashed field needs no
    counts (None).
    """
    if field.hashed:
        return Hashed(field.hashed)
    assert counts is not None  # only a hashed field has none
    if field.kind == "numeric":
        return Buckets.fit(counts, field.buckets)
    return Vocabulary.fit(counts, field.min_count)


def encode_features(
    schema: Schema, encoders: Mapping[str, Encoder], batch: pa.RecordBatch
) -> dict[str, pa.Array]:
    """Encodes rows: ``encode_field`` by name, then the numbers [n] of dense fields.

    Raises:
        DataError: a column cannot be read as the schema says.
    """
    read = {*schema.field_columns()}.union(*(field.columns for field in schema.features))
    try:
        # preparation has computed columns already, without those that they are computed from
        batch = as_written(schema, batch.select([n for n in batch.schema.names if n in read]))
    except pa.ArrowInvalid as error:
        raise DataError(str(error)) from error
    ids = {field.name: encode_field(field, encoders[field.name], batch) for field in schema.fields}
    return ids | {field.name: field_values(field, batch) for field in schema.dense}


def count_unknown(ids: pa.Array) -> int:
    """Counts the encoded rows of a field with id 0, with a list of no other id, or with NaN for a
    number.
    """
    if pa.types.is_floating(ids.type):
        return int(np.isnan(ids.to_numpy()).sum())
    if not pa.types.is_list(ids.type):
        return len(ids) - int(np.count_nonzero(ids.to_numpy()))
    # known ids before each list
    known = np.append(0, np.cumsum(ids.values.to_numpy() > 0))[ids.offsets.to_numpy()]
    return len(ids) - int(np.count_nonzero(np.diff(known)))


def encode_field(field: Field, encoder: Encoder, batch: pa.RecordBatch) -> pa.Array:
    """Encodes a field as int32 ids [n], or as lists of int32 if the field reads all tokens.

    Raises:
        DataError: a column cannot be read as the schema says.
    """
    values = field_values(field, batch)
    if pa.types.is_list(values.type):
        return pa.ListArray.from_arrays(values.offsets, encoder.encode(values.values))
    return encoder.encode(values)


def field_values(field: Field, batch: pa.RecordBatch) -> pa.Array:
    """Returns the raw values of a field [n]: float64 (numeric), int64 or string, or lists of these.
    NaN becomes null.

    Those of a dense field are float32, with NaN for missing and infinite numbers. Finite ones
    beyond the range of float32 become its ends.

    Raises:
        DataError: a column cannot be read as the schema says.
    """
    try:
        values = batch[field.columns[0]]
        if field.kind == "numeric":
            return without_nan(as_float64(values))
        if field.kind == "dense":
            return _float32(values)
        if field.tokens is not None:
            return _select_tokens(_token_lists(values, field), field)
        if field.kind == "categorical":
            return canonical_values(values)
        texts = [canonical_text(batch[column]) for column in field.columns]
        return pc.binary_join_element_wise(*texts, CROSS_SEPARATOR)
    except pa.ArrowException as error:
        kinds = ", ".join(
            f"{column} ({batch.schema.field(column).type})" for column in field.columns
        )
        problem = f"field {field.name}: cannot read {kinds} as {field.kind}: {error}"
        if any(holds_text(batch.schema.field(column).type) for column in field.columns):
            problem += (
                "; --null, --decimal and --thousands (in Python null=, decimal=, thousands=) say how "
                "its text is written, and a schema can make it categorical"
            )
        raise DataError(problem) from error


def _token_lists(values: pa.Array, field: Field) -> pa.Array:
    """Returns tokens as lists [n] without gaps in the values. A missing list becomes empty.

    A column of lists needs no separator.
    """
    if field.separator is not None and not pa.types.is_nested(values.type):
        splits = 1 if field.tokens == "last" else field.length
        if splits is not None and splits > MOST_SPLITS:
            splits = None
        text = values.cast(pa.string())
        text = pc.if_else(pc.equal(text, ""), None, text)  # no token instead of one empty token
        values = pc.split_pattern(text, field.separator, max_splits=splits, reverse=True)
    if pa.types.is_fixed_size_list(values.type):
        values = values.cast(pa.list_(values.type.value_type))
    if pa.types.is_null(values.type):  # every list is missing
        values = values.cast(pa.list_(pa.string()))
    if not pa.types.is_list(values.type) and not pa.types.is_large_list(values.type):
        raise pa.ArrowTypeError("expected a column of lists, or text and a separator")
    ends = np.cumsum(pc.list_value_length(values).fill_null(0).to_numpy())
    return pa.ListArray.from_arrays(pa.array(np.append(0, ends), pa.int32()), values.flatten())


def _select_tokens(lists: pa.Array, field: Field) -> pa.Array:
    """Returns the last ``field.length`` tokens of each list [n], all for None; or the last one,
    null if the list is empty.
    """
    if field.tokens == "all":
        lists = lists if field.length is None else _last_tokens(lists, field.length)
        return pa.ListArray.from_arrays(lists.offsets, canonical_values(lists.values))
    last = pc.if_else(
        pc.greater(pc.list_value_length(lists), 0), pc.subtract(lists.offsets.slice(1), 1), None
    )
    return canonical_values(lists.values.take(last))


def _last_tokens(lists: pa.Array, length: int) -> pa.Array:
    """Returns the last ``length`` tokens of each list [n], in their order."""
    offsets = lists.offsets.to_numpy()
    counts = np.minimum(np.diff(offsets), length)
    ends = np.cumsum(counts)
    kept = np.repeat(offsets[1:] - ends, counts) + np.arange(ends[-1] if len(ends) else 0)
    return pa.ListArray.from_arrays(
        pa.array(np.append(0, ends), pa.int32()), lists.values.take(kept)
    )


def _float32(values: pa.Array) -> pa.Array:
    wide = as_float64(values).fill_null(np.nan).to_numpy(zero_copy_only=False)
    largest = np.finfo(np.float32).max
    finite = np.where(np.isfinite(wide), np.clip(wide, -largest, largest), np.nan)
    return pa.array(finite.astype(np.float32))
