"""A log for shards, as text and as parquet."""

import pytest

from adaftr_fast.data.encode import counts, groups
from adaftr_fast.data.raw import staging
from tests.data.prepare.logs import write_log


@pytest.fixture(scope="session")
def log(tmp_path_factory):
    return write_log(tmp_path_factory.mktemp("log"))


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(staging, "BLOCK_BYTES", 5_000)
    for module in (counts, groups):  # merge after every batch
        monkeypatch.setattr(module, "COMPACT_ROWS", 50)


@pytest.fixture
def command(log):
    return [
        "prepare",
        "--labels",
        "click",
        "--group",
        "user",
        "--files",
        str(log / "log.csv"),
        "--out",
    ]
