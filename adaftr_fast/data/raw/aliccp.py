"""Parses Ali-CCP's raw files (Tianchi data set 408) into rows of its 23 fields.

A skeleton file has one row per impression: ``sample_id,click,conversion,common_feature_index,feature_num,blob``. A file
of common features has one row per user: ``common_feature_index,feature_num,blob``. A blob holds tokens
``field \\x02 feature \\x03 value`` separated by ``\\x01``. The tokens of a field need not be contiguous. The last token
of a field is read, or every token if the field is in ``lists``. Values (logarithms of counts, mostly 1) are not read.

Shapes: n rows, F fields, U users.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from adaftr_fast.data.raw.bad_rows import BadRows
from adaftr_fast.data.raw.batches import PARQUET
from adaftr_fast.data.raw.text import TextBlock, castable, parse_block

COMMON = ["common_feature_index", "feature_num", "blob"]
SKELETON = ["sample_id", "click", "conversion", *COMMON]
LABELS = ["click", "conversion"]
MERGE_SEPARATORS = bytes.maketrans(b"\x03", b"\x02")  # one split separates all three elements of a token
MISSING = -1  # features are counted from 1


@dataclass(frozen=True)
class Features:
    """Features of n blobs.

    Attributes:
        last: the last token of each field, int64 [n, F]; ``MISSING`` if the field has none.
        all: all tokens of each field in ``lists``, lists of int64 [n].
    """

    last: np.ndarray
    all: dict[str, pa.Array]

    def columns(self, fields: Sequence[str]) -> dict[str, pa.Array]:
        """Returns one column per field [n]: int64, or lists of int64."""
        missing = self.last == MISSING
        last = {
            field: pa.array(np.ascontiguousarray(self.last[:, position]), mask=missing[:, position])
            for position, field in enumerate(fields)
        }
        return last | self.all


@dataclass(frozen=True)
class CommonFeatures:
    """Features of U users, keyed by ``index``, strings [U]."""

    index: pa.Array
    features: Features


def parse_common(data: bytes, fields: Sequence[str], lists: Collection[str] = ()) -> tuple[pa.Table, BadRows]:
    """Parses lines of a common features file to ``common_feature_index`` and one column per field.

    Args:
        fields: fields to read.
        lists: fields of which all tokens are read.
    """
    block = parse_block(data.translate(MERGE_SEPARATORS), COMMON, ",", quoted=False)
    block.convert(COMMON[0], pa.string())
    features = _features(block, fields, lists)
    columns = {COMMON[0]: block.columns[COMMON[0]]} | features.columns(fields)
    return pa.table(columns), block.report()


def read_common(folder: Path, fields: Sequence[str], lists: Collection[str] = ()) -> CommonFeatures:
    """Reads all common features of a staged file into memory, 8 bytes per feature."""
    return common_features(ds.dataset(folder, format=PARQUET).to_table(), fields, lists)


def common_features(table: pa.Table, fields: Sequence[str], lists: Collection[str] = ()) -> CommonFeatures:
    """Converts rows of ``parse_common`` to the form ``parse_skeleton`` joins with."""
    table = table.combine_chunks()
    last = np.full((table.num_rows, len(fields)), MISSING, np.int64)
    for position, field in enumerate(fields):
        if field not in lists:
            last[:, position] = table[field].fill_null(MISSING).to_numpy()
    lists_by_field = {field: _one_array(table[field]) for field in lists}
    return CommonFeatures(_one_array(table[COMMON[0]]), Features(last, lists_by_field))


def parse_skeleton(
    data: bytes,
    fields: Sequence[str],
    common: CommonFeatures,
    lists: Collection[str] = (),
    *,
    labels: Sequence[str] = LABELS,
    keep: Sequence[str] = (),
) -> tuple[pa.Table, BadRows]:
    """Parses lines of a skeleton file and joins them with ``common``.

    Args:
        labels: label columns, returned as uint8.
        keep: other columns to return, as text.

    Returns:
        The labels, the columns to keep and one column per field; and the bad rows.
    """
    block = parse_block(data.translate(MERGE_SEPARATORS), SKELETON, ",", quoted=False)
    for column in keep:
        block.convert(column, pa.string())
    for label in labels:
        block.require(label)
        block.convert(label, pa.uint8())
    block.convert(COMMON[0], pa.string())
    features = _features(block, fields, lists)
    user = pc.index_in(block.columns[COMMON[0]], value_set=common.index).fill_null(-1).to_numpy()
    joined = _join(features, common.features, user)
    block.drop(user < 0, "no common features with this index", block.columns[COMMON[0]])
    columns = {column: block.columns[column] for column in (*labels, *keep)} | joined.columns(fields)
    return pa.table(columns), block.report()


def _join(own: Features, common: Features, user: np.ndarray) -> Features:
    """Fills fields without own tokens from the ``user`` [n] of the row. Rows without a user (-1) are left out."""
    known = user >= 0
    last, user = own.last[known], user[known]
    last = np.where(last == MISSING, common.last[user], last)
    lists_by_field = {}
    for field, lists in own.all.items():
        lists, of_user = lists.filter(pa.array(known)), common.all[field].take(pa.array(user))
        lists_by_field[field] = pc.if_else(pc.greater(pc.list_value_length(lists), 0), lists, of_user)
    return Features(last, lists_by_field)


def _features(block: TextBlock, fields: Sequence[str], lists: Collection[str]) -> Features:
    """Returns the features of each blob and drops rows with a damaged blob."""
    block.convert("blob", pa.string())
    block.convert("feature_num", pa.int64())
    count = pc.add(pc.count_substring(block.columns["blob"], "\x01"), 1).fill_null(0).to_numpy()
    declared = block.columns["feature_num"].fill_null(0).to_numpy()
    block.drop(declared != count, "feature_num is not the number of tokens", block.columns["blob"])

    blob = block.columns["blob"]
    tokens = pc.split_pattern(blob.fill_null(""), "\x01")
    row = np.repeat(np.arange(len(blob)), pc.list_value_length(tokens).to_numpy())
    elements = pc.split_pattern(tokens.values, "\x02")
    names, feature = _element(elements, 0), _element(elements, 1)
    fits = (pc.list_value_length(elements).to_numpy() == 3) & castable(feature, pa.int64())

    position = pc.index_in(names, value_set=pa.array(fields, pa.string())).fill_null(-1).to_numpy()
    known = fits & (position >= 0)
    row_of = row[known]
    position = position[known]
    value = feature.filter(pa.array(known)).cast(pa.int64()).to_numpy()
    last = np.full((len(blob), len(fields)), MISSING, np.int64)
    last[row_of, position] = value  # NumPy keeps the last value assigned to a position
    masks = {field: position == fields.index(field) for field in lists}
    lists_by_field = {field: _group_by_row(row_of[mask], value[mask], len(blob)) for field, mask in masks.items()}
    damaged = np.zeros(len(blob), bool)
    damaged[row[~fits]] = True
    damaged &= blob.is_valid().to_numpy(zero_copy_only=False)  # a missing blob is not damaged
    block.drop(damaged, "a token is not field, feature and value", blob)
    kept = pa.array(~damaged)
    return Features(last[~damaged], {field: lists.filter(kept) for field, lists in lists_by_field.items()})


def _group_by_row(row: np.ndarray, value: np.ndarray, rows: int) -> pa.Array:
    """Groups values [m] with ascending row numbers [m] into one list per row [rows]."""
    offsets = np.searchsorted(row, np.arange(rows + 1)).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(value))


def _element(lists: pa.ListArray, position: int) -> pa.Array:
    """Returns element ``position`` of each list [n], null where the list is shorter."""
    offsets = lists.offsets.to_numpy()
    short = np.diff(offsets) <= position
    return lists.values.take(pa.array(offsets[:-1].astype(np.int64) + position, mask=short))


def _one_array(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks else pa.array([], column.type)
