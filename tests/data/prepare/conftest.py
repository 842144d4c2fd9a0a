"""A log for shards, and functions that prepare it."""

import pytest

from adaftr_fast.data.encode import counts, groups
from adaftr_fast.data.prepare.run import prepare
from adaftr_fast.data.raw import staging
from tests.data.prepare.shards import assert_same, changed, write_log


@pytest.fixture(scope="session")
def log(tmp_path_factory):
    return write_log(tmp_path_factory.mktemp("log"))


@pytest.fixture(scope="session")
def whole(log, tmp_path_factory):
    """Returns the folder that one process prepares of a file of the log."""
    folders = {}

    def whole(name="log.csv", **changes):
        key = repr((name, changes))
        if key not in folders:
            folders[key] = tmp_path_factory.mktemp("whole") / "out"
            prepare(changed(changes), [log / name], folders[key])
        return folders[key]

    return whole


@pytest.fixture
def shop(log, tmp_path):
    """Prepares a file of the log, or another one, in the folder ``out``; returns the manifest."""

    def shop(out="out", name="log.csv", changes=None, **options):
        return prepare(changed(changes or {}), [log / name], tmp_path / out, **options)

    return shop


@pytest.fixture
def is_whole(whole, tmp_path):
    """Checks that a folder is what one process prepares of the file."""

    def is_whole(out="out", name="log.csv", **changes):
        assert_same(tmp_path / out, whole(name, **changes))

    return is_whole


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(staging, "BLOCK_BYTES", 5_000)
    for module in (counts, groups):  # merge after every batch
        monkeypatch.setattr(module, "COMPACT_ROWS", 50)


@pytest.fixture
def command(log):
    files = str(log / "log.csv")
    return ["prepare", "--labels", "click", "--group", "user", "--files", files, "--out"]
