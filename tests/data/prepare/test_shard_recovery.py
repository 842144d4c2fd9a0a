"""Runs of several shards that are interrupted or killed resume and give the same folder."""

import shutil
import signal

import pytest

from adaftr_fast.cli import main
from adaftr_fast.data.dataset.manifest import read_manifest
from adaftr_fast.data.prepare import steps
from adaftr_fast.data.prepare.run import prepare
from adaftr_fast.data.schema.parse import parse_schema
from adaftr_fast.errors import DataError
from tests.data.prepare.shards import SCHEMA, assert_same
from tests.forks import Script

pytestmark = pytest.mark.usefixtures("small_blocks")


def test_finished_shards_are_not_run_again(log, tmp_path, monkeypatch):
    schema = parse_schema(SCHEMA)
    files = [log / "log.csv"]
    out = tmp_path / "out"
    encoded = []
    real = steps.encode

    def interrupted(manifest, job, shard, advance):
        if len(encoded) == 2:
            raise KeyboardInterrupt
        encoded.append(shard.number)
        return real(manifest, job, shard, advance)

    monkeypatch.setattr(steps, "encode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare(schema, files, out, shards=4)
    with pytest.raises(KeyboardInterrupt):  # another number of shards takes over what is merged
        prepare(schema, files, out, shards=3)
    monkeypatch.setattr(
        steps, "encode", lambda *given: encoded.append(given[2].number) or real(*given)
    )
    for name in ("read", "count"):
        monkeypatch.setattr(steps, name, lambda *given: pytest.fail("a merged step runs again"))
    prepare(schema, files, out, shards=4)
    assert encoded == [1, 2, 3, 4]
    monkeypatch.undo()
    prepare(schema, files, tmp_path / "whole")
    assert_same(out, tmp_path / "whole")


def test_missing_staged_files_raise(log, tmp_path, monkeypatch):
    schema = parse_schema(SCHEMA)
    files = [log / "log.csv"]
    out = tmp_path / "out"
    real = steps.count

    def late(job, shard, advance):
        part = job.work.staged / "data-00000/part-0000002.parquet"
        part.rename(tmp_path / "late")
        try:
            return real(job, shard, advance)
        finally:
            (tmp_path / "late").rename(part)

    with monkeypatch.context() as patch:
        patch.setattr(steps, "count", late)
        with pytest.raises(
            OSError, match=r"staged/data-00000: expected \d+ staged files, found \d+"
        ):
            prepare(schema, files, out, shards=2)
    prepare(schema, files, tmp_path / "whole")
    prepare(schema, files, out, shards=2)
    assert_same(out, tmp_path / "whole")


KILLED = """
import os, shutil, signal, sys
from adaftr_fast import _files
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

def exchange(new, target, real=_files._exchange):
    if name != "exchange":
        return False  # as on a file system that cannot
    assert real(new, target)
    os.kill(os.getpid(), signal.SIGKILL)

_files._exchange = exchange
os.replace = killed(os.replace, 1)  # the file is written but not yet renamed
os.rename, shutil.rmtree = killed(os.rename, 0), killed(shutil.rmtree, 0)
sys.exit(main(arguments))
"""


def run_killed(name, *arguments):
    """Runs a command that dies where it replaces, renames or removes ``name``."""
    Script(KILLED, name, *arguments).end(-signal.SIGKILL)


@pytest.mark.parametrize(
    ("shards", "names"),
    [
        (
            1,
            [
                "part-0000001.parquet",
                "count-00001-of-00001.json",
                "validation.parquet",
                "encode.json",
            ],
        ),
        (
            2,
            [
                "part-0000003.parquet",
                "read.json",
                "fields-00002-of-00002.arrow",
                "count.json",
                "encode.json",
            ],
        ),
    ],
)
def test_killed_run_resumes(command, tmp_path, shards, names):
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert main([*command, str(whole)]) == 0
    for name in names:
        run_killed(name, *command, out, "--shards", shards)
        assert not out.exists()
    # another number does not publish what was moved
    assert main([*command, str(out), "--shards", "2"]) == 0
    assert_same(out, whole)


def test_killed_while_publishing(log, command, tmp_path):
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert main([*command, str(whole)]) == 0
    options = [str(out), "--shards", "2"]
    for name in ("prepared", "exchange", ".out.work"):
        shutil.rmtree(out, ignore_errors=True)
        prepare(parse_schema(SCHEMA), [log / "log.csv"], out)
        run_killed(name, *command, *options)
        assert out.exists() == (name != "prepared")
        assert main([*command, *options]) == 0
        assert_same(out, whole)
        assert {path.name for path in tmp_path.iterdir()} == {"out", "whole"}
    prepare(parse_schema(SCHEMA), [log / "log.csv"], out)
    before = read_manifest(out)
    run_killed("prepared", *command, *options)
    with pytest.raises(DataError, match="no column 'absent'"):
        prepare(
            parse_schema(SCHEMA | {"fields": {"absent": "categorical"}}), [log / "log.csv"], out
        )
    assert read_manifest(out) == before  # the former folder is restored
