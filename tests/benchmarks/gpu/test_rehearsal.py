"""The two calls on a GPU machine, rehearsed on a simulated clock: supervisor and worker are real,
processes are not.

A cell takes the seconds that it is estimated to take. Some hang, fault, or are killed; workers die
beside their cells.
"""

import random
import tempfile
import threading
import traceback
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks.gpu import ROOT, STAGES, cells, supervise, worker
from benchmarks.gpu.cells import Journal, Setting
from benchmarks.gpu.stages import contestants

CALL, REPORT = 560.0, 20.0  # seconds of a call, and of them for the report
START = 7.0  # seconds until a worker measures: Python, torch and the CUDA context
SEEDS = range(50)


class Killed(BaseException):
    """Ends the thread of a process that was killed, or that died by the signal ``number``."""

    def __init__(self, number=9):
        self.number = number


@dataclass
class Plan:
    """What goes wrong.

    Attributes:
        cells: "hang", "fault" or "kill" by the name of a cell, in each try.
        starts: numbers of the workers that are killed as they start.
        between: numbers of the workers that die after their first cell.
        teardowns: numbers of the workers that die when they have measured.
    """

    cells: dict = field(default_factory=dict)
    starts: set = field(default_factory=set)
    between: set = field(default_factory=set)
    teardowns: set = field(default_factory=set)


class Clock:
    """The seconds since the epoch."""

    def __init__(self):
        self.now = 1e9


class FakeProcess:
    """A worker in a thread, which runs while the supervisor waits for it and gives the turn back
    where it waits.
    """

    def __init__(self, clock, work):
        self.clock, self.wakes, self.status, self.dead = clock, clock.now, None, False
        self.mine, self.theirs = threading.Semaphore(0), threading.Semaphore(0)
        threading.Thread(target=self._run, args=(work,), daemon=True).start()

    def _run(self, work):
        self.mine.acquire()
        try:
            self.status = 0 if self.dead else work(self)
        except Killed as death:
            self.status = -death.number
        except Exception:  # as a process does that cannot go on
            traceback.print_exc()
            self.status = 1
        self.theirs.release()

    def sleep(self, seconds):
        self.wakes = self.clock.now + seconds
        self.theirs.release()
        self.mine.acquire()
        if self.dead:
            raise Killed

    def wait(self, seconds):
        end = self.clock.now + seconds
        while self.status is None and self.wakes <= end:
            self.clock.now = max(self.clock.now, self.wakes)
            self.mine.release()
            self.theirs.acquire()
        self.clock.now = end if self.status is None else self.clock.now
        return self.status

    def kill(self):
        self.dead = True
        if self.status is None:
            self.mine.release()
            self.theirs.acquire()


class FakeMachine:
    """A machine on which things go according to a plan; ``done`` has call, second, stage and cell
    of each result.
    """

    def __init__(self, plan):
        self.plan, self.clock, self.number, self.process = plan, Clock(), 0, None
        self.call, self.begun, self.done = 0, self.clock.now, []

    def time(self):
        return self.clock.now

    def start(self, stage, setting, planned):
        self.number += 1
        number = self.number

        def work(process):
            self.process, self.measured, self.worker = process, 0, number
            process.sleep(START)
            if number in self.plan.starts:
                raise Killed
            status = worker.run_stage(stage, setting, planned, self.time)
            if number in self.plan.teardowns:
                raise Killed(6)
            return status

        return FakeProcess(self.clock, work)

    def measure(self, cell):
        """Takes the place of a cell's ``measure``."""
        kind = self.plan.cells.get(cell.name)
        self.process.sleep(float("inf") if kind == "hang" else cell.seconds * (0.5 if kind else 1))
        if kind == "kill":
            raise Killed(11)
        if kind == "fault":
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return {"call": self.call}

    def after(self, stage, cell):
        self.measured += 1
        self.done.append((self.call, self.time() - self.begun, stage, cell.name))
        if self.worker in self.plan.between and self.measured == 1:
            raise Killed


class Silent(worker.Progress):
    """Shows nothing."""

    def __init__(self, *_):
        self.bar = None

    def step(self, *_):
        pass

    def write(self, text):
        pass


