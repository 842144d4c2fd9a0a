"""A folder of chunks of a small shop, and a function that trains on it until it is idle."""

import os
from pathlib import Path

import pytest

from adaftr_fast.data.schema.parse import parse_schema
from adaftr_fast.extras.streaming.folder import FolderSource
from adaftr_fast.extras.streaming.loop import StreamOptions, train_stream
from tests.runs import conftest as runs
from tests.runs.conftest import SOURCE, settings, write_day

LONG_AGO = 1_700_000_000
tracker = runs.tracker  # a fixture


def config(**training):
    return settings().with_options(training={"max_epochs": 1} | training)


def stream(source, out, *, training=None, schema=SOURCE, **options):
    """Trains on the chunks that there are; returns the records."""
    options = StreamOptions(**({"poll": 0, "idle": 1e-9} | options))
    source = FolderSource(source, settle=0) if isinstance(source, Path) else source
    return list(train_stream(parse_schema(schema), source, config(**training or {}), out, options))


def arrive(folder, day, name=None):
    """Adds the chunk of a day in one step, with a time of long ago."""
    (folder / ".new").mkdir(exist_ok=True)
    new = write_day(folder / ".new", day)
    os.utime(new, (LONG_AGO + day, LONG_AGO + day))
    return new.rename(folder / (name or f"{day:03d}.parquet"))


@pytest.fixture
def chunks(tmp_path):
    """A folder of three chunks."""
    folder = tmp_path / "in"
    folder.mkdir()
    for day in range(3):
        arrive(folder, day)
    return folder
