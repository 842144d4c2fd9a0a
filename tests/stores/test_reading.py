"""Ranges of files, row groups, and the pieces that are kept on this machine."""

import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from adaftr_fast.errors import StoreError
from adaftr_fast.stores import as_path, open_folder
from adaftr_fast.stores.cache import PIECES, Pieces, cache_folder
from adaftr_fast.stores.parquet import open_parquet, read_parquet, row_groups
from tests.stores.files import publish_folder, put


@pytest.fixture
def table():
    random = np.random.default_rng(0)
    return pa.table({name: random.integers(0, 1 << 40, 40_000) for name in ("a", "b", "c")})


@pytest.fixture
def local(table, tmp_path):
    (tmp_path / "source").mkdir()
    path = tmp_path / "source" / "x.parquet"
    pq.write_table(
        table, path, row_group_size=5_000, write_page_checksum=True, use_dictionary=False
    )
    return path


@pytest.fixture
def file(local, url):
    return as_path(put(local, f"{url}/x.parquet"))


def read(path, numbers=range(8), columns=None):
    return read_opened(path, open_parquet(path), numbers, columns)


def read_opened(path, opened, numbers, columns=None):
    return pa.concat_tables(row_groups(path.parent, path.name, opened, numbers, columns))


def gets(faults):
    return [path for method, path in faults.requests if method == "GET"]


def pieces(tmp_path):
    return [path for path in (tmp_path / "cache" / PIECES).rglob("*") if path.is_file()]


def test_each_row_group_is_one_request_and_then_none(file, table, faults, tmp_path):
    opened = open_parquet(file)
    faults.requests.clear()
    assert read_opened(file, opened, range(8)) == table
    assert len(gets(faults)) == 8
    faults.requests.clear()
    assert read_opened(file, opened, [5, 2], ["b"]) == pa.concat_tables(
        [table.slice(25_000, 5_000), table.slice(10_000, 5_000)]
    ).select(["b"])
    assert gets(faults) == []
    assert len(pieces(tmp_path)) == 8


@pytest.mark.parametrize("where", ["content", "checksum", "cut"])
def test_a_corrupted_piece_is_read_again(file, table, faults, tmp_path, where):
    read(file)
    for path in pieces(tmp_path):
        content = bytearray(path.read_bytes())
        content[0 if where == "checksum" else len(content) // 2] ^= 255
        path.write_bytes(content[: 100 if where == "cut" else None])
    for requests in (8 + 1, 1):  # the row groups and the footer
        faults.requests.clear()
        assert read(file) == table
        assert len(gets(faults)) == requests


def test_what_was_damaged_on_the_way_is_not_kept(file, table, monkeypatch, tmp_path):
    intact = type(file).read_range
    calls = []

    def damaged(self, start, end):
        content = bytearray(intact(self, start, end))
        calls.append(start)
        if len(calls) == 2:  # the first row group, after the footer
            content[len(content) // 2] ^= 1
        return bytes(content)

    monkeypatch.setattr(type(file), "read_range", damaged)
    assert read(file, [0]) == table.slice(0, 5_000)
    assert read(file, [0]) == table.slice(0, 5_000)
    assert len(calls) == 4  # footer, row group, row group, footer


def test_what_is_damaged_in_the_store_is_an_error(url, local):
    publish_folder(local.parent, f"{url}/folder")
    file = open_folder(as_path(f"{url}/folder")) / "x.parquet"
    content = bytearray(local.read_bytes())
    content[len(content) // 3] ^= 1
    with file.filesystem.open_output_stream(file.key) as stream:
        stream.write(bytes(content))
    with pytest.raises((pa.ArrowException, OSError), match="checksum"):
        read(file)


def test_a_file_that_is_replaced_is_noticed(file, table, local, tmp_path):
    opened = open_parquet(file)
    assert read_opened(file, opened, [0]) == table.slice(0, 5_000)
    pq.write_table(table.slice(10), local, row_group_size=5_000, use_dictionary=False)
    put(local, str(file))
    assert read_opened(file, opened, [0]) == table.slice(0, 5_000)  # kept
    with pytest.raises(StoreError, match=r"x\.parquet: was replaced since it was opened"):
        read_opened(file, opened, [1])
    assert read(file) == table.slice(10)


@pytest.mark.parametrize("gigabytes", [0.0, 0.0005])
def test_the_cache_is_bounded(file, table, faults, tmp_path, monkeypatch, gigabytes):
    monkeypatch.setenv("ADAFTR_FAST_CACHE_GB", str(gigabytes))
    for _ in range(3):
        assert read(file) == table
        assert sum(path.stat().st_size for path in pieces(tmp_path)) <= 1e9 * gigabytes
    assert bool(pieces(tmp_path)) == (gigabytes > 0)


def test_the_least_recently_used_pieces_go(tmp_path, faults, monkeypatch):
    monkeypatch.setenv("ADAFTR_FAST_CACHE_GB", str(1_000_000 / 1e9))
    cache = Pieces(cache_folder())
    fetched = []

    def get(name):
        return cache.get(name, lambda: fetched.append(name) or name.encode() * 100_000)

    for number, name in enumerate("abcdefg"):
        get(name)
        os.utime(tmp_path / "cache" / PIECES / name / name, (number, number))
    get("a")  # now the last one that was used
    for name in "hij":
        get(name)
    fetched.clear()
    assert get("a") == b"a" * 100_000
    assert fetched == []
    get("b")
    assert fetched == ["b"]


def test_a_cache_that_cannot_be_written_only_warns(file, table, tmp_path, monkeypatch):
    (tmp_path / "blocked").write_text("a file")
    monkeypatch.setenv("ADAFTR_FAST_CACHE", str(tmp_path / "blocked"))
    with pytest.warns(RuntimeWarning, match="reads again what it could have kept"):
        assert read(file) == table
    monkeypatch.setenv("ADAFTR_FAST_CACHE", str(tmp_path / "full"))

    def full(self, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.warns(RuntimeWarning, match="No space left on device"):
        assert read(file) == table
    assert not [path for path in (tmp_path / "full" / PIECES).rglob("*") if path.is_file()]


@pytest.mark.parametrize("text", ["20 GB", "nan"])
def test_a_bound_that_is_no_number_is_an_error(file, monkeypatch, text):
    monkeypatch.setenv("ADAFTR_FAST_CACHE_GB", text)
    with pytest.raises(
        StoreError, match=f"ADAFTR_FAST_CACHE_GB: expected a number of gigabytes, got '{text}'"
    ):
        read(file)


def test_threads_keep_the_same_piece(faults, tmp_path):
    cache = Pieces(cache_folder())
    content = bytes(3_000_000)
    with warnings.catch_warnings(), ThreadPoolExecutor(8) as pool:
        warnings.simplefilter("error")
        for number in range(10):
            found = list(pool.map(lambda _: cache.get(f"key{number}", lambda: content), range(16)))  # noqa: B023
            assert found == [content] * 16


def test_a_path_that_lost_a_slash_is_an_error():
    for path in (Path("s3://bucket/x"), "s3:/bucket/x", Path("file:///x")):
        with pytest.raises(StoreError, match="expected a URL with two slashes"):
            as_path(path)


@pytest.mark.parametrize("rows", [0, 40_000])
def test_a_whole_file(table, local, url, rows):
    pq.write_table(table[:rows], local, row_group_size=5_000)
    path = as_path(put(local, f"{url}/{rows}.parquet"))
    assert read_parquet(path) == read_parquet(local) == table[:rows]
