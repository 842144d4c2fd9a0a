"""Journals keep finished cells whatever kills a run, and the supervisor outlives its workers."""

import math
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks.gpu import processes, supervise
from benchmarks.gpu.cells import Cell, Journal, Setting, name_of
from benchmarks.gpu.worker import MOST_STARTS, measure, unfinished

KEY = {"batch": 8, "contestant": "adaftr_fast"}


@pytest.fixture
def journal(tmp_path):
    return Journal(tmp_path, "loss")


def cell(result, key=KEY):
    return Cell(key, lambda: result)


def test_a_finished_cell_is_read_back(journal):
    assert measure(cell({"seconds": 0.5}), journal, 9, math.inf)["seconds"] == 0.5
    row = journal.cells()[name_of(KEY)]
    assert row["cell"] == KEY
    assert row["result"]["seconds"] == 0.5
    assert journal.in_progress(since=0) is None


@pytest.mark.parametrize("kept", [1, 20, 51])
def test_half_a_line_is_neither_read_nor_kept(journal, kept):
    journal.finish(KEY, {"seconds": 1.0})
    whole = journal.path.read_bytes()
    journal.finish({"batch": 16}, {"seconds": 2.0})
    line = journal.path.read_bytes()[len(whole) :]
    assert kept < len(line)
    journal.path.write_bytes(whole + line[:kept])
    assert list(journal.cells()) == [name_of(KEY)]
    journal.finish({"batch": 32}, {"seconds": 3.0})
    assert list(journal.cells()) == [name_of(KEY), "batch=32"]
    assert journal.path.read_bytes().startswith(whole)


def test_a_damaged_line_is_named(journal):
    journal.path.write_text('{"stage": "loss"}\nnot JSON\n{"stage": "loss"}\n')
    with pytest.raises(
        ValueError, match=r"measured\.jsonl:2: expected a JSON object, got b'not JSON'"
    ):
        journal.lines()


def test_infinite_figures_are_text(journal):
    journal.finish(KEY, {"error": {"loss": float("inf")}, "runs": [float("nan"), 1.0]})
    assert journal.cells()[name_of(KEY)]["result"] == {
        "error": {"loss": "inf"},
        "runs": ["nan", 1.0],
    }


def test_a_cell_that_never_finishes_is_given_up(journal):
    for _ in range(MOST_STARTS):
        journal.start(cell({}), now=0.0, limit=9)
    assert "never finished" in measure(cell({"seconds": 1.0}), journal, 9, math.inf)["failed"]


def test_a_cell_that_succeeds_may_be_measured_anew_any_number_of_times(journal):
    for _ in range(MOST_STARTS + 1):  # as on machines that come one after another
        assert "failed" not in measure(cell({"seconds": 1.0}), journal, 9, math.inf)


def times_out():
    raise TimeoutError("no end within 190 s")


def test_a_cell_that_ran_out_of_time_is_tried_again_after_the_others(tmp_path):
    setting, journal = Setting(tmp_path), Journal(tmp_path, "loss")
    slow, other = Cell({"file": "slow"}, times_out), cell({"seconds": 1.0})
    stage = SimpleNamespace(cells=lambda setting: [slow, other])
    for _ in range(MOST_STARTS - 1):
        assert measure(slow, journal, 9, math.inf)["failed"] == "TimeoutError: no end within 190 s"
        assert unfinished(stage, journal, setting) == ([other], [slow], 2)
    measure(slow, journal, 9, math.inf)
    assert unfinished(stage, journal, setting) == ([other], [], 2)


def test_a_cell_that_was_cut_short_counts_as_not_tried(tmp_path):
    setting, journal = Setting(tmp_path), Journal(tmp_path, "loss")
    stage = SimpleNamespace(cells=lambda setting: [ended])

    def killed():
        raise KeyboardInterrupt

    ended = Cell(KEY, killed)
    for _ in range(MOST_STARTS + 1):
        with pytest.raises(KeyboardInterrupt):
            measure(ended, journal, 9, time.time() + 5)
        assert unfinished(stage, journal, setting) == ([ended], [], 1)
    assert 0 < journal.in_progress(since=0)["limit"] <= 5
    assert journal.starts(ended.name) == 0


