import pyarrow.parquet as pq
import pytest
import torch

from adaftr_fast.data.errors import DataError
from adaftr_fast.data.loader import PreparedData, Split
from adaftr_fast.data.prepare import prepare
from adaftr_fast.data.schema import parse_schema


@pytest.fixture
def folder(source, write, tmp_path):
    prepare(parse_schema(source), [write()], tmp_path / "out")
    return tmp_path / "out"


def numbered(rows: int) -> Split:
    ids = torch.arange(rows, dtype=torch.int32)
    return Split(ids[:, None].repeat(1, 3), ids[:, None].float(), ids.long())


def test_tensors_of_a_prepared_split(folder):
    split = PreparedData(folder).load("train")
    assert (split.ids.dtype, split.labels.dtype, split.group.dtype) == (
        torch.int32,
        torch.float32,
        torch.int64,
    )
    assert split.ids.tolist()[0] == [1, 1, 1, 1]
    assert split.labels.tolist()[1] == [1.0, 1.0]
    assert split.group.tolist() == [0, 1, 0, 2, 1, -1]
    assert len(split) == 6


def test_batches_keep_rows_together_and_in_order():
    batches = list(numbered(10).batches(4))
    assert [len(batch) for batch in batches] == [4, 4, 2]
    assert torch.cat([batch.group for batch in batches]).tolist() == list(range(10))
    for batch in batches:
        assert (batch.ids == batch.group[:, None]).all()


def test_shuffling_is_a_permutation_without_the_short_last_batch():
    batches = list(numbered(10).shuffled(4, seed=1, epoch=0))
    assert [len(batch) for batch in batches] == [4, 4]
    assert len(set(torch.cat([batch.group for batch in batches]).tolist())) == 8
    for batch in batches:
        assert (batch.ids == batch.group[:, None]).all()
        assert (batch.labels[:, 0] == batch.group).all()


def test_shuffling_can_start_at_any_batch():
    whole = [batch.group for batch in numbered(50).shuffled(4, seed=1, epoch=2)]
    for first in range(len(whole) + 1):
        rest = [batch.group for batch in numbered(50).shuffled(4, seed=1, epoch=2, first_batch=first)]
        assert torch.equal(torch.cat([torch.empty(0), *rest]), torch.cat([torch.empty(0), *whole[first:]]))


def test_shuffling_depends_on_seed_and_epoch_alone():
    def order(seed, epoch):
        return torch.cat([batch.group for batch in numbered(100).shuffled(10, seed=seed, epoch=epoch)]).tolist()

    assert order(1, 0) == order(1, 0)
    assert len({tuple(order(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9


def test_damage_is_named(folder):
    data = PreparedData(folder)
    with pytest.raises(DataError, match="no split 'dev'; expected one of train, validation, test"):
        data.load("dev")
    table = pq.read_table(folder / "train.parquet")
    pq.write_table(table.slice(1), folder / "train.parquet")
    with pytest.raises(DataError, match="5 rows, expected 6"):
        data.load("train")
    pq.write_table(table.drop_columns("rain"), folder / "train.parquet")
    with pytest.raises(DataError, match="rain"):
        data.load("train")
    pq.write_table(table.set_column(0, "city", [table["size"].combine_chunks().take([0] * 6).cast("int32")]),
                   folder / "train.parquet")  # fmt: skip
    data.load("train")
    wide = table.set_column(0, "city", [[4] * 6])
    pq.write_table(wide, folder / "train.parquet")
    with pytest.raises(DataError, match=r"column city: \[4, 4\] leaves \[0, 4\)"):
        data.load("train")
    (folder / "train.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match="not readable"):
        data.load("train")
