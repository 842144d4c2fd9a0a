import json
import shutil
import subprocess
import sys
import threading
import weakref

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from adaftr_fast.data.dataset.batch import Batch
from adaftr_fast.data.dataset.loader import PreparedData, Share, Split
from adaftr_fast.data.dataset.rows import TensorRows
from adaftr_fast.data.dataset.split_file import read_split
from adaftr_fast.data.dataset.vocabulary import read_encoders
from adaftr_fast.data.prepare.run import prepare
from adaftr_fast.data.schema.parse import parse_schema
from adaftr_fast.errors import DataError
from tests.data.manifests import without_sha256
from tests.forks import in_a_fork


@pytest.fixture
def whole(source, write, tmp_path):
    prepare(parse_schema(source), [write()], tmp_path / "out")
    return tmp_path / "out"


@pytest.fixture
def folder(whole):
    """A prepared folder whose files may be changed."""
    return without_sha256(whole)


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


def test_tensors_of_a_prepared_split(folder):
    split = PreparedData(folder).load("train")
    (batch,) = split.batches(100)
    assert (batch.ids.dtype, batch.labels.dtype, batch.group.dtype) == (torch.int32, torch.float32, torch.int64)
    assert batch.ids.tolist()[0] == [1, 1, 1, 1]
    assert batch.labels.tolist()[1] == [1.0, 1.0]
    assert batch.group.tolist() == [0, 1, 0, 2, 1, -1]
    assert len(split) == 6


def test_split_of_several_files_equals_one_file(folder):
    """Reads the same row groups from one file and from three. Windows extend across files."""
    path, about = folder / "train.parquet", folder / "schema.json"
    table = pq.read_table(path)
    pq.write_table(table, path, row_group_size=1)
    rows = {"train-00001-of-00003.parquet": 3, "train-00002-of-00003.parquet": 1, "train-00003-of-00003.parquet": 2}
    for number, (name, count) in enumerate(rows.items()):
        pq.write_table(table.slice([0, 3, 4][number], count), folder / name, row_group_size=1)

    def epochs(split):
        order = {"batch_size": 2, "seed": 3, "epoch": 1, "window": 4}
        return [*split.batches(4), *split.shuffled(**order), *split.shard(1, 2).batches(4)]

    one = epochs(PreparedData(folder).load("train"))
    path.unlink()
    content = json.loads(about.read_text())
    content["splits"]["train"]["files"] = rows
    about.write_text(json.dumps(content))
    several = epochs(PreparedData(folder).load("train"))
    for ours, theirs in zip(several, one, strict=True):
        assert torch.equal(ours.ids, theirs.ids)
        assert torch.equal(ours.group, theirs.group)
    pq.write_table(table.slice(0, 2), folder / "train-00001-of-00003.parquet")
    with pytest.raises(DataError, match=r"train-00001-of-00003\.parquet: expected 3 rows, got 2"):
        PreparedData(folder).load("train")


def test_parquet_rows_equal_the_table(folder):
    """Compares stacked columns with the table of the file."""
    path = folder / "train.parquet"
    table = pq.read_table(path)
    pq.write_table(table, path, row_group_size=2)
    data = PreparedData(folder)
    expected = torch.tensor([table[field.name].to_pylist() for field in data.manifest.fields]).T
    split = data.load("train")
    assert split.rows.sizes == [2, 2, 2]
    assert torch.equal(torch.cat([batch.ids for batch in split.batches(4)]), expected)
    order = [batch.group for batch in split.shuffled(3, seed=0, epoch=1, window=2)]
    assert sorted(torch.cat(order).tolist()) == sorted(table["group:id"].to_pylist())
    chunks = split.rows.read([2, 0], np.array([3, 0, 1]))
    assert torch.equal(chunks.ids, expected[[1, 4, 5]])


def test_batches_keep_rows_together_and_in_order(monkeypatch):
    monkeypatch.setattr("adaftr_fast.data.dataset.loader.READ_ROWS", 10)
    batches = list(numbered(50).batches(4))
    assert [len(batch) for batch in batches] == [4] * 12 + [2]
    assert numbers(batches) == list(range(50))
    assert numbers(numbered(50).batches(1000)) == list(range(50))


