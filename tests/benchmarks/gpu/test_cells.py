"""Journals keep finished cells whatever kills a run, and the supervisor outlives its workers."""

import signal
import sys
import time
from pathlib import Path

import pytest

from benchmarks.gpu import processes, supervise
from benchmarks.gpu.cells import Cell, Journal, Setting, name_of
from benchmarks.gpu.supervise import MOST_STARTS, Machine, Stage

KEY = {"batch": 8, "contestant": "ours"}
DONE = {"seconds": 1.0}


@pytest.fixture
def journal(tmp_path):
    return Journal(tmp_path)


def finish(journal, result, key=KEY):
    journal.append("loss", cell=key, result=result)


@pytest.mark.parametrize("kept", [1, 51])
def test_half_a_line_is_neither_read_nor_kept(journal, tmp_path, kept):
    finish(journal, DONE)
    whole = journal.path.read_bytes()
    finish(journal, {"seconds": 2.0}, {"batch": 16})
    line = journal.path.read_bytes()[len(whole) :]
    assert kept < len(line)
    journal.path.write_bytes(whole + line[:kept])
    journal = Journal(tmp_path)
    assert journal.cells("loss") == {
        name_of(KEY): {"stage": "loss", "cell": KEY, "result": DONE},
    }
    finish(journal, {"seconds": 3.0}, {"batch": 32})
    assert list(Journal(tmp_path).cells("loss")) == [name_of(KEY), "batch=32"]
    assert journal.path.read_bytes().startswith(whole)


def test_a_damaged_line_is_named(journal, tmp_path):
    journal.path.write_text('{"stage": "loss"}\nnot JSON\n{"stage": "loss"}\n')
    with pytest.raises(
        ValueError, match=r"measured\.jsonl:2: expected a JSON object, got b'not JSON'"
    ):
        Journal(tmp_path)


def test_infinite_figures_are_text(journal, tmp_path):
    finish(journal, {"error": {"loss": float("inf")}, "runs": [float("nan"), 1.0]})
    result = Journal(tmp_path).cells("loss")[name_of(KEY)]["result"]
    assert result == {"error": {"loss": "inf"}, "runs": ["nan", 1.0]}


def test_a_cell_is_begun_a_few_times_since_it_last_succeeded(journal):
    cell = Cell(KEY, None, limit=9)
    for result in ({"failed": "no"}, DONE):
        for short in ({}, {"short": True}):  # only the time of its stage ended it
            for _ in range(MOST_STARTS):
                journal.append("loss", started=cell.name, **short)
        assert journal.starts("loss", cell.name) == MOST_STARTS
        assert journal.starts("embedding", cell.name) == 0
        given_up, _ = Stage("loss", 60, journal, Machine())._measure(None, cell)
        assert given_up == {"failed": "begun 3 times and never finished"}
        finish(journal, result)
        assert journal.starts("loss", cell.name) == (0 if result == DONE else MOST_STARTS)
        finish(journal, DONE)


@pytest.fixture
def faulty(monkeypatch):
    """Lets the supervisor start faulty_worker.py."""
    monkeypatch.setattr(supervise, "WORKER", [str(Path(__file__).with_name("faulty_worker.py"))])


def test_a_worker_that_dies_or_hangs_costs_one_cell(tmp_path, faulty):
    assert supervise.run(["loss"], Setting(tmp_path, dry=True), deadline=60) == 0
    journal = Journal(tmp_path)
    found = {row["cell"]["contestant"]: row["result"] for row in journal.cells("loss").values()}
    assert found["first"]["seconds"] == 1.0
    assert found["raises"]["failed"] == "IndexError: list index out of range"
    assert found["crashes"]["failed"] == "its process ended with SIGSEGV"
    assert found["hangs"]["failed"] == "no result within 2 s"
    assert found["ends"]["failed"] == "its process ended with status 3"
    assert found["last"]["seconds"] == "inf"
    begun = [line["started"] for line in journal.lines_of("loss", "started")]
    # one that ran out of time is tried again after all others
    assert begun == [f"contestant={name}" for name in (*found, "hangs", "hangs")]
    assert journal.machine() == {"gpu": "none"}
    kept = [line for line in journal.path.read_text().splitlines(True) if "list index" not in line]
    journal.path.write_text("".join(kept))  # which asks for it again
    assert supervise.run(["loss"], Setting(tmp_path, dry=True), deadline=60) == 0
    begun = [line["started"] for line in Journal(tmp_path).lines_of("loss", "started")]
    assert (begun[-1], begun.count(begun[-1])) == ("contestant=raises", 2)


