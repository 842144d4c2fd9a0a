"""Runs of several shards that are killed leave the former folder or none; the next one is whole."""

import shutil
import signal

import pytest

from adaftr_fast.cli import main
from adaftr_fast.data.prepare import steps
from tests.data.prepare.shards import assert_same
from tests.forks import Script

pytestmark = pytest.mark.usefixtures("small_blocks")


def test_missing_staged_files_raise(shop, tmp_path, monkeypatch):
    real = steps.count

    def late(job, shard, advance):
        (job.work.staged / "00000/part-0000002.parquet").rename(tmp_path / "late")
        return real(job, shard, advance)

    monkeypatch.setattr(steps, "count", late)
    with pytest.raises(OSError, match=r"staged/00000: expected \d+ staged files, found \d+"):
        shop(shards=2)
    assert [path.name for path in tmp_path.iterdir()] == ["late"]


KILLED = """
import os, shutil, signal, sys
from adaftr_fast.files import whole
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

def exchange(new, target, real=whole._exchange):
    if name != "exchange":
        return False  # as on a file system that cannot
    assert real(new, target)
    os.kill(os.getpid(), signal.SIGKILL)

whole._exchange = exchange
os.replace = killed(os.replace, 1)  # the file is written but not yet renamed
os.rename, shutil.rmtree = killed(os.rename, 0), killed(shutil.rmtree, 0)
sys.exit(main(arguments))
"""


def run_killed(name, *arguments):
    """Runs a command that dies where it replaces, renames or removes ``name``."""
    Script(KILLED, name, *arguments).end(-signal.SIGKILL)


def left(folder):
    return {path.name.partition("-")[0] for path in folder.iterdir()}


def test_a_killed_run_leaves_a_temporary_folder_that_the_next_one_removes(command, shop, tmp_path):
    whole = tmp_path / "whole"
    out = tmp_path / "out"
    assert main([*command, str(whole)]) == 0
    options = [str(out), "--shards", "2"]
    for name in (
        "part-0000003.parquet",
        "fields-00002-of-00002.pickle",
        "validation-00001-of-00002.parquet",
        "prepared",
        "exchange",
    ):
        shutil.rmtree(out, ignore_errors=True)
        if name in ("prepared", "exchange"):  # killed while it replaces a folder
            shop()
        run_killed(name, *command, *options)
        assert out.exists() == (name == "exchange")
        assert ".out.new" in left(tmp_path)
        assert main([*command, *options]) == 0
        assert_same(out, whole)
        assert left(tmp_path) == {"out", "whole"}
