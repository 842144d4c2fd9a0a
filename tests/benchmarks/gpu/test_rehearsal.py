"""The two calls on a GPU machine, rehearsed on a simulated clock: the supervisor is real, its
workers are not.

A cell takes the seconds that it is estimated to take. Some hang, fault, or are killed; workers die
beside their cells.
"""

import math
import random
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from benchmarks.gpu import ROOT, STAGES, cells, supervise
from benchmarks.gpu.cells import Journal, Setting
from benchmarks.gpu.stages import contestants
from benchmarks.gpu.worker import stage_cells

CALL, REPORT = 560.0, 20.0  # seconds of a call, and of them for the report
START = 7.0  # seconds until a worker measures: Python, torch and the CUDA context
SEEDS = range(50)


@dataclass
class Plan:
    """What goes wrong.

    Attributes:
        cells: "hang", "fault" or "kill" by the name of a cell, in each try.
        starts: numbers of the workers that are killed as they start.
        between: numbers of the workers that die after their first cell.
    """

    cells: dict = field(default_factory=dict)
    starts: set = field(default_factory=set)
    between: set = field(default_factory=set)


class FakeWorker:
    """Answers with what a plan has, each after some seconds; None is its death."""

    def __init__(self, machine):
        self.machine = machine
        self.measured = 0

    def send(self, message):
        self.answers = self.begin(*message) if isinstance(message, tuple) else self.measure(message)

    def begin(self, stage, setting, rows):
        # the second call finds another machine, on which nothing is built
        done = {
            name for name, row in rows.items() if row["result"].get("call") == self.machine.call
        }
        done = done if stage == "build" else rows
        cells = [cell for cell in self.machine.stages[stage] if cell.name not in done]
        self.cells = {cell.name: cell for cell in cells}
        yield START, None if self.machine.number in self.machine.plan.starts else (cells, None)

    def measure(self, name):
        if self.measured == 1 and self.machine.number in self.machine.plan.between:
            yield 0, None
        yield 0, "begun"
        self.measured += 1
        seconds = self.cells[name].seconds
        kind = self.machine.plan.cells.get(name)
        if kind == "hang":
            yield math.inf, None
        elif kind == "kill":
            yield seconds / 2, None
        elif kind == "fault":
            yield seconds / 2, ({"failed": "CUDA error: an illegal memory access"}, True)
        yield seconds, ({"call": self.machine.call}, False)

    def receive(self, seconds):
        wait, answer = next(self.answers)
        self.machine.now += min(wait, seconds)
        if wait > seconds:
            return None
        if answer is None:
            raise EOFError
        return answer

    def status(self):
        return "SIGKILL"

    def kill(self):
        pass


class FakeMachine:
    """A machine on which things go according to a plan, and its clock."""

    def __init__(self, plan, stages):
        self.plan = plan
        self.stages = stages
        self.now = 1e9
        self.number = 0

    def time(self):
        return self.now

    def start(self, setting):
        self.number += 1
        return FakeWorker(self)


@pytest.fixture
def stages(monkeypatch):
    """The cells of all stages on a machine with the contestants' packages, by stage."""
    monkeypatch.setattr(contestants.importlib.util, "find_spec", lambda name: name != "fbgemm_gpu")
    monkeypatch.delattr(contestants.torch.nn, "LinearCrossEntropyOptions", raising=False)
    return {name: stage_cells(name, Setting(Path()), {}) for name in STAGES}


@pytest.fixture
def rehearse(stages, monkeypatch, tmp_path):
    """Returns a function that runs two calls by a plan, and returns the folder, what it holds after
    each, and the call, second, stage and cell of each result.
    """
    monkeypatch.setattr(cells.os, "fsync", lambda file: None)
    monkeypatch.setattr(supervise, "WORK", tmp_path)

    def run(plan, calls=2, deadline=None):
        machine = FakeMachine(plan, stages)
        out = Path(tempfile.mkdtemp(dir=tmp_path))
        texts = []
        done = []
        append = Journal.append

        def noted(journal, stage, **line):
            append(journal, stage, **line)
            if "cell" in line:
                seconds = machine.now - begin
                done.append((machine.call, seconds, stage, cells.name_of(line["cell"])))

        monkeypatch.setattr(Journal, "append", noted)
        for machine.call in range(calls):
            begin = machine.now
            until = begin + CALL - REPORT
            supervise.run(list(STAGES), Setting(out, until=until), deadline, machine)
            assert machine.now <= until
            texts.append((out / cells.JOURNAL).read_bytes())
        monkeypatch.setattr(Journal, "append", append)
        return out, texts, done

    return run


def drawn(seed, stages):
    """Draws two hangs, four faults, three kills of cells and six deaths beside cells."""
    rng = random.Random(seed)
    planned = [
        cell.name
        for name, every in stages.items()
        if name != "build"
        for cell in every
        if cell.planned
    ]
    kinds = ["hang"] * 2 + ["fault"] * 4 + ["kill"] * 3
    bad = dict(zip(rng.sample(planned, len(kinds)), kinds))
    return Plan(bad, *(set(rng.sample(range(1, 24), 3)) for _ in range(2)))


def test_two_calls_measure_every_cell_that_is_not_at_fault(rehearse, stages):
    for seed in SEEDS:
        plan = drawn(seed, stages)
        out, (first, both), _ = rehearse(plan)
        assert both.startswith(first), "a line of the first call was lost"
        for name, every in stages.items():
            rows = Journal(out).cells(name)
            for cell in every:
                result = rows.get(cell.name, {}).get("result")
                if cell.name in plan.cells:
                    assert result is None or "failed" in result
                elif cell.planned:
                    assert result is not None, f"seed {seed}: {name}: {cell.name} was not measured"
                    assert "failed" not in result, f"seed {seed}: {name}: {cell.name}: {result}"


def test_the_yield_of_each_call_is_what_the_documentation_says(rehearse, stages):
    """docs/gpu.md has a row for each call and moment, with the cells of the plan that are measured
    by then.
    """
    *_, done = rehearse(Plan())
    planned = {name: [cell.name for cell in stages[name] if cell.planned] for name in stages}
    rows = []
    for call in range(2):
        for moment in (60, 150, 300, 560):
            by_then = {each[2:] for each in done if each[0] == call and each[1] <= moment}
            counts = {
                name: sum((name, cell) in by_then for cell in names)
                for name, names in planned.items()
            }
            shown = (
                f"`{name}` {count} of {len(planned[name])}"
                for name, count in counts.items()
                if count
            )
            rows.append(f"| {call + 1} | {moment} | {', '.join(shown)} |")
    text = (ROOT / "docs/gpu.md").read_text(encoding="utf-8")
    assert "\n".join(rows) in text, "\n".join(rows)


def test_a_deadline_holds_for_each_stage(rehearse, stages, capsys):
    out, _, done = rehearse(Plan(), calls=1, deadline=50.0)
    assert "cells are left; the same command goes on" in capsys.readouterr().out
    for name, every in stages.items():
        times = [seconds for _, seconds, stage, _ in done if stage == name]
        assert not times or times[-1] - times[0] <= 50
        assert len(Journal(out).cells(name)) == len(times) <= len(every)
    assert {"build", "headline", "training"} <= {stage for _, _, stage, _ in done}
