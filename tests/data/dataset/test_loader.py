import gc
import json
import os
import sys
import threading
import weakref

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from adaftr_fast.data.dataset import loader
from adaftr_fast.data.dataset.batch import Batch
from adaftr_fast.data.dataset.loader import PreparedData, Share, Split
from adaftr_fast.data.dataset.rows import TensorRows
from adaftr_fast.errors import DataError
from tests.data.manifests import recorded
from tests.forks import Script, in_a_fork


def numbered(rows: int, chunk_rows: int = 7) -> Split:
    """Returns rows with their number in every column."""
    ids = torch.arange(rows, dtype=torch.int32)
    content = Batch(ids[:, None].repeat(1, 3), ids[:, None].float(), ids.long(), ids.float())
    return Split(TensorRows(content, chunk_rows))


def numbers(batches) -> list[int]:
    """Returns the numbers of the rows, after checking that all columns agree."""
    batches = list(batches)
    for batch in batches:
        assert (batch.ids == batch.group[:, None]).all()
        assert (batch.labels[:, 0] == batch.group).all()
        assert (batch.weight == batch.group).all()
    return [number for batch in batches for number in batch.group.tolist()]


def test_windows_in_file_order_are_bounded_by_bytes(rewritten, monkeypatch):
    split = rewritten(row_group_size=1).load("train")
    monkeypatch.setattr(loader, "READ_BYTES", 2 * max(split.rows.nbytes))
    whole = split.rows.read
    read = []
    monkeypatch.setattr(
        split.rows, "read", lambda chunks, order: read.append(len(chunks)) or whole(chunks, order)
    )
    assert torch.cat([batch.group for batch in split.batches(4)]).tolist() == [0, 1, 0, 2, 1, -1]
    assert read == [2, 2, 2]


def test_tensors_of_a_prepared_split(rewritten, rows):
    """They are those of the table, in its order and shuffled."""
    data = rewritten(row_group_size=2)
    split = data.load("train")
    (batch,) = split.batches(100)
    types = batch.ids.dtype, batch.labels.dtype, batch.group.dtype
    assert types == (torch.int32, torch.float32, torch.int64)
    table = rows()
    assert batch.labels[:, 1].tolist() == table["late"]
    expected = list(zip(*(table[field.name] for field in data.manifest.fields)))
    assert [tuple(ids) for ids in batch.ids.tolist()] == expected
    parts = split.shuffled(3, seed=0, epoch=1, window=2)
    shuffled = [tuple(ids) for part in parts for ids in part.ids.tolist()]
    assert shuffled != expected
    assert sorted(shuffled) == sorted(expected)


def test_split_of_several_files_equals_one_file(folder, rewritten):
    """Reads the same row groups from one file and from three. Windows extend across files."""

    def epochs(data):
        split = data.load("train")
        order = {"batch_size": 2, "seed": 3, "epoch": 1, "window": 4}
        return [*split.batches(4), *split.shuffled(**order), *split.shard(1, 2).batches(4)]

    one = epochs(rewritten(row_group_size=1))
    table = pq.read_table(folder / "train.parquet")
    (folder / "train.parquet").unlink()
    splits = json.loads((folder / "schema.json").read_text())["splits"]
    files = splits["train"]["files"] = {}
    for number, (start, stop) in enumerate([(0, 3), (3, 4), (4, 6)], start=1):
        name = f"train-{number:05d}-of-00003.parquet"
        files[name] = stop - start
        pq.write_table(table.slice(start, stop - start), folder / name, row_group_size=1)
    several = epochs(PreparedData(recorded(folder, splits=splits)))
    for ours, theirs in zip(several, one, strict=True):
        assert torch.equal(ours.ids, theirs.ids)
        assert torch.equal(ours.group, theirs.group)
    pq.write_table(table.slice(0, 2), folder / "train-00001-of-00003.parquet")
    with pytest.raises(DataError, match=r"train-00001-of-00003\.parquet: expected 3 rows, got 2"):
        PreparedData(recorded(folder)).load("train")


