"""Ali-CCP's raw layout (Tianchi data set 408) to rows of its 23 fields. n rows, F fields, U common features.

A skeleton file has a row per impression, ``sample_id,click,conversion,common_feature_index,feature_num,blob``; the
user's features stand once in a file of common features, ``common_feature_index,feature_num,blob``. A blob holds tokens
``field \\x02 feature \\x03 value`` joined by ``\\x01``; of a field with several tokens, which need not be contiguous,
the last is taken. Values (logarithms of counts, mostly 1) are not read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from adaftr_fast.data.bad_rows import BadRows
from adaftr_fast.data.text import TextBlock, castable, parse_block

COMMON = ["common_feature_index", "feature_num", "blob"]
SKELETON = ["sample_id", "click", "conversion", *COMMON]
LABELS = ["click", "conversion"]
ONE_SEPARATOR = bytes.maketrans(b"\x03", b"\x02")  # so that one split takes a token apart, not two
MISSING = -1  # of a feature, which are counted from 1


@dataclass(frozen=True)
class CommonFeatures:
    """The users' features.

    Attributes:
        index: string [U].
        features: int64 [U, F], ``MISSING`` where a field has none.
    """

    index: pa.Array
    features: np.ndarray


def parse_common(data: bytes, fields: Sequence[str]) -> tuple[pa.Table, BadRows]:
    """Lines of a file of common features to ``common_feature_index`` and an int64 column per field."""
    block = parse_block(data.translate(ONE_SEPARATOR), COMMON, ",", quoted=False)
    features = _features(block, fields)
    columns = {COMMON[0]: block.table[COMMON[0]].cast(pa.string())} | _columns(fields, features)
    return pa.table(columns), block.report()


def read_common(folder: Path, fields: Sequence[str]) -> CommonFeatures:
    """All common features of a staged file, 8 F bytes and an index each."""
    table = ds.dataset(folder, format="parquet").to_table().combine_chunks()
    features = np.full((table.num_rows, len(fields)), MISSING, np.int64)
    for place, field in enumerate(fields):
        features[:, place] = table[field].fill_null(MISSING).to_numpy()
    index = table[COMMON[0]]
    return CommonFeatures(index.chunk(0) if index.num_chunks else pa.array([], pa.string()), features)


def parse_skeleton(data: bytes, fields: Sequence[str], common: CommonFeatures) -> tuple[pa.Table, BadRows]:
    """Lines of a skeleton file, joined, to uint8 ``click`` and ``conversion`` and an int64 column per field."""
    block = parse_block(data.translate(ONE_SEPARATOR), SKELETON, ",", quoted=False)
    for label in LABELS:
        block.require(label)
        block.convert(label, pa.uint8())
    block.convert(COMMON[0], pa.string())
    features = _features(block, fields)
    user = pc.index_in(block.column(COMMON[0]), value_set=common.index).fill_null(-1).to_numpy()
    features = np.where(features == MISSING, common.features[user], features)[user >= 0]
    block.drop(user < 0, "no common features of this index", block.column(COMMON[0]))
    columns = {label: block.table[label] for label in LABELS} | _columns(fields, features)
    return pa.table(columns), block.report()


def _features(block: TextBlock, fields: Sequence[str]) -> np.ndarray:
    """The last feature of each field, int64 [n, F]; rows whose blob is damaged are set apart."""
    block.convert("blob", pa.string())
    block.convert("feature_num", pa.int64())
    count = pc.add(pc.count_substring(block.column("blob"), "\x01"), 1).fill_null(0).to_numpy()
    declared = block.column("feature_num").fill_null(0).to_numpy()
    block.drop(declared != count, "feature_num is not the number of tokens", block.column("blob"))

    blob = block.column("blob")
    tokens = pc.split_pattern(blob.fill_null(""), "\x01")
    row = np.repeat(np.arange(len(blob)), pc.list_value_length(tokens).to_numpy())
    parts = pc.split_pattern(tokens.values, "\x02")
    names, feature = _element(parts, 0), _element(parts, 1)
    fits = (pc.list_value_length(parts).to_numpy() == 3) & castable(feature, pa.int64())

    place = pc.index_in(names, value_set=pa.array(fields, pa.string())).fill_null(-1).to_numpy()
    known = fits & (place >= 0)
    features = np.full((len(blob), len(fields)), MISSING, np.int64)
    # Of equal places, an assignment keeps the last value, as NumPy documents.
    features[row[known], place[known]] = feature.filter(pa.array(known)).cast(pa.int64()).to_numpy()
    damaged = np.zeros(len(blob), bool)
    damaged[row[~fits]] = True
    damaged &= blob.is_valid().to_numpy(zero_copy_only=False)  # no blob is no damage
    block.drop(damaged, "a token is not field, feature and value", blob)
    return features[~damaged]


def _element(lists: pa.ListArray, place: int) -> pa.Array:
    """Element ``place`` of each list [n], missing where it is shorter."""
    offsets = lists.offsets.to_numpy()
    short = np.diff(offsets) <= place
    return lists.values.take(pa.array(offsets[:-1].astype(np.int64) + place, mask=short))


def _columns(fields: Sequence[str], features: np.ndarray) -> dict[str, pa.Array]:
    missing = features == MISSING
    return {
        field: pa.array(np.ascontiguousarray(features[:, place]), mask=missing[:, place])
        for place, field in enumerate(fields)
    }
