"""Runs of several shards that are interrupted or killed resume and give the same folder."""

import shutil
import signal

import pytest

from adaftr_fast.cli import main
from adaftr_fast.data.dataset.manifest import read_manifest
from adaftr_fast.data.prepare import steps
from adaftr_fast.errors import DataError
from tests.data.prepare.shards import assert_same
from tests.forks import Script

pytestmark = pytest.mark.usefixtures("small_blocks")


def test_finished_shards_are_not_run_again(shop, is_whole, monkeypatch):
    encoded = []
    real = steps.encode

    def interrupted(manifest, job, shard, advance):
        if len(encoded) == 2:
            raise KeyboardInterrupt
        encoded.append(shard.number)
        return real(manifest, job, shard, advance)

    monkeypatch.setattr(steps, "encode", interrupted)
    for shards in (4, 3):  # another number of shards takes over what is merged
        with pytest.raises(KeyboardInterrupt):
            shop(shards=shards)
    monkeypatch.setattr(
        steps, "encode", lambda *given: encoded.append(given[2].number) or real(*given)
    )
    for name in ("read", "count"):
        monkeypatch.setattr(steps, name, lambda *given: pytest.fail("a merged step runs again"))
    shop(shards=4)
    assert encoded == [1, 2, 3, 4]
    monkeypatch.undo()
    is_whole()


def test_missing_staged_files_raise(shop, is_whole, tmp_path, monkeypatch):
    real = steps.count

    def late(job, shard, advance):
        part = job.work.staged / "data-00000/part-0000002.parquet"
        part.rename(tmp_path / "late")
        try:
            return real(job, shard, advance)
        finally:
            (tmp_path / "late").rename(part)

    monkeypatch.setattr(steps, "count", late)
    with pytest.raises(OSError, match=r"staged/data-00000: expected \d+ staged files, found \d+"):
        shop(shards=2)
    monkeypatch.setattr(steps, "count", real)
    shop(shards=2)
    is_whole()


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


def test_killed_run_resumes(command, tmp_path):
    whole = tmp_path / "whole"
    out = tmp_path / "out"
    assert main([*command, str(whole)]) == 0
    for name in (
        "part-0000003.parquet",
        "read.json",
        "fields-00002-of-00002.arrow",
        "count.json",
        "validation-00001-of-00002.parquet",
        "encode.json",
    ):
        run_killed(name, *command, out, "--shards", 2)
        assert not out.exists()
    # another number does not publish what was moved
    assert main([*command, str(out)]) == 0
    assert_same(out, whole)


def test_killed_while_publishing(command, shop, tmp_path):
    whole = tmp_path / "whole"
    out = tmp_path / "out"
    assert main([*command, str(whole)]) == 0
    options = [str(out), "--shards", "2"]
    for name in ("prepared", "exchange", ".out.work"):
        shutil.rmtree(out, ignore_errors=True)
        shop()
        run_killed(name, *command, *options)
        assert out.exists() == (name != "prepared")
        assert main([*command, *options]) == 0
        assert_same(out, whole)
        assert {path.name for path in tmp_path.iterdir()} == {"out", "whole"}
    before = shop()
    run_killed("prepared", *command, *options)
    with pytest.raises(DataError, match="no column 'absent'"):
        shop(changes={"fields": {"absent": "categorical"}})
    assert read_manifest(out) == before  # the former folder is restored