@pytest.mark.parametrize("window", [1, 10, 1000])
def test_shuffling_is_a_permutation_that_can_start_at_any_batch(window):
    """The short last batch is left out."""
    for batch_size in (1, 4, 50):
        batches = list(numbered(50).shuffled(batch_size, seed=1, epoch=0, window=window))
        assert [len(batch) for batch in batches] == [batch_size] * (50 // batch_size)
        assert len(set(numbers(batches))) == 50 // batch_size * batch_size
    order = {"seed": 1, "epoch": 2, "window": window}
    whole = numbers(numbered(50).shuffled(4, **order))
    for first in (1, 5, 12, 13):
        assert numbers(numbered(50).shuffled(4, **order, first_batch=first)) == whole[4 * first :]


def test_shuffling_depends_on_seed_and_epoch_alone():
    def order(seed, epoch):
        return tuple(numbers(numbered(100).shuffled(10, seed=seed, epoch=epoch, window=30)))

    assert order(1, 0) == order(1, 0)
    assert len({order(seed, epoch) for seed in range(3) for epoch in range(3)}) == 9


def test_window_permutation_is_uniform():
    """Checks that rows are uniformly distributed over positions: chi square with 11 x 11 degrees of
    freedom.
    """
    runs = 600
    counts = np.zeros((12, 12))
    for seed in range(runs):
        counts[np.arange(12), numbers(numbered(12, 4).shuffled(1, seed=seed, epoch=0))] += 1
    assert ((counts - runs / 12) ** 2 / (runs / 12)).sum() < 190  # p = 6e-5


def test_windows_sample_the_split_and_have_similar_sizes():
    split = numbered(700)
    chunks = []
    read = split.rows.read
    split.rows.read = lambda numbers, order: chunks.append(len(numbers)) or read(numbers, order)
    first = numbers(split.shuffled(100, seed=0, epoch=0, window=256))[:100]
    assert chunks == [33, 33, 34]
    assert max(first) - min(first) > 400


def test_shards_are_disjoint_and_cover_all():
    split = numbered(50)
    shards = [split.shard(rank, 3) for rank in range(3)]
    rows = [numbers(shard.shuffled(1, seed=0, epoch=0)) for shard in shards]
    assert sorted(row for numbers_of_shard in rows for row in numbers_of_shard) == list(range(50))
    assert [len(shard) for shard in shards] == [21, 15, 14]
    with pytest.raises(ValueError, match=r"Split.shard: rank must be in \[0, 3\), got 3"):
        split.shard(3, 3)
    assert len(split.shard(8, 9)) == 0  # there are 8 chunks
    assert list(split.shard(8, 9).batches(4)) == []


@pytest.mark.parametrize(("size", "first"), [(1, 0), (3, 2)])
def test_shares_of_all_ranks_form_the_batches_of_one_process(size, first):
    order = {"seed": 3, "epoch": 1, "window": 20, "first_batch": first}
    whole = [numbers([batch]) for batch in numbered(50).shuffled(12, **order)]
    run = 12 // size // 2
    shares = [
        list(numbered(50).shuffled(12, **order, share=Share(rank, size, run)))
        for rank in range(size)
    ]
    for batch, pieces in zip(whole, zip(*shares, strict=True), strict=True):
        assert numbers(piece[i * run : (i + 1) * run] for i in (0, 1) for piece in pieces) == batch


def test_windows_are_released():
    split = numbered(7 * 40)
    alive = []
    most = 0
    rows = split.rows.read

    def read(chunks, order):
        nonlocal most
        block = rows(chunks, order)
        alive.append(weakref.ref(block.ids))
        most = max(most, sum(each() is not None for each in alive))
        return block

    split.rows.read = read
    for batch in split.shuffled(10, seed=0, epoch=0, window=14):
        del batch
    assert len(alive) == 20
    # the current window, the next one, and the end of the last in a batch across both
    assert most <= 3


def open_files(path):
    links = [os.path.join("/proc/self/fd", each) for each in os.listdir("/proc/self/fd")]
    return sum(os.readlink(link) == str(path) for link in links if os.path.islink(link))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts files in /proc")
def test_reading_ends_with_the_iterator_and_with_an_error(folder, rewritten):
    path = folder / "train.parquet"
    before = threading.active_count()
    table = pq.read_table(path)
    wrong = table.set_column(0, "city", pa.array([4, 1, 1, 1, 1, 1], pa.int32()))
    for changed in (table, wrong):
        batches = rewritten(changed, row_group_size=1).load("train").batches(1)
        if changed is wrong:
            with pytest.raises(DataError, match="column city: expected values"):
                next(batches)
        else:
            next(batches)
        del batches
        gc.collect()
        assert threading.active_count() == before
        assert open_files(path) == 0


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts threads in /proc")
def test_prefetch_thread_starts_no_second_pool():
    """torch keeps a thread pool per calling thread, and two pools compete for the cores."""
    code = """
import os, torch
from adaftr_fast.data.dataset.batch import Batch
from adaftr_fast.data.dataset.loader import Split
count = lambda: len(os.listdir("/proc/self/task"))
torch.set_num_threads(4)
ids = torch.zeros(400_000, dtype=torch.int32)
for batch in (Batch(ids.view(-1, 4), torch.zeros(100_000, 1)),
              Batch(ids, torch.zeros(100_000, 1), offsets=torch.arange(400_001))):
    split, before = Split.of(batch), count()
    print(max(count() for _ in split.shuffled(1024, seed=0, epoch=0)) - before)
"""
    # the prefetch thread; the first one may end while the second one is counted
    assert max(Script(code).end()[0].split()) == "1"


def test_a_forked_process_cannot_continue_batches_but_can_read_anew(rewritten):
    split = rewritten(row_group_size=1).load("train")

    def shuffled():
        return split.shuffled(1, seed=0, epoch=0, window=1)

    started = shuffled()
    expected = str([batch.ids.tolist() for batch in shuffled()])
    next(started)
    message = in_a_fork(lambda: str(list(started)))
    assert "this iterator was started before the process was forked" in message
    assert in_a_fork(lambda: str([batch.ids.tolist() for batch in shuffled()])) == expected
    assert len(list(started)) == 5
