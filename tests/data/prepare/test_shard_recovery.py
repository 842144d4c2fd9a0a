"""Shards that are interrupted or killed resume and give the same folder."""

import json
import shutil
import signal

import pytest

from adaftr_fast.cli import main
from adaftr_fast.data.dataset.manifest import Manifest, read_manifest
from adaftr_fast.data.prepare.run import prepare, prepare_shard
from adaftr_fast.data.schema.parse import parse_schema
from adaftr_fast.data.shard import Shard
from adaftr_fast.errors import DataError
from tests.data.prepare.shards import SCHEMA, assert_same, run_shards
from tests.forks import Script

pytestmark = pytest.mark.usefixtures("small_blocks")


def test_interrupted_between_publishing_and_cleanup(log, tmp_path, monkeypatch):
    schema, files, out = parse_schema(SCHEMA), [log / "log.parquet"], tmp_path / "out"

    def stopped(work):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("adaftr_fast.data.prepare.run.remove_work", stopped)
        with pytest.raises(KeyboardInterrupt):
            run_shards(schema, files, out, 2)
    prepare(schema, files, tmp_path / "whole")
    assert isinstance(prepare_shard(schema, files, out, Shard(1, 2)), Manifest)
    assert_same(out, tmp_path / "whole")


def test_missing_staged_files_raise(log, tmp_path):
    schema, files, out = parse_schema(SCHEMA), [log / "log.csv"], tmp_path / "out"
    prepare_shard(schema, files, out, Shard(1, 2))
    late = tmp_path / ".out.parts/staged/data/part-0000002.parquet"
    late.rename(tmp_path / "late")
    with pytest.raises(OSError, match=r"staged/data: expected \d+ staged files, found \d+"):
        prepare_shard(schema, files, out, Shard(2, 2))
    (tmp_path / "late").rename(late)
    prepare(schema, files, tmp_path / "whole")
    run_shards(schema, files, out, 2)
    assert_same(out, tmp_path / "whole")


def test_work_of_the_first_version_is_told_by_its_layout(log, tmp_path):
    """Version 0.1.0 compares the same values by the same names, but counts in other files."""
    prepare_shard(parse_schema(SCHEMA), [log / "log.parquet"], tmp_path / "out", Shard(1, 2))
    work = tmp_path / ".out.parts"
    key = json.loads((work / "key").read_text())
    compared = ["schema", "list of files (name, size, time of change)", "number of parts", "ids to grow", "bad_rows"]
    assert list(key) == ["layout of the folder", "format", *compared]
    assert (key["layout of the folder"], key["format"], key["number of parts"]) == (4, 4, 2)
    assert sorted(path.name for path in work.iterdir()) == ["key", "lock", "lock-1", "read-1.json"]
    (work / "key").write_text(json.dumps(key | {"layout of the folder": 2}))
    with pytest.raises(DataError, match="started with a different layout of the folder; use the same one, or remove"):
        prepare_shard(parse_schema(SCHEMA), [log / "log.parquet"], tmp_path / "out", Shard(2, 2))


KILLED = """
import os, shutil, signal, sys
from adaftr_fast import _publish
from adaftr_fast.data.raw import staging
from adaftr_fast.cli import main

name, *arguments = sys.argv[1:]
staging.BLOCK_BYTES = 5_000

def killed(real, place):
    def call(*paths, **options):
        if os.path.basename(paths[place]) == name and os.path.exists(paths[0]):
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*paths, **options)
    return call

def exchange(new, target, real=_publish._exchange):
    if name != "exchange":
        return False  # as on a file system that cannot
    assert real(new, target)
    os.kill(os.getpid(), signal.SIGKILL)

_publish._exchange = exchange
os.replace = killed(os.replace, 1)  # the file is written but not yet renamed
os.rename, shutil.rmtree = killed(os.rename, 0), killed(shutil.rmtree, 0)
sys.exit(main(arguments))
"""


def run_killed(name, *arguments):
    """Runs a command that dies where it replaces, renames or removes ``name``."""
    script = Script(KILLED, name, *arguments)
    _, err = script.communicate()
    assert script.returncode == -signal.SIGKILL, err


def test_killed_shard_resumes(command, tmp_path):
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert main([*command, str(whole)]) == 0
    first, second = ([*command, str(out), "--shard", f"{number}/2"] for number in (1, 2))
    for name in ("part-0000003.parquet", "read.json", "count.json", "train-00002-of-00002.parquet", "encode.json"):
        assert main(first) == 0
        run_killed(name, *second)
        assert not out.exists()
    assert main(second) == 0
    assert_same(out, whole)


@pytest.mark.parametrize("shard", [[], ["--shard", "1/1"]], ids=["unsharded", "shard"])
def test_killed_while_publishing(log, command, tmp_path, shard):
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert main([*command, str(whole)]) == 0
    work = ".out.parts" if shard else ".out.work"
    for name in ("prepared", "exchange", work, f"{work}.old"):
        shutil.rmtree(out, ignore_errors=True)
        prepare(parse_schema(SCHEMA), [log / "log.csv"], out)
        run_killed(name, *command, out, *shard)
        assert out.exists() == (name != "prepared")
        assert main([*command, str(out), *shard]) == 0
        assert_same(out, whole)
        assert {path.name for path in tmp_path.iterdir()} == {"out", "whole"}
    prepare(parse_schema(SCHEMA), [log / "log.csv"], out)
    before = read_manifest(out)
    run_killed("prepared", *command, out, *shard)
    other = (parse_schema(SCHEMA | {"fields": {"absent": "categorical"}}), [log / "log.csv"], out)
    with pytest.raises(DataError, match="started with a different schema" if shard else "no column 'absent'"):
        prepare_shard(*other, Shard()) if shard else prepare(*other)
    assert read_manifest(out) == before  # the former folder is restored
