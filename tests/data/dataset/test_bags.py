"""Multi-valued fields, compared with lists of lists."""

import itertools

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from adaftr_fast.data.dataset import batch as bags
from adaftr_fast.data.dataset.batch import Batch, concat
from adaftr_fast.data.dataset.loader import PreparedData
from adaftr_fast.data.encode.vocabulary import read_encoders
from adaftr_fast.errors import DataError
from tests.data.manifests import recorded

SEEN = [["a", "b"], ["b"], [], None, ["c", "b", None], ["b", "b"]]


def nested(batch: Batch) -> list[list[list[int]]]:
    """Returns the ids of each field of each row."""
    ids = batch.ids.tolist()
    offsets = batch.offsets.tolist()
    bags_of = [ids[start:stop] for start, stop in itertools.pairwise(offsets)]
    width = len(bags_of) // max(len(batch), 1)
    return [bags_of[row * width : (row + 1) * width] for row in range(len(batch))]


def batch_of(rows: int) -> tuple[Batch, list[list[list[int]]]]:
    random = np.random.default_rng(0)
    many = [random.integers(0, 9, random.integers(0, 5)).astype(np.int32) for _ in range(rows)]
    one = np.arange(rows, dtype=np.int32)
    flat = np.concatenate([np.empty(0, np.int32), *many])
    own = np.cumsum([0, *map(len, many)])
    ids, offsets = map(torch.from_numpy, bags.interleave([(one, None), (flat, own), (one, None)]))
    content = Batch(
        ids, torch.zeros(rows, 1), torch.from_numpy(one.astype(np.int64)), offsets=offsets
    )
    return content, [[[row], each.tolist(), [row]] for row, each in enumerate(many)]


@pytest.mark.parametrize("rows", [0, 50])
def test_slice_take_and_concat(rows, monkeypatch):
    monkeypatch.setattr(bags, "BLOCK", 7)
    batch, expected = batch_of(rows)
    assert nested(batch) == expected
    for rows_slice in (slice(0, 3), slice(3, 20), slice(20, 20), slice(-5, None), slice(30, 10)):
        assert nested(batch[rows_slice]) == expected[rows_slice]
        assert batch[rows_slice].group.tolist() == list(range(rows))[rows_slice]
    order = np.random.default_rng(1).permutation(rows)[: rows // 2]
    assert nested(batch.take(order)) == [expected[row] for row in order]
    assert nested(concat([batch[:2], batch[2:2], batch[2:]])) == expected


@pytest.fixture
def seen(source):
    source["fields"] = {"size": "categorical", "seen": {"kind": "categorical", "tokens": "all"}}
    return source


def test_all_tokens_of_lists(seen, prepared, rows, tmp_path):
    later = [["new"], ["new", "a"], [], None, [None], ["b", "new"]]
    manifest = prepared(seen=SEEN + later)
    assert [field.multiple for field in manifest.fields] == [False, True]
    unknown = [split.unknown["seen"] for split in manifest.splits.values()]
    assert unknown == [2, 3, 1]  # lists without a known token
    values = pq.read_table(tmp_path / "out/vocabulary.parquet")["value"].to_pylist()
    assert values == ["1", "2", "b", "a", "c"]
    assert rows()["seen"] == [[2, 1], [1], [], [], [3, 1, 0], [1, 1]]
    split = PreparedData(tmp_path / "out").load("train")
    (batch,) = split.batches(10)
    assert nested(batch) == [[[size], ids] for size, ids in zip(rows()["size"], rows()["seen"])]
    shuffled = [row for batch in split.shuffled(2, seed=0, epoch=1) for row in nested(batch)]
    assert sorted(shuffled) == sorted(nested(batch))


@pytest.mark.parametrize(("length", "separator"), [(2, "|"), (9, None), (2**31 - 2, "|")])
def test_the_last_tokens_are_kept_in_their_order(seen, prepared, rows, tmp_path, length, separator):
    lists = [["a", "b", "c"], [], None, ["c"], ["b", "c", "a"], ["a", "a", "b", "b"]]
    kept = [(each or [])[-length:] for each in lists]
    if separator:
        seen["fields"]["seen"]["separator"] = separator
        lists = [each if each is None else separator.join(each) for each in lists]
    whole = prepared("whole", seen=lists + lists)
    seen["fields"]["seen"]["length"] = length
    manifest = prepared(seen=lists + lists)
    assert manifest.fingerprint != whole.fingerprint  # a model of one is not evaluated on the other
    values = read_encoders(tmp_path / "out", manifest)["seen"].values.to_pylist()
    assert [[values[each - 1] for each in ids] for ids in rows()["seen"]] == kept
    assert set(values) == set().union(*kept)


@pytest.mark.parametrize("hashed", [{}, {"hashed": 7}], ids=["vocabulary", "hashed"])
def test_tokens_have_the_ids_of_the_field_that_they_name(seen, prepared, rows, tmp_path, hashed):
    seen["fields"] = {
        "seen": {"kind": "categorical", "tokens": "all", "vocabulary": "city"},
        "city": {"kind": "categorical"} | hashed,
        "size": "categorical",
    }
    lists = [["a", "x", "c"], [], None, ["z", None], ["b"], ["a", "b"]]
    columns = {"city": [*"bacaazbcca", None, "y"], "seen": lists + lists}
    manifest = prepared(**columns)
    encoders = read_encoders(tmp_path / "out", manifest)
    assert list(encoders) == ["seen", "city", "size"]
    assert encoders["seen"] is encoders["city"]
    ids = [encoders["city"].encode(pa.array(each or [], pa.string())).to_pylist() for each in lists]
    assert rows()["seen"] == ids
    assert hashed or ids[0][1] == 0  # x is in no training row of city
    stored = pq.read_table(tmp_path / "out/vocabulary.parquet")["field"].to_pylist()
    assert set(stored) == ({"size"} if hashed else {"city", "size"})
    columns["city"][0] = "new"
    grown = prepared("grown", options={"grow": tmp_path / "out"}, **columns)
    expected = manifest.num_embeddings[1] + (not hashed)
    assert grown.num_embeddings[:2] == [expected, expected]


def test_damaged_lists_raise(seen, prepared, tmp_path):
    prepared(seen=SEEN + SEEN)
    path = tmp_path / "out/train.parquet"
    table = pq.read_table(path)
    for lists, message in (
        ([[9]] * 6, r"column seen: expected values in .*, got values from 9 to 9"),
        ([[None]] * 6, "column seen: expected no missing values, got 6"),
    ):
        pq.write_table(table.set_column(1, "seen", pa.array(lists, pa.list_(pa.int32()))), path)
        with pytest.raises(DataError, match=message):
            next(PreparedData(recorded(tmp_path / "out")).load("train").batches(2))
