"""Shards with other inputs, inputs that change, and folders that exist are handled as by one process."""

import os
import shutil

import pytest

from adaftr_fast.data.dataset import split_file
from adaftr_fast.data.dataset.manifest import Manifest, read_manifest
from adaftr_fast.data.prepare import stages
from adaftr_fast.data.prepare.run import prepare, prepare_shard
from adaftr_fast.data.raw import inputs
from adaftr_fast.data.schema.parse import parse_schema
from adaftr_fast.data.shard import Shard
from adaftr_fast.errors import DataError
from tests.data.prepare.shards import BY_USER, SCHEMA, assert_same, run_shards

pytestmark = pytest.mark.usefixtures("small_blocks")


def test_shards_with_other_inputs_are_rejected(log, tmp_path):
    schema, out, files = parse_schema(SCHEMA), tmp_path / "out", [tmp_path / "log.csv"]
    shutil.copy(log / "log.csv", files[0])
    prepare_shard(schema, files, out, Shard(1, 2))
    other = parse_schema(SCHEMA | {"defaults": {"buckets": 3}})
    for changed, message in (
        (
            (other, files, out, Shard(2, 2)),
            r"shard 2/2: the shards in .*\.out\.parts were started with a different schema;",
        ),
        (
            (schema, [log / "log.parquet"], out, Shard(2, 2)),
            r"a different list of files \(.*\); use the same one, or remove",
        ),
        ((schema, files, out, Shard(2, 3)), "with a different number of parts"),
    ):
        with pytest.raises(DataError, match=message):
            prepare_shard(*changed)
    with pytest.raises(DataError, match="with a different bad_rows"):
        prepare_shard(schema, files, out, Shard(2, 2), bad_rows=0.1)
    assert isinstance(run_shards(schema, files, out, 2)[0], Manifest)


@pytest.mark.parametrize("name", ["log.csv", "log.parquet"])
@pytest.mark.parametrize("done", [[2], [2, 1], [2, 1, 2]], ids=["read", "counted", "before encoding"])
def test_shards_of_a_changed_file_are_rejected(log, tmp_path, name, done):
    schema, file, out = parse_schema(SCHEMA), tmp_path / name, tmp_path / "out"
    shutil.copy2(log / name, file)
    for number in done:
        prepare_shard(schema, [file], out, Shard(number, 2))
    shutil.copy(file, tmp_path / "other")
    (tmp_path / "other").rename(file)  # same name and size, other modification time
    for number in (1, 2):  # the shard that hashes the file, and one that does not
        with pytest.raises(DataError, match=r"a different list of files \(name, size, time of change\); .* or remove"):
            prepare_shard(schema, [file], out, Shard(number, 2))
    assert not out.exists()
    (tmp_path / "folder").mkdir()  # the same file in another folder
    shutil.copy2(log / name, tmp_path / "folder" / name)
    prepare(schema, [log / name], tmp_path / "whole")
    run_shards(schema, [tmp_path / "folder" / name], out, 2)
    assert_same(out, tmp_path / "whole")


@pytest.mark.parametrize(
    ("module", "function", "kept"),
    [
        (inputs, "parse_block", "part-*.parquet"),
        (stages, "count_values", "count-1.json"),
        (split_file, "_encode", "train-*.parquet"),
        (stages, "split_info", "encode-1.json"),
    ],
)
def test_results_of_a_file_that_changes_during_a_stage_are_not_kept(log, tmp_path, monkeypatch, module, function, kept):
    schema, file, out = parse_schema(SCHEMA), tmp_path / "log.csv", tmp_path / "out"
    shutil.copy2(log / "log.csv", file)
    before, real = file.stat(), getattr(module, function)

    def changing(*arguments):
        os.utime(file)
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(module, function, changing)
        with pytest.raises(DataError, match=r"log\.csv: changed during the run"):
            prepare(schema, [file], tmp_path / "single")
        assert not [path.name for path in tmp_path.iterdir() if "single" in path.name]
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
        with pytest.raises(DataError, match=r"log\.csv: changed during the run"):
            run_shards(schema, [file], out, 2)
    assert not list((tmp_path / ".out.parts").rglob(kept))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    prepare(schema, [file], tmp_path / "whole")
    run_shards(schema, [file], out, 2)
    assert_same(out, tmp_path / "whole")


def test_existing_folder_is_kept_or_replaced(log, tmp_path):
    schema, files, out = parse_schema(SCHEMA), [log / "log.csv"], tmp_path / "out"
    first = prepare(schema, files, out)
    written = (out / "train.parquet").stat().st_mtime_ns
    assert prepare_shard(schema, files, out, Shard(2, 3)) == first  # the folder is up to date
    assert (out / "train.parquet").stat().st_mtime_ns == written
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    other = parse_schema(SCHEMA | {"split": BY_USER})
    run_shards(other, files, out, 2)
    prepare(other, files, tmp_path / "whole")
    assert_same(out, tmp_path / "whole")
    assert prepare(other, files, out) == read_manifest(out)  # one process keeps a folder that shards prepared
    assert len(read_manifest(out).files("train")) == 2
    assert prepare(schema, files, out) == first
    (out / "thesis.txt").touch()
    with pytest.raises(DataError, match=r"not replaced, because it also holds thesis\.txt"):
        prepare_shard(other, files, out, Shard(1, 2))


def test_folder_that_appears_during_the_run_is_not_replaced(log, tmp_path, monkeypatch):
    schema, files, out = parse_schema(SCHEMA), [log / "log.csv"], tmp_path / "out"
    real = stages.split_info

    def meanwhile(path):
        out.mkdir(exist_ok=True)
        (out / "thesis.txt").touch()
        return real(path)

    with monkeypatch.context() as patch:
        patch.setattr(stages, "split_info", meanwhile)
        with pytest.raises(DataError, match=r"not a prepared folder \(it holds thesis\.txt\)"):
            prepare(schema, files, out)
        assert (out / "thesis.txt").exists()
        shutil.rmtree(out)
        with pytest.raises(DataError, match=r"not a prepared folder \(it holds thesis\.txt\)"):
            run_shards(schema, files, out, 2)
    assert (out / "thesis.txt").exists()
    shutil.rmtree(out)
    assert isinstance(prepare_shard(schema, files, out, Shard(1, 2)), Manifest)
