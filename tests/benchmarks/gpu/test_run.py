"""A dry run of every stage on the CPU, cells that fail, and a run that is killed and resumed."""

import json
import signal
import subprocess
import sys
import time

import pytest

from benchmarks.gpu import STAGES, render
from benchmarks.gpu.cells import Journal, Setting
from benchmarks.gpu.run import locked, run
from tests.benchmarks.gpu import faulty
from tests.forks import ROOT


def start(out, *arguments):
    command = [sys.executable, "-m", "benchmarks.gpu", "--dry-run", "--out", str(out), *arguments]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_a_killed_run_goes_on_and_reports_every_contestant(tmp_path):
    process, journal = start(tmp_path, "--commit", "commit of the test"), Journal(tmp_path / "embedding.jsonl")
    end = time.monotonic() + 200
    while not journal.cells():
        assert time.monotonic() < end
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)  # its worker must end by itself
    process.communicate(timeout=60)
    before = {path: path.read_bytes().rpartition(b"\n")[0] for path in tmp_path.glob("*.jsonl")}
    again = start(tmp_path, "--commit", "commit of the test")
    printed, _ = again.communicate(timeout=300)
    assert again.returncode == 0, printed
    for path, lines in before.items():
        assert path.read_bytes().startswith(lines)
        found = [json.dumps(line["cell"]) for line in Journal(path).lines() if "cell" in line]
        assert len(set(found)) == len(found)  # no cell was measured again
    record = json.loads((tmp_path / "gpu-dry-run.json").read_text())
    assert (record["commit"], record["machine"]["gpu"]) == ("commit of the test", "dry run")
    cases = record["cases"]
    assert [case for case in cases if "failed" in case or "wrong" in case] == []
    assert {case["stage"] for case in cases} == set(STAGES)
    names = {case["contestant"] for case in cases if case.get("seconds", 0) > 0}
    assert names >= {"ours", "eager", "concatenated + SGD", "nn.EmbeddingBag, dense gradient"}
    assert {case["model"] for case in cases if "samples/s" in case} == {"adaftr", "mmoe"}
    for name, make in render.TABLES.items():
        lines = make(cases).splitlines()
        assert len(lines) > 2, name
        assert len({line.count("|") for line in lines}) == 1


def test_a_worker_that_dies_or_hangs_costs_one_cell(tmp_path, monkeypatch, capsys):
    journal = Journal(tmp_path / "faulty.jsonl")
    monkeypatch.setattr(faulty, "LIMIT", 600)
    run(faulty.__name__, Setting(tmp_path, dry=True, until=time.time() + 8))
    assert "contestant=hangs" not in journal.cells()  # cut short, and not failed
    assert "the time of --total is over" in capsys.readouterr().out
    monkeypatch.setattr(faulty, "LIMIT", 1)
    run(faulty.__name__, Setting(tmp_path, dry=True))
    found = {row["cell"]["contestant"]: row["result"] for row in journal.cells().values()}
    assert found == {
        "first": {"seconds": 1.0},
        "raises": {"failed": "ValueError: expected one thing, got another"},
        "crashes": {"failed": "its process ended with SIGSEGV"},
        "hangs": {"failed": "no result within 1 s"},
        "last": {"seconds": "inf"},
    }


def test_a_stage_that_cannot_start_ends_the_run(tmp_path):
    Journal(tmp_path / "faulty.jsonl").append({"machine": {"gpu": "another"}})
    with pytest.raises(SystemExit, match="cannot run"):
        run(faulty.__name__, Setting(tmp_path, dry=True))


def test_two_runs_do_not_share_a_folder(tmp_path):
    with locked(tmp_path), pytest.raises(SystemExit, match="another run writes into"), locked(tmp_path):
        pass
