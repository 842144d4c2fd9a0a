"""Inputs that change, and folders that exist, are handled by shards as by one process."""

import os
import shutil

import pytest

from adaftr_fast.data.dataset import split_file
from adaftr_fast.data.dataset.manifest import read_manifest
from adaftr_fast.data.prepare import steps, work_folder
from adaftr_fast.data.prepare.run import prepare
from adaftr_fast.data.raw import inputs
from adaftr_fast.data.schema.parse import parse_schema
from adaftr_fast.errors import DataError
from tests.data.prepare.shards import BY_USER, SCHEMA, assert_same

pytestmark = pytest.mark.usefixtures("small_blocks")


@pytest.mark.parametrize(
    ("module", "function", "kept", "shards"),
    [
        (inputs, "parse_block", "part-*.parquet", 1),
        (steps, "count_values", "count-*.json", 2),
        (split_file, "_encode", "train*.parquet", 1),
        (steps, "split_info", "encode-*.json", 2),
    ],
)
def test_results_of_a_file_that_changes_during_a_step_are_not_kept(
    log, tmp_path, monkeypatch, module, function, kept, shards
):
    schema = parse_schema(SCHEMA)
    file = tmp_path / "log.csv"
    out = tmp_path / "out"
    shutil.copy2(log / "log.csv", file)
    before = file.stat()
    real = getattr(module, function)
    found = []

    def changing(*arguments, **options):
        os.utime(file)
        return real(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(module, function, changing)
        patch.setattr(
            work_folder, "remove_work", lambda work, folder: found.extend(work.folder.rglob(kept))
        )
        with pytest.raises(DataError, match=r"log\.csv: changed during the run"):
            prepare(schema, [file], out, shards=shards)
    assert not found
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    prepare(schema, [file], tmp_path / "whole")
    prepare(schema, [file], out, shards=shards)
    assert_same(out, tmp_path / "whole")


def test_existing_folder_is_kept_or_replaced(log, tmp_path):
    schema = parse_schema(SCHEMA)
    files = [log / "log.csv"]
    out = tmp_path / "out"
    first = prepare(schema, files, out)
    written = (out / "train.parquet").stat().st_mtime_ns
    assert prepare(schema, files, out, shards=3) == first  # the folder is up to date
    assert (out / "train.parquet").stat().st_mtime_ns == written
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    other = parse_schema(SCHEMA | {"split": BY_USER})
    prepare(other, files, out, shards=2)
    prepare(other, files, tmp_path / "whole")
    assert_same(out, tmp_path / "whole")
    # one process keeps a folder that shards prepared
    assert prepare(other, files, out) == read_manifest(out)
    assert len(read_manifest(out).files("train")) == 2
    assert prepare(schema, files, out) == first
    (out / "thesis.txt").touch()
    with pytest.raises(DataError, match=r"not replaced, because it also holds thesis\.txt"):
        prepare(other, files, out, shards=2)


def test_folder_that_appears_during_the_run_is_not_replaced(log, tmp_path, monkeypatch):
    schema = parse_schema(SCHEMA)
    files = [log / "log.csv"]
    out = tmp_path / "out"
    real = steps.split_info

    def meanwhile(path):
        out.mkdir(exist_ok=True)
        (out / "thesis.txt").touch()
        return real(path)

    with monkeypatch.context() as patch:
        patch.setattr(steps, "split_info", meanwhile)
        with pytest.raises(DataError, match=r"not a prepared folder \(it holds thesis\.txt\)"):
            prepare(schema, files, out, shards=2)
    assert (out / "thesis.txt").exists()
