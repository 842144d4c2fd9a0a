"""Stages are measured, kept, and go on after they are cut off."""

import json
import os
import signal
import sys

import pytest

from benchmarks import render
from benchmarks.stages import Stages
from tests.forks import Script, wait_for

PYTHON = [sys.executable]
HOLD = (
    "import sys, time; held = bytearray(50_000_000); open(sys.argv[1], 'w').write('x' * 1000); "
    "time.sleep(0.4)"
)
KILLED = """
import sys
from pathlib import Path
from benchmarks.stages import Stages
folder = Path(sys.argv[1])
Stages(folder / "stages.json", [sys.executable]).run("one", ["-c", sys.argv[2], folder], folder)
"""
FIRST_FAILS = """
import sys, time
from pathlib import Path
time.sleep(0.3)
if not Path(sys.argv[1]).exists():
    Path(sys.argv[1]).touch()
    exit(3)
"""
FIRST_SLEEPS = """
import os, sys, time
from pathlib import Path
pid = Path(sys.argv[1]) / "pid"
if not pid.exists():
    pid.write_text(str(os.getpid()))
    time.sleep(600)
"""


def test_a_stage_is_measured_once(tmp_path):
    out = tmp_path / "out"
    stages = Stages(tmp_path / "stages.json", PYTHON)
    found = stages.run("one", ["-c", HOLD, out], out)
    assert found["seconds"] > 0.4
    assert 50 <= found["peak_mb"] < 500
    assert found["disk_mb"] == 0.0
    assert found["attempts"] == 1
    out.unlink()
    again = Stages(tmp_path / "stages.json", PYTHON).run("one", ["-c", HOLD, out], out)
    assert again == found
    assert not out.exists()


def test_another_command_of_the_same_name_is_refused(tmp_path):
    Stages(tmp_path / "stages.json", PYTHON).run("one", ["-c", "pass"], tmp_path)
    with pytest.raises(
        SystemExit,
        match=r"stages.json: one: expected .* -c pass .*, got .* -c 'exit\(0\)' .*; name",
    ):
        Stages(tmp_path / "stages.json", PYTHON).run("one", ["-c", "exit(0)"], tmp_path)


def test_a_stage_that_fails_runs_again_and_counts_all_attempts(tmp_path):
    command = ["-c", FIRST_FAILS, tmp_path / "tried"]
    with pytest.raises(SystemExit, match="one: exit status 3; run the same command again"):
        Stages(tmp_path / "stages.json", PYTHON).run("one", command, tmp_path)
    found = Stages(tmp_path / "stages.json", PYTHON).run("one", command, tmp_path)
    assert found["attempts"] == 2
    assert found["seconds"] > 0.3


def test_a_killed_measurement_leaves_no_process_and_keeps_its_time(tmp_path):
    script = Script(KILLED, tmp_path, FIRST_SLEEPS)
    journal = tmp_path / "stages.json"
    wait_for(
        lambda: journal.exists() and json.loads(journal.read_text())["done"]["one"]["seconds"] > 0.5
    )
    child = int(wait_for((tmp_path / "pid").read_text))
    os.kill(script.pid, signal.SIGKILL)
    wait_for(lambda: not is_running(child))
    found = Stages(journal, PYTHON).run("one", ["-c", FIRST_SLEEPS, tmp_path], tmp_path)
    assert found["attempts"] == 2
    assert found["seconds"] > 0.5


def test_the_headline_shows_each_stage():
    stages = {"prepare": {"seconds": 50.0, "peak_mb": 1200, "disk_mb": 54.1, "attempts": 2}}
    stages["export"] = {"seconds": 2.0, "peak_mb": 300, "disk_mb": 8.0, "attempts": 1}
    case = {
        "rows": 1_000_000,
        "rows of stages": {"prepare": 1_000_000},
        "memory": 4.0,
        "stages": stages,
    }
    assert render.headline([case]).splitlines()[2:] == [
        "| 1,000,000 | prepare | 50 | 20,000 | 1,200 | 54 |",
        "| 1,000,000 | export | 2 |  | 300 | 8 |",
    ]


def is_running(process):
    try:
        return "zombie" not in open(f"/proc/{process}/status").read()
    except FileNotFoundError:
        return False
