"""Parses Ali-CCP's raw files (Tianchi data set 408) into rows of its 23 fields.

A skeleton file has one row per impression:
``sample_id,click,conversion,common_feature_index,feature_num,blob``. A file of common features has
one row per user: ``common_feature_index,feature_num,blob``. A blob holds tokens ``field \\x02
feature \\x03 value`` separated by ``\\x01``. The tokens of a field need not be contiguous. The last
token of a field is read, or every token if the field is in ``lists``. Values (logarithms of counts,
mostly 1) are not read.

Shapes: n rows.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from adaftr_fast.data.arrow import one_array
from adaftr_fast.data.bad_rows import BadRows
from adaftr_fast.data.encode.written import cast
from adaftr_fast.data.raw.text import Dialect, TextBlock, parse_block

COMMON = ["common_feature_index", "feature_num", "blob"]
SKELETON = ["sample_id", "click", "conversion", *COMMON]
LABELS = ["click", "conversion"]
# one split separates all three elements of a token
MERGE_SEPARATORS = bytes.maketrans(b"\x03", b"\x02")
MISSING = -1  # features are counted from 1


def parse_common(
    data: bytes, fields: Sequence[str], lists: Collection[str] = ()
) -> tuple[pa.Table, BadRows]:
    """Parses lines of a common features file to ``common_feature_index`` and one column per field.

    Args:
        fields: fields to read.
        lists: fields of which all tokens are read.
    """
    block = parse_block(data.translate(MERGE_SEPARATORS), Dialect(COMMON, quoted=False))
    block.convert(COMMON[0], pa.string())
    _add_features(block, fields, lists)
    return block.table.select([COMMON[0], *fields]), block.report()


def parse_skeleton(
    data: bytes,
    fields: Sequence[str],
    lists: Collection[str] = (),
    *,
    common: pa.Table,
    labels: Sequence[str] = LABELS,
    keep: Sequence[str] = (),
) -> tuple[pa.Table, BadRows]:
    """Parses lines of a skeleton file and joins them with ``common``.

    Args:
        common: rows of ``parse_common``, all in one chunk.
        labels: label columns, returned as uint8.
        keep: other columns to return, as text.

    Returns:
        The labels, the columns to keep and one column per field; and the bad rows.
    """
    block = parse_block(data.translate(MERGE_SEPARATORS), Dialect(SKELETON, quoted=False))
    for column in keep:
        block.convert(column, pa.string())
    for label in labels:
        block.require(label)
        block.convert(label, pa.uint8())
    block.convert(COMMON[0], pa.string())
    _add_features(block, fields, lists)
    index = block.columns[COMMON[0]]
    user = pc.index_in(index, value_set=one_array(common[COMMON[0]]))
    block.drop(user.is_null(), "no common features with this index", index)
    of_user = common.select(fields).take(user.drop_null())
    for field in fields:
        block.columns[field] = _filled(block.columns[field], one_array(of_user[field]))
    return block.table.select([*labels, *keep, *fields]), block.report()


def _filled(values: pa.Array, others: pa.Array) -> pa.Array:
    """Returns ``values`` [n], with ``others`` [n] where a number is missing or a list is empty."""
    if pa.types.is_list(values.type):
        return pc.if_else(pc.greater(pc.list_value_length(values), 0), values, others)
    return pc.coalesce(values, others)


def _add_features(block: TextBlock, fields: Sequence[str], lists: Collection[str]) -> None:
    """Adds the features of each blob as columns by field, and drops rows with a damaged blob.

    They are the last tokens, int64 [n], null without any; and lists of all tokens for the fields in
    ``lists``.
    """
    block.convert("blob", pa.string())
    block.convert("feature_num", pa.int64())
    count = pc.add(pc.count_substring(block.columns["blob"], "\x01"), 1).fill_null(0).to_numpy()
    declared = block.columns["feature_num"].fill_null(0).to_numpy()
    block.drop(declared != count, "feature_num is not the number of tokens", block.columns["blob"])

    blob = block.columns["blob"]
    tokens = pc.split_pattern(blob.fill_null(""), "\x01")
    row = np.repeat(np.arange(len(blob)), pc.list_value_length(tokens).to_numpy())
    elements = pc.split_pattern(tokens.values, "\x02")
    names = _element(elements, 0)
    feature = cast(_element(elements, 1), pa.int64())
    has_feature = feature.is_valid().to_numpy(zero_copy_only=False)
    fits = (pc.list_value_length(elements).to_numpy() == 3) & has_feature

    position = pc.index_in(names, value_set=pa.array(fields, pa.string())).fill_null(-1).to_numpy()
    known = fits & (position >= 0)
    row_of = row[known]
    position = position[known]
    value = feature.filter(known).to_numpy()
    last = np.full((len(blob), len(fields)), MISSING, np.int64)
    last[row_of, position] = value  # NumPy keeps the last value assigned to a position
    for number, field in enumerate(fields):
        if field in lists:
            own = position == number
            block.columns[field] = _group_by_row(row_of[own], value[own], len(blob))
        else:
            found = np.ascontiguousarray(last[:, number])
            block.columns[field] = pa.array(found, mask=found == MISSING)
    damaged = np.zeros(len(blob), bool)
    damaged[row[~fits]] = True
    damaged &= blob.is_valid().to_numpy(zero_copy_only=False)  # a missing blob is not damaged
    block.drop(damaged, "a token is not field, feature and value", blob)


def _group_by_row(row: np.ndarray, value: np.ndarray, rows: int) -> pa.Array:
    """Groups values [m] with ascending row numbers [m] into one list per row [rows]."""
    offsets = np.searchsorted(row, np.arange(rows + 1)).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(value))


def _element(lists: pa.ListArray, position: int) -> pa.Array:
    """Returns element ``position`` of each list [n], null where the list is shorter."""
    found = pc.list_slice(lists, position, position + 1, return_fixed_size_list=True)
    return found.values
