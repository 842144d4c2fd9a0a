"""A run that is killed leaves no half folder, and nothing once the command has run again."""

import shutil
import signal

import pytest

from adaftr_fast.cli import main
from adaftr_fast.data.dataset.manifest import read_manifest
from adaftr_fast.errors import DataError
from tests.data.prepare.shards import assert_same
from tests.forks import Script

pytestmark = pytest.mark.usefixtures("small_blocks")


KILLED = """
import os, shutil, signal, sys
from adaftr_fast import _files
from adaftr_fast.data.raw import blocks
from adaftr_fast.cli import main

name, *arguments = sys.argv[1:]
blocks.BLOCK_BYTES = 5_000

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


def test_killed_at_each_step(command, tmp_path):
    whole = tmp_path / "whole"
    out = tmp_path / "out"
    assert main([*command, str(whole)]) == 0
    for name in (
        "rows-00001-of-00002.duckdb",
        "picked-00002-of-00002.duckdb",
        "vocabulary.parquet",
        "validation-00001-of-00002.parquet",
    ):
        run_killed(name, *command, out, "--shards", 2)
        assert not out.exists()
        assert (tmp_path / ".out.work").exists()
    assert main([*command, str(out)]) == 0
    assert_same(out, whole)
    assert {path.name for path in tmp_path.iterdir()} == {"out", "whole"}


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