@pytest.fixture
def stages(monkeypatch):
    """The cells of all stages on a machine with the contestants' packages, by stage."""
    monkeypatch.setattr(contestants.importlib.util, "find_spec", lambda name: name != "fbgemm_gpu")
    monkeypatch.delattr(contestants.torch.nn, "LinearCrossEntropyOptions", raising=False)
    modules = {name: worker.stage_module(name) for name in STAGES}
    return {name: (module, list(module.cells(Setting(Path())))) for name, module in modules.items()}


@pytest.fixture
def rehearse(stages, monkeypatch, tmp_path):
    """Returns a function that runs two calls by a plan, and returns the lines after each and the
    machine.
    """
    monkeypatch.setattr(cells.os, "fsync", lambda file: None)
    monkeypatch.setattr(worker, "Progress", Silent)
    monkeypatch.setattr(supervise, "POLL", 2.0)
    monkeypatch.setattr(supervise, "WORK", tmp_path)
    real = worker.measure

    def run(plan, calls=2, deadline=None):
        machine, out = FakeMachine(plan), Path(tempfile.mkdtemp(dir=tmp_path))

        def module(name):
            real_module, every = stages[name]
            made = [
                replace(cell, measure=lambda cell=cell: machine.measure(cell)) for cell in every
            ]

            # The second call finds another machine, on which nothing is built.
            def is_current(setting, row):
                return name != "build" or row["result"]["call"] == machine.call

            return SimpleNamespace(
                LIMIT=real_module.LIMIT, cells=lambda setting: made, is_current=is_current
            )

        def measure(cell, journal, *given):
            result = real(cell, journal, *given)
            machine.after(journal.stage, cell)
            return result

        monkeypatch.setattr(worker, "stage_module", module)
        monkeypatch.setattr(worker, "measure", measure)
        monkeypatch.setattr(worker, "is_broken", lambda: True)
        monkeypatch.setattr(worker, "note_machine", lambda journal, setting: None)
        texts = []
        for machine.call in range(calls):
            machine.begun = machine.time()
            until = machine.begun + CALL - REPORT
            supervise.run(list(STAGES), Setting(out, until=until), deadline, machine)
            assert machine.time() <= until + supervise.POLL
            texts.append((out / cells.JOURNAL).read_bytes())
        return out, texts, machine

    return run


def drawn(seed, stages):
    """Draws two hangs, four faults, three kills of cells and six deaths beside cells."""
    rng = random.Random(seed)
    planned = [
        cell.name
        for name, (_, every) in stages.items()
        if name != "build"
        for cell in every
        if cell.planned
    ]
    bad = rng.sample(planned, 9)
    kinds = ["hang"] * 2 + ["fault"] * 4 + ["kill"] * 3
    numbers = [set(rng.sample(range(1, 24), 2)) for _ in range(3)]
    return Plan(dict(zip(bad, kinds)), *numbers)


def test_two_calls_measure_every_cell_that_is_not_at_fault(rehearse, stages):
    for seed in SEEDS:
        plan = drawn(seed, stages)
        out, (first, both), _ = rehearse(plan)
        assert both.startswith(first), "a line of the first call was lost"
        for name, (_, every) in stages.items():
            rows = Journal(out, name).cells()
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
    *_, machine = rehearse(Plan())
    planned = {
        name: [cell.name for cell in every if cell.planned] for name, (_, every) in stages.items()
    }
    rows = []
    for call in range(2):
        for moment in (60, 150, 300, 560):
            by_then = {done[2:] for done in machine.done if done[0] == call and done[1] <= moment}
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


def test_a_deadline_holds_for_each_stage(rehearse, stages):
    out, _, machine = rehearse(Plan(), calls=1, deadline=50.0)
    for name, (_, every) in stages.items():
        times = [seconds for _, seconds, stage, _ in machine.done if stage == name]
        assert not times or times[-1] - times[0] <= 50
        assert len(Journal(out, name).cells()) == len(times) <= len(every)
    assert {"build", "headline", "training"} <= {stage for _, _, stage, _ in machine.done}
