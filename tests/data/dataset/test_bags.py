"""Multi-valued fields, compared with lists of lists."""

import itertools

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from adaftr_fast.config import OptimizerConfig, TrainingConfig
from adaftr_fast.data.dataset import batch as bags
from adaftr_fast.data.dataset.batch import Batch, concat
from adaftr_fast.data.dataset.loader import PreparedData
from adaftr_fast.data.dataset.vocabulary import read_encoders
from adaftr_fast.data.prepare.run import prepare
from adaftr_fast.data.raw import aliccp
from adaftr_fast.data.schema.parse import parse_schema
from adaftr_fast.errors import DataError
from adaftr_fast.models import ModelConfig, build_model
from adaftr_fast.training.trainer import Trainer
from tests.data.manifests import recorded
from tests.data.raw.test_aliccp import COMMON, FIELDS, SKELETON

SEEN = [["a", "b"], ["b"], [], None, ["c", "b", None], ["b", "b"]]


def nested(batch: Batch) -> list[list[list[int]]]:
    """Returns the ids of each field of each row."""
    ids, offsets = batch.ids.tolist(), batch.offsets.tolist()
    bags_of = [ids[start:stop] for start, stop in itertools.pairwise(offsets)]
    width = len(bags_of) // max(len(batch), 1)
    return [bags_of[row * width : (row + 1) * width] for row in range(len(batch))]


def batch_of(rows: int, seed: int = 0) -> tuple[Batch, list[list[list[int]]]]:
    random = np.random.default_rng(seed)
    many = [random.integers(0, 9, random.integers(0, 5)).astype(np.int32) for _ in range(rows)]
    one = np.arange(rows, dtype=np.int32)
    own = np.cumsum([0, *map(len, many)])
    flat = np.concatenate([np.empty(0, np.int32), *many])
    ids, offsets = map(torch.from_numpy, bags.interleave([(one, None), (flat, own), (one, None)]))
    content = Batch(ids, torch.zeros(rows, 1), torch.from_numpy(one.astype(np.int64)), offsets=offsets)
    return content, [[[row], each.tolist(), [row]] for row, each in enumerate(many)]


@pytest.mark.parametrize("rows", [0, 1, 50])
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


def test_all_tokens_of_lists(seen, write, tmp_path):
    manifest = prepare(parse_schema(seen), [write(seen=SEEN + SEEN)], tmp_path / "out")
    assert [field.multiple for field in manifest.fields] == [False, True]
    assert pq.read_table(tmp_path / "out/vocabulary.parquet")["value"].to_pylist() == ["1", "2", "b", "a", "c"]
    table = pq.read_table(tmp_path / "out/train.parquet")
    assert table["seen"].to_pylist() == [[2, 1], [1], [], [], [3, 1, 0], [1, 1]]
    split = PreparedData(tmp_path / "out").load("train")
    (batch,) = split.batches(10)
    assert [row[1] for row in nested(batch)] == table["seen"].to_pylist()
    assert [row[0] for row in nested(batch)] == [[each] for each in table["size"].to_pylist()]
    shuffled = [row for batch in split.shuffled(2, seed=0, epoch=1) for row in nested(batch)]
    assert sorted(shuffled) == sorted(nested(batch))


def test_lists_without_a_known_token_are_unknown(seen, write, tmp_path):
    later = [["new"], ["new", "a"], [], None, [None], ["b", "new"]]
    manifest = prepare(parse_schema(seen), [write(seen=SEEN + later)], tmp_path / "out")
    unknown = {name: split.unknown["seen"] for name, split in manifest.splits.items()}
    assert unknown == {"train": 2, "validation": 3, "test": 1}


def test_all_tokens_of_text(seen, write, tmp_path):
    seen["fields"]["seen"]["separator"] = "|"
    text = [each if each is None else "|".join(filter(None, each)) for each in SEEN]
    prepare(parse_schema(seen), [write(seen=text + text)], tmp_path / "out")
    column = pq.read_table(tmp_path / "out/train.parquet")["seen"].to_pylist()
    assert [column[0], column[3], column[5]] == [[2, 1], [], [1, 1]]


@pytest.mark.parametrize("length", [1, 2, 9])
@pytest.mark.parametrize("separator", [None, "|"])
def test_the_last_tokens_are_kept_in_their_order(seen, write, tmp_path, length, separator):
    lists = [["a", "b", "c"], [], None, ["c"], ["b", "c", "a"], ["a", "a", "b", "b"]]
    kept = [(each or [])[-length:] for each in lists]
    if separator:
        seen["fields"]["seen"]["separator"] = separator
        lists = [each if each is None else separator.join(each) for each in lists]
    whole = prepare(parse_schema(seen), [write(seen=lists + lists)], tmp_path / "whole")
    seen["fields"]["seen"]["length"] = length
    manifest = prepare(parse_schema(seen), [write(seen=lists + lists)], tmp_path / "out")
    assert manifest.fingerprint != whole.fingerprint  # a model of one is not evaluated on the other
    vocabulary = read_encoders(tmp_path / "out", manifest)["seen"]
    assert set(vocabulary.values.to_pylist()) == {token for tokens in kept for token in tokens}
    column = pq.read_table(tmp_path / "out/train.parquet")["seen"].to_pylist()
    assert [[vocabulary.values[each - 1].as_py() for each in ids] for ids in column] == kept


