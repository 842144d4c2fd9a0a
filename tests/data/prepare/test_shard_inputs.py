"""Inputs that change, and folders that exist, are handled by shards as by one process."""

import os
import shutil

import pyarrow.parquet as pq
import pytest
from pyarrow import csv

from adaftr_fast.data.dataset.manifest import read_manifest
from adaftr_fast.data.prepare import split_writer, steps
from adaftr_fast.data.raw import inputs
from adaftr_fast.errors import DataError
from tests.data.prepare.shards import BY_USER

pytestmark = pytest.mark.usefixtures("small_blocks")


def replaced(file):
    """Replaces a file by one of equal size and time."""
    other = file.with_name("other")
    other.write_bytes(file.read_bytes().replace(b"1", b"2"))
    shutil.copystat(file, other)
    other.replace(file)


def overwritten(file):
    """Overwrites a file by content of equal size, and restores its time."""
    before = file.stat()
    file.write_bytes(file.read_bytes().replace(b"1", b"2"))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def cut_off(file):
    os.truncate(file, file.stat().st_size // 2)


@pytest.mark.parametrize(
    ("name", "change", "module", "function", "shards"),
    [
        ("log.csv", os.utime, inputs, "parse_block", 1),
        ("log.csv", os.utime, steps, "count_values", 2),
        ("log.csv", os.utime, split_writer, "_encode", 1),
        ("log.csv", os.utime, steps, "split_info", 2),
        ("log.csv", replaced, steps, "count_values", None),
        ("log.csv", overwritten, steps, "count_values", None),
        ("log.parquet", cut_off, steps, "count_values", None),
    ],
)
def test_a_file_that_changes_during_a_step_is_an_error(
    log, shop, tmp_path, monkeypatch, name, change, module, function, shards
):
    file = tmp_path / name
    shutil.copy2(log / "log.csv", file)
    if file.suffix == ".parquet":
        pq.write_table(csv.read_csv(log / "log.csv"), file)
    before = file.stat()
    real = getattr(module, function)

    def changing(*arguments, **options):
        change(file)
        return real(*arguments, **options)

    monkeypatch.setattr(module, function, changing)
    with pytest.raises(DataError, match=rf"{name}: changed during the run"):
        shop(name=file, shards=shards)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    if change in (replaced, overwritten):
        after = file.stat()
        assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)


@pytest.mark.parametrize("shards", [1, 2])
def test_files_that_are_added_while_they_are_hashed_are_named(
    log, shop, tmp_path, monkeypatch, shards
):
    folder = tmp_path / "log"
    folder.mkdir()
    for name in ("0.csv", "1.csv"):
        shutil.copy2(log / "log.csv", folder / name)
    real = steps.sha256

    def adding(path):
        for name in ("2.csv", "3.csv"):
            shutil.copy2(log / "log.csv", folder / name)
        return real(path)

    monkeypatch.setattr(steps, "sha256", adding)
    with pytest.raises(DataError, match=r"^2\.csv, 3\.csv: changed during the run"):
        shop(name=folder, shards=shards)


def test_existing_folder_is_kept_or_replaced(shop, is_whole, tmp_path):
    out = tmp_path / "out"
    other = {"split": BY_USER}
    first = shop()
    written = (out / "train.parquet").stat().st_mtime_ns
    assert shop(shards=3) == first  # the folder is up to date
    assert (out / "train.parquet").stat().st_mtime_ns == written
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    shop(changes=other, shards=2)
    is_whole(**other)
    # one process keeps a folder that shards prepared
    assert shop(changes=other) == read_manifest(out)
    assert len(read_manifest(out).files("train")) == 2
    assert shop() == first


def test_folder_that_appears_during_the_run_is_not_replaced(shop, tmp_path, monkeypatch):
    out = tmp_path / "out"
    real = steps.split_info

    def meanwhile(path):
        out.mkdir(exist_ok=True)
        (out / "thesis.txt").touch()
        return real(path)

    monkeypatch.setattr(steps, "split_info", meanwhile)
    with pytest.raises(DataError, match=r"not a prepared folder \(it holds thesis\.txt\)"):
        shop(shards=2)
    assert (out / "thesis.txt").exists()
