"""A dry run of every stage on the CPU, and one that is killed at a random moment and resumed."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest

from benchmarks.gpu import ROOT, STAGES, render
from benchmarks.gpu.__main__ import main
from benchmarks.gpu.cells import JOURNAL, Journal
from tests.forks import wait_for

KILLED = ("loss", "embedding")


def start(out, *arguments):
    command = [sys.executable, "-m", "benchmarks.gpu", "--dry-run", "--out", str(out), *arguments]
    variables = os.environ | {"ADAFTR_FAST_GPU_WORK": str(out.parent / "work")}
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process):
    printed, _ = process.communicate(timeout=300)
    assert process.returncode == 0, printed
    return printed


def reported(out):
    return json.loads((out / "gpu-dry-run.json").read_text(encoding="utf-8"))


def keys(out, stages=STAGES):
    """Names of the finished cells by stage."""
    journal = Journal(out)
    return {stage: set(journal.cells(stage)) for stage in stages}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of an uninterrupted run."""
    out = tmp_path_factory.mktemp("whole") / "out"
    printed = finish(start(out, "--commit", "commit of the test"))
    assert "cells are left" not in printed
    return out


def test_every_stage_runs_and_no_cell_fails(whole):
    record = reported(whole)
    assert record["machine"]["gpu"] == "dry run"
    assert set(record) == {"machine", "date", "commit", "cases"}
    assert record["commit"] == "commit of the test"
    assert {case["stage"] for case in record["cases"]} == set(STAGES)
    assert [case for case in record["cases"] if "failed" in case or "wrong" in case] == []
    assert len(record["cases"]) == sum(map(len, keys(whole).values()))


def test_figures_and_traces_are_those_of_the_contestants(whole):
    names = {"trace-loss", "trace-training-auto", "trace-training-off"}
    assert {path.name for path in whole.glob("trace*")} == {f"{name}.json.gz" for name in names}
    cases = reported(whole)["cases"]
    timed = [case for case in cases if case["stage"] in ("loss", "embedding") and "error" in case]
    contestants = {case["contestant"] for case in timed}
    assert contestants >= {"ours", "eager", "concatenated + SGD"}
    assert all(case["seconds"] > 0 for case in timed)
    trained = [case for case in cases if "samples/s" in case]
    assert {case["model"] for case in trained} == {"adaftr", "mmoe"}
    assert all(case["epochs"] >= 2 for case in trained)


def test_tables_show_every_contestant(whole):
    cases = reported(whole)["cases"]
    for name, make in render.TABLES.items():
        lines = make(cases).splitlines()
        assert len(lines) > 2, name
        assert len({line.count("|") for line in lines}) == 1
    assert "eager" in render.gpu_loss(cases)
    assert "nn.EmbeddingBag, dense gradient" in render.gpu_embedding(cases)


def test_a_run_that_is_done_measures_nothing(whole):
    before = (whole / JOURNAL).read_bytes()
    finish(start(whole, "--only", "embedding"))
    assert (whole / JOURNAL).read_bytes() == before


def test_the_report_comes_within_the_time_of_all_stages(whole, tmp_path):
    before = reported(whole)
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    lines = (out / JOURNAL).read_text().splitlines(keepends=True)
    (out / JOURNAL).write_text(
        "".join(line for line in lines if json.loads(line)["stage"] != "embedding")
    )
    (out / "gpu-dry-run.json").unlink()
    printed = finish(start(out, "--only", "embedding", "--total", "20.001"))
    assert "embedding: the time of --total is over" in printed
    stages = {case["stage"] for case in reported(out)["cases"]}
    assert stages == {case["stage"] for case in before["cases"]} - {"embedding"}


def test_a_total_that_the_report_may_take_is_refused(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmarks.gpu", "--out", "out", "--total", "5"])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert (
        "--total: expected more than 20 s, which the report may take, got 5"
        in capsys.readouterr().err
    )


def test_a_run_goes_on_where_it_was_killed(whole, tmp_path):
    seed = int(os.environ.get("ADAFTR_FAST_SEED", random.SystemRandom().randrange(1 << 32)))
    print(f"ADAFTR_FAST_SEED={seed}")
    out = tmp_path / "out"
    process = start(out, "--only", *KILLED)
    wait_for((out / JOURNAL).exists)
    time.sleep(random.Random(seed).uniform(0, 8))
    process.send_signal(signal.SIGKILL)  # the supervisor alone: its worker must end by itself
    process.communicate(timeout=60)
    before = (out / JOURNAL).read_bytes()
    finish(start(out, "--only", *KILLED))
    assert (out / JOURNAL).read_bytes().startswith(before.rpartition(b"\n")[0]), (
        "a line of the killed run was lost"
    )
    journal = Journal(out)
    for stage in KILLED:
        starts = [line["started"] for line in journal.lines_of(stage, "started")]
        assert len(starts) <= len(set(starts)) + 1
        assert len(journal.lines_of(stage, "cell")) == len(journal.cells(stage))
    assert keys(out, KILLED) == keys(whole, KILLED)
    assert len(reported(out)["cases"]) == sum(map(len, keys(whole, KILLED).values()))
