"""A preparation that is killed outright, several times, ends as one that was left alone."""

import signal
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.csv as csv
import pytest

from adaftr_fast.data.infer import infer_schema
from adaftr_fast.data.prepare import FILES, prepare
from adaftr_fast.data.schema import parse_schema

KILLED = """
import os, signal, sys
from adaftr_fast.data import staging
from adaftr_fast.data.infer import infer_schema
from adaftr_fast.data.prepare import prepare
from adaftr_fast.data.schema import parse_schema

log, out, last = sys.argv[1], sys.argv[2], int(sys.argv[3])
staging.BLOCK_BYTES = 1 << 16
real, seen = os.replace, []

def replace(*paths):
    seen.append(paths)
    if len(seen) == last:
        os.kill(os.getpid(), signal.SIGKILL)  # the file is written and not yet in its place
    real(*paths)

os.replace = replace
prepare(parse_schema(infer_schema(log, ["click"], group="user")), [log], out)
"""


@pytest.fixture
def log(tmp_path):
    rows, random = 20_000, np.random.default_rng(0)
    columns = {"user": random.integers(0, 500, rows), "item": random.integers(0, 900, rows), "x": random.random(rows)}
    csv.write_csv(pa.table(columns | {"click": random.integers(0, 2, rows)}), tmp_path / "log.csv")
    return tmp_path / "log.csv"


def test_killed_and_resumed_it_ends_in_the_same_bytes(log, tmp_path):
    for last in (3, 7):  # among the blocks; among the splits
        done = subprocess.run([sys.executable, "-c", KILLED, log, tmp_path / "out", str(last)], capture_output=True)
        assert done.returncode == -signal.SIGKILL, done.stderr.decode()
        assert not (tmp_path / "out").exists()
    work = tmp_path / ".out.work"
    kept = {path: path.stat().st_mtime_ns for path in work.rglob("*.parquet") if not path.name.startswith(".")}
    assert len(kept) >= 7
    finish = subprocess.run([sys.executable, "-c", KILLED, log, tmp_path / "out", "-1"], capture_output=True)
    assert finish.returncode == 0, finish.stderr.decode()
    assert not work.exists()
    prepare(parse_schema(infer_schema(log, ["click"], group="user")), [log], tmp_path / "whole")
    for name in FILES:
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