@pytest.mark.parametrize("hashed", [{}, {"hashed": 7}], ids=["vocabulary", "hashed"])
def test_tokens_have_the_ids_of_the_field_that_they_name(seen, write, tmp_path, hashed):
    seen["fields"] = {
        "seen": {"kind": "categorical", "tokens": "all", "vocabulary": "city"},
        "city": {"kind": "categorical"} | hashed,
        "size": "categorical",
    }
    city = [*"bacaazbcca", None, "y"]
    lists = [["a", "x", "c"], [], None, ["z", None], ["b"], ["a", "b"]]
    manifest = prepare(parse_schema(seen), [write(city=city, seen=lists + lists)], tmp_path / "out")
    assert manifest.num_embeddings[0] == manifest.num_embeddings[1]
    table = pq.read_table(tmp_path / "out/train.parquet")
    encoders = read_encoders(tmp_path / "out", manifest)
    assert list(encoders) == ["seen", "city", "size"]
    assert encoders["seen"] is encoders["city"]
    ids = [encoders["city"].encode(pa.array(each or [], pa.string())).to_pylist() for each in lists]
    assert table["seen"].to_pylist() == ids
    assert hashed or ids[0][1] == 0  # x is in no training row of city
    stored = pq.read_table(tmp_path / "out/vocabulary.parquet")["field"].to_pylist()
    assert set(stored) == ({"size"} if hashed else {"city", "size"})
    grown = prepare(parse_schema(seen), [write(city=["new", *city[1:]], seen=lists + lists)], tmp_path / "grown",
                    grow=tmp_path / "out")  # fmt: skip
    more = read_encoders(tmp_path / "grown", grown)
    assert more["seen"] is more["city"]
    assert grown.num_embeddings[0] == grown.num_embeddings[1] == manifest.num_embeddings[0] + (not hashed)


def test_damaged_lists_raise(seen, write, tmp_path):
    prepare(parse_schema(seen), [write(seen=SEEN + SEEN)], tmp_path / "out")
    path = tmp_path / "out/train.parquet"
    table = pq.read_table(path)
    place = table.column_names.index("seen")
    for lists, message in (
        ([[9]] * 6, r"column seen: expected values in .*, got values from 9 to 9"),
        ([[None]] * 6, "column seen: expected no missing values, got 6"),
    ):
        pq.write_table(table.set_column(place, "seen", pa.array(lists, pa.list_(pa.int32()))), path)
        with pytest.raises(DataError, match=message):
            next(PreparedData(recorded(tmp_path / "out")).load("train").batches(2))


def test_all_tokens_of_aliccp(tmp_path):
    """210 is in the skeleton; 109_14 is a common feature, but u1 also has tokens of its own."""
    lists = ["109_14", "210"]
    table, _ = aliccp.parse_common(COMMON.encode(), FIELDS, lists)
    assert table["109_14"].to_pylist() == [[3, 5], []]
    pq.write_table(table, tmp_path / "part.parquet")
    common = aliccp.read_common(tmp_path)
    table, bad_rows = aliccp.parse_skeleton(SKELETON.encode(), FIELDS, common, lists)
    assert table["210"].to_pylist() == [[1, 9], [], []]
    assert table["109_14"].to_pylist() == [[3, 5], [], [1]]
    assert table["101"].to_pylist() == [8, None, 8]
    assert bad_rows.bad == 6


def test_models_train_on_multi_valued_fields(seen, write, tmp_path):
    """The vector of a field is the mean over its ids."""
    prepare(parse_schema(seen), [write(seen=SEEN + SEEN)], tmp_path / "out")
    data = PreparedData(tmp_path / "out")
    train = data.load("train")
    (batch,) = train.batches(10)
    for name in ("mmoe", "single_dnn", "adaftr"):
        torch.manual_seed(0)
        model = build_model(ModelConfig(name=name), data.manifest.num_embeddings, data.manifest.tasks)
        trainer = Trainer(
            model,
            train,
            train,
            optimizer=OptimizerConfig(lr=0.05),
            config=TrainingConfig(batch_size=3, eval_batch_size=4, max_epochs=3, progress=False),
        )
        epochs = trainer.fit().epochs
        assert epochs[-1]["train"]["click"] < epochs[0]["train"]["click"]
    embedding = model.backbone.embedding
    expected = [embedding.field_weight(1)[ids].mean(0) if ids else torch.zeros(8) for _, ids in nested(batch)]
    width = embedding.embedding_dim
    assert torch.allclose(model.backbone.represent(*batch.features).embedded[:, width:], torch.stack(expected))