def test_a_setting_is_the_same_in_another_process(tmp_path):
    for setting in (
        Setting(tmp_path),
        Setting(tmp_path, tmp_path / "wheels", True, "commit 1a2b3c4", 12.5),
    ):
        assert Setting.from_json(setting.to_json()) == setting


def test_the_cell_in_progress_is_of_this_run(journal):
    journal.start(cell({}), time.time(), limit=9)
    begun = journal.in_progress(since=0)
    assert (begun["key"], begun["limit"]) == (KEY, 9)
    assert journal.in_progress(since=begun["time"] + 1) is None


@pytest.fixture
def faulty(monkeypatch):
    """Lets the supervisor start faulty_worker.py."""
    real = supervise.subprocess.Popen
    script = str(Path(__file__).with_name("faulty_worker.py"))

    def start(command, **options):
        return real(
            [
                script if part == "benchmarks.gpu.worker" else part
                for part in command
                if part != "-m"
            ],
            **options,
        )

    monkeypatch.setattr(supervise.subprocess, "Popen", start)
    monkeypatch.setattr(supervise, "POLL", 0.05)


def test_a_worker_that_dies_or_hangs_costs_one_cell(tmp_path, faulty):
    setting = Setting(tmp_path, dry=True)
    assert supervise.run(["loss"], setting, deadline=60) == 0
    journal = Journal(tmp_path, "loss")
    rows = journal.cells()
    found = {row["cell"]["contestant"]: row["result"] for row in rows.values()}
    assert found["first"]["seconds"] == 1.0
    assert found["raises"]["failed"] == "ValueError: expected one thing, got another"
    assert found["crashes"]["failed"] == "its process ended with SIGSEGV"
    assert found["hangs"]["failed"] == "no result within 2 s"
    assert found["ends"]["failed"] == "its process ended with status 3"
    assert found["last"]["seconds"] == "inf"
    assert {name: journal.starts(f"contestant={name}") for name in ("raises", "hangs")} == {
        "raises": 1,
        "hangs": MOST_STARTS,
    }


def test_the_time_of_all_stages_ends_a_cell_and_the_next_call_measures_it(
    tmp_path, faulty, monkeypatch, capsys
):
    monkeypatch.setenv("FAULTY_LIMIT", "60")
    until = time.time() + 6  # a worker has begun by then
    assert supervise.run(["loss"], Setting(tmp_path, dry=True, until=until), deadline=600) == 0
    assert time.time() < until + 30
    assert "loss: the time of --total is over" in capsys.readouterr().out
    journal = Journal(tmp_path, "loss")
    assert journal.in_progress(since=0)["key"] == {"contestant": "hangs"}
    assert "contestant=hangs" not in journal.cells()
    monkeypatch.delenv("FAULTY_LIMIT")
    assert supervise.run(["loss"], Setting(tmp_path, dry=True), deadline=60) == 0
    assert journal.cells()["contestant=hangs"]["result"]["failed"] == "no result within 2 s"


def test_a_worker_that_cannot_start_leaves_its_stage_and_the_next_begins(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(supervise.sys, "executable", "/bin/false")
    assert supervise.run(["loss", "embedding"], Setting(tmp_path, dry=True), deadline=60) == 1
    printed = capsys.readouterr().err
    assert "loss: cannot run" in printed
    assert "embedding: cannot run" in printed


SIGNALS = ("ABRT", "BUS", "ILL", "KILL", "SEGV", "TERM")


@pytest.mark.parametrize("place", ["start", "between", "teardown"])
def test_workers_that_die_beside_their_cells(place, tmp_path, faulty, monkeypatch, capsys):
    for name in SIGNALS:
        out = tmp_path / name
        monkeypatch.setenv("FAULTY_DEATH", f"{place} {signal.Signals['SIG' + name].value}")
        status = supervise.run(["loss", "embedding"], Setting(out, dry=True), deadline=60)
        assert status == (place == "start"), name
        for stage in ("loss", "embedding"):
            rows = Journal(out, stage).cells()
            assert len(rows) == (0 if place == "start" else 2), name
            assert all("failed" not in row["result"] for row in rows.values())
    errors = capsys.readouterr().err
    assert errors.count("embedding: cannot run") == 3 * len(SIGNALS) * (place == "start")


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
