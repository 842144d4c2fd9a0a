"""A watched folder yields whole files alone, each once."""

import os
import time

import pytest

from adaftr_fast.errors import DataError
from adaftr_fast.extras.streaming.folder import FolderSource
from tests.extras.streaming.conftest import LONG_AGO, arrive


def names(source, *done):
    """The chunks that the source yields after ``done``."""
    found = list(done)
    while (chunk := source.next({name: {} for name in found})) is not None:
        found.append(chunk.name)
    return found[len(done) :]


def test_files_come_in_the_order_of_their_names(chunks):
    source = FolderSource(chunks, settle=60)
    assert source.next({}).arrived == LONG_AGO
    assert source.next({}).file == chunks / "000.parquet"
    assert names(source) == ["000.parquet", "001.parquet", "002.parquet"]
    arrive(chunks, 3, "0005.parquet")  # late, before a finished one
    assert names(source, "000.parquet", "001.parquet", "002.parquet") == ["0005.parquet"]


@pytest.mark.parametrize("name", [".a.csv", "_SUCCESS", "a.csv.tmp"])
def test_files_that_are_being_written_by_their_names_are_left_out(tmp_path, name):
    (tmp_path / name).write_text("a")
    (tmp_path / "folder").mkdir()
    source = FolderSource(tmp_path, settle=0)
    assert source.next({}) is None
    (tmp_path / name).rename(tmp_path / "a.csv")
    assert source.next({}).name == "a.csv"


def test_a_file_that_grows_waits(tmp_path, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    # a clock behind that of the file system
    monkeypatch.setattr(time, "time", lambda: float(LONG_AGO))
    source = FolderSource(tmp_path, settle=2)
    path = tmp_path / "a.csv"
    for rows in range(1, 4):
        path.write_text("row\n" * rows)
        os.utime(path, ns=(0, LONG_AGO * 10**9 + rows))
        assert source.next({}) is None
        now[0] += 1.9
    now[0] += 0.2
    assert source.next({}).name == "a.csv"
    monkeypatch.undo()
    os.utime(path)
    assert FolderSource(tmp_path, settle=60).next({}) is None
    os.utime(path, (time.time() - 61,) * 2)  # of a while ago
    assert FolderSource(tmp_path, settle=60).next({}).name == "a.csv"


def test_a_file_that_does_not_open_waits_and_holds_up_no_other(chunks):
    whole = (chunks / "000.parquet").read_bytes()
    (chunks / "000.parquet").write_bytes(whole[:-10])  # without its footer
    (chunks / "0001.csv").write_text("")
    source = FolderSource(chunks, settle=0)
    with pytest.warns(RuntimeWarning, match=r"000\.parquet: left out until it changes") as shown:
        assert names(source) == ["001.parquet", "002.parquet"]
    assert len(shown) == 1
    (chunks / "000.parquet").write_bytes(whole)
    assert names(source, "001.parquet", "002.parquet") == ["000.parquet"]


def test_a_name_that_is_not_utf_8_is_left_out(chunks):
    (chunks / "000.parquet").rename(chunks / os.fsdecode(b"000\xff.parquet"))
    source = FolderSource(chunks, settle=0)
    with pytest.warns(
        RuntimeWarning, match="left out until it changes: its name is not UTF-8"
    ) as shown:
        assert names(source) == ["001.parquet", "002.parquet"]
    assert len(shown) == 1
    folder = chunks.rename(chunks.with_name(os.fsdecode(b"\xff")))
    with pytest.raises(DataError, match=r"\\udcff': expected a path in UTF-8"):
        FolderSource(folder)
