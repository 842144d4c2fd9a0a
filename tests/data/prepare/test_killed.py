"""A run that is killed several times and resumed gives the same files as an uninterrupted run."""

import signal

import numpy as np
import pyarrow as pa
import pyarrow.csv as csv
import pytest

from adaftr_fast.data.prepare.run import prepare
from adaftr_fast.data.raw.infer import infer_schema
from adaftr_fast.data.schema.parse import parse_schema
from tests.forks import Script

KILLED = """
import os, signal, sys
from pathlib import Path
from adaftr_fast.data.raw import staging
from adaftr_fast.data.raw.infer import infer_schema
from adaftr_fast.data.prepare.run import prepare
from adaftr_fast.data.schema.parse import parse_schema

log, out, name = sys.argv[1:]
staging.BLOCK_BYTES = 1 << 16
real = os.replace

def replace(*paths):
    if os.path.basename(paths[1]) == name:
        os.kill(os.getpid(), signal.SIGKILL)  # the file is written but not yet renamed
    real(*paths)

os.replace = replace
prepare(parse_schema(infer_schema(Path(log), ["click"], group="user")), [log], out)
"""


@pytest.fixture
def log(tmp_path):
    rows, random = 20_000, np.random.default_rng(0)
    columns = {"user": random.integers(0, 500, rows), "item": random.integers(0, 900, rows), "x": random.random(rows)}
    csv.write_csv(pa.table(columns | {"click": random.integers(0, 2, rows)}), tmp_path / "log.csv")
    return tmp_path / "log.csv"


def test_killed_run_resumes_to_identical_files(log, tmp_path):
    for name in (
        "part-0000001.parquet",
        "count-00001-of-00001.json",
        "count.json",
        "validation.parquet",
        "encode.json",
    ):
        killed = Script(KILLED, log, tmp_path / "out", name)
        _, err = killed.communicate()
        assert killed.returncode == -signal.SIGKILL, err
        assert not (tmp_path / "out").exists()
    work = tmp_path / ".out.work"
    kept = {path: path.stat().st_mtime_ns for path in work.rglob("*.parquet") if not path.name.startswith(".")}
    assert len(kept) >= 7
    finished = Script(KILLED, log, tmp_path / "out", "")
    _, err = finished.communicate()
    assert finished.returncode == 0, err
    assert not work.exists()
    prepare(parse_schema(infer_schema(log, ["click"], group="user")), [log], tmp_path / "whole")
    names = sorted(path.name for path in (tmp_path / "whole").iterdir())
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    for name in names:
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