@pytest.mark.parametrize("window", [1, 10, 49, 50, 1000])
@pytest.mark.parametrize("batch_size", [1, 4, 50])
def test_shuffling_is_a_permutation_without_the_short_last_batch(window, batch_size):
    batches = list(numbered(50).shuffled(batch_size, seed=1, epoch=0, window=window))
    assert [len(batch) for batch in batches] == [batch_size] * (50 // batch_size)
    assert len(set(numbers(batches))) == 50 // batch_size * batch_size


@pytest.mark.parametrize("window", [1, 16, 1000])
def test_shuffling_can_start_at_any_batch(window):
    def run(**start):
        return numbers(numbered(50).shuffled(4, seed=1, epoch=2, window=window, **start))

    for first in range(14):
        assert run(first_batch=first) == run()[4 * first :]


def test_resuming_skips_earlier_windows():
    split = numbered(70)
    read, rows = [], split.rows.read
    split.rows.read = lambda chunks, order: read.append(len(order)) or rows(chunks, order)
    assert len(list(split.shuffled(7, seed=0, epoch=0, window=14, first_batch=7))) == 3
    assert read == [7, 14]


def test_shuffling_depends_on_seed_and_epoch_alone():
    def order(seed, epoch):
        return tuple(numbers(numbered(100).shuffled(10, seed=seed, epoch=epoch, window=30)))

    assert order(1, 0) == order(1, 0)
    assert len({order(seed, epoch) for seed in range(3) for epoch in range(3)}) == 9


def test_window_permutation_is_uniform():
    """Checks that rows are uniformly distributed over positions: chi square with 11 x 11 degrees of freedom."""
    runs = 600
    counts = np.zeros((12, 12))
    for seed in range(runs):
        counts[np.arange(12), numbers(numbered(12, 4).shuffled(1, seed=seed, epoch=0))] += 1
    assert ((counts - runs / 12) ** 2 / (runs / 12)).sum() < 190  # p = 6e-5


def test_windows_sample_the_split_and_have_similar_sizes():
    split = numbered(700)
    windows = split._windows(list(range(100)), 256)
    assert [len(window) for window in windows] == [33, 33, 34]
    first = set(numbers(split.shuffled(100, seed=0, epoch=0, window=100))[:100])
    assert max(first) - min(first) > 400
    assert split._windows(list(range(100)), 10_000) == [list(range(100))]


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


@pytest.mark.parametrize("size", [1, 2, 3, 6])
@pytest.mark.parametrize("first", [0, 2])
def test_shares_of_all_ranks_form_the_batches_of_one_process(size, first):
    order = {"seed": 3, "epoch": 1, "window": 20, "first_batch": first}
    whole = [numbers([batch]) for batch in numbered(50).shuffled(12, **order)]
    for parts in (1, 2):
        run = 12 // size // parts
        shares = [list(numbered(50).shuffled(12, **order, share=Share(rank, size, run))) for rank in range(size)]
        for batch, pieces in zip(whole, zip(*shares, strict=True), strict=True):
            runs = [numbers([piece[i * run : (i + 1) * run]]) for i in range(parts) for piece in pieces]
            assert [row for each in runs for row in each] == batch


def test_at_most_two_windows_are_held():
    split = numbered(7 * 40)
    alive, most, rows = [], 0, split.rows.read

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
    assert most <= 3  # the current window, the next one, and the end of the last in a batch across both


def test_prefetch_errors_are_raised(folder):
    split = PreparedData(folder).load("train")
    (folder / "train.parquet").unlink()
    with pytest.raises(DataError, match=r"train\.parquet: not readable"):
        list(split.batches(2))


def test_prefetch_thread_ends_with_the_iterator():
    before = threading.active_count()
    batches = numbered(100).shuffled(3, seed=0, epoch=0, window=10)
    next(batches)
    assert threading.active_count() == before + 1
    del batches
    assert threading.active_count() == before


def test_damaged_columns_are_named(folder):
    data, path = PreparedData(folder), folder / "train.parquet"
    with pytest.raises(DataError, match="no split 'dev'; expected one of train, validation, test"):
        data.load("dev")
    table = pq.read_table(path)

    def loading(changed):
        pq.write_table(changed, path)
        return list(data.load("train").batches(4))

    assert sum(len(batch) for batch in loading(table)) == 6
    with pytest.raises(DataError, match="expected 6 rows, got 5"):
        loading(table.slice(1))
    with pytest.raises(DataError, match="no column rain"):
        loading(table.drop_columns("rain"))
    with pytest.raises(DataError, match="column city: expected int32, got int64"):
        loading(table.set_column(0, "city", [[1] * 6]))
    with pytest.raises(DataError, match=r"column city: expected values in \[0, 4\), got values from 4 to 4"):
        loading(table.set_column(0, "city", pa.array([4] * 6, pa.int32())))
    with pytest.raises(DataError, match="column city: expected no missing values, got 1"):
        loading(table.set_column(0, "city", pa.array([1, 1, None, 1, 1, 1], pa.int32())))


def test_half_written_and_damaged_files_are_named(folder):
    data, path = PreparedData(folder), folder / "train.parquet"
    table = pq.read_table(path)
    pq.write_table(table, path, compression="none", use_dictionary=False, write_page_checksum=True)
    content = path.read_bytes()
    for length in (0, 4, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(DataError, match=r"train\.parquet: not readable"):
            data.load("train")
    damaged = bytearray(content)
    damaged[content.index(table["group:id"].to_numpy()[:2].tobytes())] ^= 1  # changes a value, not the structure
    path.write_bytes(damaged)
    with pytest.raises(DataError, match=r"train\.parquet: not readable"):
        list(data.load("train").batches(2))


@pytest.mark.parametrize("name", ["schema.json", "train.parquet", "vocabulary.parquet"])
def test_every_changed_byte_of_a_folder_is_found(whole, name):
    """Changes every 31st byte of a file in turn."""
    content = (whole / name).read_bytes()
    assert PreparedData(whole).manifest.sha256.keys() == {path.name for path in whole.iterdir()}
    for place in range(0, len(content), 31):
        damaged = bytearray(content)
        damaged[place] ^= 1 << place % 8
        (whole / name).write_bytes(damaged)
        with pytest.raises(DataError, match=name):
            read_all(whole)
    (whole / name).write_bytes(content)
    read_all(whole)


def read_all(folder):
    data = PreparedData(folder)
    assert sum(len(batch) for batch in data.load("train").batches(4)) == 6
    read_encoders(folder, data.manifest)
    read_split(folder, data.manifest, "train")


def test_changed_values_are_found_by_all_readers_of_a_split(whole):
    table = pq.read_table(whole / "train.parquet")
    pq.write_table(table.take([5, 4, 3, 2, 1, 0]), whole / "train.parquet")
    manifest = PreparedData(whole).manifest
    for read in (lambda: PreparedData(whole).load("train"), lambda: read_split(whole, manifest, "train")):
        with pytest.raises(
            DataError, match=r"train\.parquet: damaged: its sha256 differs from the one in schema\.json"
        ):
            read()


@pytest.mark.parametrize("shards", [False, True])
def test_a_folder_that_is_replaced_after_it_was_opened_is_named_as_such(source, write, tmp_path, shards):
    out = tmp_path / "out"
    prepare(parse_schema(source), [write()], out)
    data = PreparedData(out)
    prepare(parse_schema(source), [write(city=["x"] * 12)], tmp_path / "next")
    shutil.rmtree(out)
    (tmp_path / "next").rename(out)
    if shards:
        (out / "train.parquet").unlink()  # its rows have files of other names
    for read in (
        lambda: data.load("train"),
        lambda: read_encoders(out, data.manifest),
        lambda: read_split(out, data.manifest, "train"),
    ):
        with pytest.raises(DataError, match=rf"^{out}: was replaced since it was opened; start again with the new one"):
            read()


def test_folders_without_checksums_open(folder):
    assert PreparedData(folder).manifest.sha256 == {}
    read_all(folder)


@pytest.mark.parametrize("change", ["fewer rows", "other columns", "other values"])
def test_a_file_that_is_replaced_while_it_is_read_is_named(folder, change):
    split, table = PreparedData(folder).load("train"), pq.read_table(folder / "train.parquet")
    others = {
        "fewer rows": table.slice(0, 2),
        "other columns": table.select(["city"]),
        "other values": table.take([5, 4, 3, 2, 1, 0]),
    }
    pq.write_table(others[change], folder / "train.parquet")
    with pytest.raises(DataError, match=r"train\.parquet: was replaced since it was opened"):
        list(split.shuffled(2, seed=0, epoch=0))


def test_a_manifest_that_is_nested_too_deeply_is_named(folder):
    (folder / "schema.json").write_text("[" * 100_000)
    with pytest.raises(DataError, match=r"schema\.json: not a manifest of a prepared folder: nested too deeply"):
        PreparedData(folder)


def test_sample_weights_come_with_their_rows(source, write, tmp_path):
    prepare(parse_schema(source | {"weight": "w"}), [write(w=[float(day) for day in range(1, 13)])], tmp_path / "out")
    (batch,) = PreparedData(tmp_path / "out").load("train").batches(100)
    assert batch.weight.dtype == torch.float32
    assert batch.weight.tolist() == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts threads in /proc")
@pytest.mark.parametrize("bags", [False, True])
def test_prefetch_thread_starts_no_second_pool(bags):
    """torch keeps a thread pool per calling thread, and two pools compete for the cores."""
    code = f"""
import os, torch
from adaftr_fast.data.dataset.batch import Batch
from adaftr_fast.data.dataset.loader import Split
count = lambda: len(os.listdir("/proc/self/task"))
torch.set_num_threads(4)
ids = torch.zeros(400_000, dtype=torch.int32)
offsets = torch.arange(400_001) if {bags} else None
split = Split.of(Batch(ids if {bags} else ids.view(-1, 4), torch.zeros(100_000, 1), offsets=offsets))
before = count()
print(max(count() for _ in split.shuffled(1024, seed=0, epoch=0)) - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) == 1  # the prefetch thread


def test_a_forked_process_cannot_continue_batches_but_can_read_anew(folder):
    path = folder / "train.parquet"
    pq.write_table(pq.read_table(path), path, row_group_size=1)
    split = PreparedData(folder).load("train")

    def shuffled():
        return split.shuffled(1, seed=0, epoch=0, window=1)

    started, expected = shuffled(), str([batch.ids.tolist() for batch in shuffled()])
    next(started)
    message = in_a_fork(lambda: str(list(started)))
    assert "this iterator was started before the process was forked" in message
    assert in_a_fork(lambda: str([batch.ids.tolist() for batch in shuffled()])) == expected
    assert len(list(started)) == 5


@pytest.mark.parametrize("name", ["../other/train.parquet", "/other/train.parquet", "..", "", "sub/train.parquet"])
def test_a_manifest_names_no_file_outside_its_folder(folder, name):
    path = folder / "schema.json"
    content = json.loads(path.read_text())
    train = content["splits"]["train"]
    (folder.parent / "other").mkdir()
    shutil.copy(folder / "train.parquet", folder.parent / "other/train.parquet")
    path.write_text(json.dumps(content | {"splits": content["splits"] | {"train": train | {"files": {name: 1}}}}))
    with pytest.raises(DataError) as error:
        PreparedData(folder)
    expected = f"splits.train.files: expected the name of a file in the same folder, got {name!r}"
    assert str(error.value) == f"{path}: damaged: {expected}"
    path.write_text(json.dumps(content | {"splits": {name: train}}))
    with pytest.raises(DataError, match=r"schema\.json: damaged: splits: expected the name of a file"):
        PreparedData(folder)


def test_a_folder_that_is_moved_aside_while_it_is_replaced_is_read_at_both_places(whole, source, write):
    """On a file system that cannot exchange two folders, the former one is moved aside for a moment."""
    aside = whole.with_name(f".{whole.name}.replaced")
    whole.rename(aside)
    split = PreparedData(whole).load("train")
    assert sum(len(batch) for batch in split.batches(4)) == 6
    aside.rename(whole)
    assert sum(len(batch) for batch in split.batches(4)) == 6
    prepare(parse_schema(source), [write(city=["x"] * 12)], whole)
    with pytest.raises(DataError, match=rf"^{whole}/train\.parquet: was replaced since it was opened"):
        list(split.batches(4))