def test_the_time_of_all_stages_ends_a_cell_and_the_next_call_measures_it(
    tmp_path, faulty, monkeypatch, capsys
):
    monkeypatch.setenv("FAULTY_LIMIT", "60")
    until = time.time() + 6  # a worker has begun by then
    assert supervise.run(["loss"], Setting(tmp_path, dry=True, until=until), deadline=600) == 0
    assert time.time() < until + 30
    assert "loss: the time of --total is over" in capsys.readouterr().out
    journal = Journal(tmp_path)
    assert journal.lines_of("loss", "started")[-1]["started"] == "contestant=hangs"
    assert "contestant=hangs" not in journal.cells("loss")
    monkeypatch.delenv("FAULTY_LIMIT")
    assert supervise.run(["loss"], Setting(tmp_path, dry=True), deadline=60) == 0
    row = Journal(tmp_path).cells("loss")["contestant=hangs"]
    assert row["result"]["failed"] == "no result within 2 s"


@pytest.mark.parametrize(("place", "name"), [("start", "SEGV"), ("between", "KILL")])
def test_workers_that_die_beside_their_cells(place, name, tmp_path, faulty, monkeypatch, capsys):
    monkeypatch.setenv("FAULTY_DEATH", f"{place} {signal.Signals['SIG' + name].value}")
    status = supervise.run(["loss", "embedding"], Setting(tmp_path, dry=True), deadline=60)
    assert status == (place == "start")
    for stage in ("loss", "embedding"):
        rows = Journal(tmp_path).cells(stage)
        assert len(rows) == (0 if place == "start" else 2)
        assert all("failed" not in row["result"] for row in rows.values())
    errors = capsys.readouterr().err
    for stage in ("loss", "embedding"):  # the next stage begins, and a stage has another chance
        assert errors.count(f"{stage}: cannot run") == (3 if place == "start" else 0)


def test_another_card_needs_another_folder(tmp_path, faulty):
    Journal(tmp_path).append("embedding", machine={"gpu": "NVIDIA H200"})
    with pytest.raises(SystemExit, match="holds figures of NVIDIA H200, this is none; use another"):
        supervise.run(["loss"], Setting(tmp_path, dry=True), deadline=60)


def test_two_runs_do_not_share_a_folder(tmp_path):
    with (
        supervise.locked(tmp_path),
        pytest.raises(SystemExit, match="another run writes into"),
        supervise.locked(tmp_path),
    ):
        pass


def test_a_process_finds_the_commands_of_installed_wheels(tmp_path, monkeypatch):
    folders = {"SITE": tmp_path / "site/bin", "PACKAGE": tmp_path / "package/bin"}
    for name, folder in folders.items():
        monkeypatch.setattr(processes, name, folder.parent)
        folder.mkdir(parents=True)
        (folder / f"run-{name}").write_text(f"#!/bin/sh\necho {name}\n")
        (folder / f"run-{name}").chmod(0o755)
    for name in folders:
        assert processes.run(["sh", "-c", f"run-{name}"], 60).stdout == f"{name}\n"


def test_a_command_that_takes_too_long_is_killed():
    with pytest.raises(TimeoutError, match=r"no end within 1 s of .* it printed begun"):
        processes.run(
            [sys.executable, "-u", "-c", "import time; print('begun'); time.sleep(60)"], 1
        )
