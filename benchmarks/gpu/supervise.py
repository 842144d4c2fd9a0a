"""Has worker processes measure the cells of each stage: a worker that dies or hangs costs the cell
that it was measuring, no more.

Nothing that a worker does ends the command. One that died between two cells is followed by another.
A stage whose workers finish no cell is left to the next call, and the next stage begins.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

from benchmarks.gpu import ROOT, STAGES, WORK
from benchmarks.gpu.cells import Cell, Journal, Row, Setting
from benchmarks.gpu.processes import dies_with_parent, environment

WORKER = ("-m", "benchmarks.gpu.worker")
# seconds that a worker may take before and between cells: it imports torch, and makes a context
IDLE = 60.0
# workers of a stage, one after another, that finish no cell before the next stage begins
FRUITLESS = 2
# a cell that was begun as often and never finished, or always ran out of time, is given up
MOST_STARTS = 3


class TimeIsOver(Exception):
    """The time of a stage has ended."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds the folder, so that no two runs write into it.

    Raises:
        SystemExit: another run holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    held = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sys.exit(f"benchmarks.gpu: another run writes into {folder}")
    try:
        yield
    finally:
        os.close(held)


class Worker:
    """A process that measures cells, the first of a group."""

    def __init__(self, setting: Setting) -> None:
        self._pipe, theirs = Pipe()
        self._process = subprocess.Popen(
            [sys.executable, *WORKER, str(theirs.fileno())],
            cwd=ROOT,
            env=environment(OMP_NUM_THREADS="1") if setting.dry else environment(),
            pass_fds=[theirs.fileno()],
            start_new_session=True,
            preexec_fn=dies_with_parent(),
        )
        theirs.close()

    def send(self, message: Any) -> None:
        with contextlib.suppress(OSError):  # it has ended, which the next answer shows
            self._pipe.send(message)

    def receive(self, seconds: float) -> Any:
        """Returns what it says next, or None if that takes longer than ``seconds``.

        Raises:
            EOFError: it has ended.
        """
        try:
            return self._pipe.recv() if self._pipe.poll(max(0.0, seconds)) else None
        except ConnectionResetError as error:
            raise EOFError from error

    def status(self) -> str:
        """Returns how it has ended."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(IDLE)
        self.kill()
        status = self._process.wait()
        return signal.Signals(-status).name if status < 0 else f"status {status}"

    def kill(self) -> None:
        """Ends it and what it has started, if they run."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


class Machine:
    """This machine, and its clock."""

    def time(self) -> float:
        """Returns the seconds since the epoch."""
        return time.time()

    def start(self, setting: Setting) -> Worker:
        return Worker(setting)


def run(
    names: list[str], setting: Setting, deadline: float | None, machine: Machine | None = None
) -> int:
    """Runs stages in order: the cells of the plan first, then all others. The seconds of a stage
    hold for all.

    Returns:
        The exit status: 0, or 1 if a stage cannot run at all.
    """
    WORK.mkdir(parents=True, exist_ok=True)
    machine = machine or Machine()
    unable = set()
    with locked(setting.out):
        journal = Journal(setting.out)
        stages = [
            Stage(name, STAGES[name] if deadline is None else deadline, journal, machine)
            for name in names
        ]
        for planned in (True, True, False):  # again, for a stage that was given up
            for stage in stages:
                if stage.has_left(planned) and not stage.run(setting, planned):
                    unable.add(stage)
        unfinished = [stage for stage in stages if stage.has_left(planned=False)]
    why = "the time of --total is over" if machine.time() >= setting.until else "cells are left"
    for stage in unfinished:
        print(f"benchmarks.gpu: {stage.name}: {why}; the same command goes on")
    return int(not unable.isdisjoint(unfinished))


class Stage:
    """A stage that measures cells for some seconds."""

    def __init__(self, name: str, seconds: float, journal: Journal, machine: Machine) -> None:
        self.name = name
        self.journal = journal
        self.machine = machine
        self._seconds = seconds
        counts = journal.lines_of(name, "left")
        # not where lines were removed since, and what an earlier call built, another machine had
        is_whole = bool(counts) and counts[-1]["finished"] == len(journal.cells(name))
        self._is_counted = is_whole and name != "build"

    def has_left(self, planned: bool) -> bool:
        """Whether cells are left, of the plan or at all, or no worker has counted them."""
        counts = self.journal.lines_of(self.name, "left")
        return not self._is_counted or counts[-1]["left"][0 if planned else 1] > 0

    def run(self, setting: Setting, planned: bool) -> bool:
        """Measures the cells of the plan, or all, in as many processes as it takes. Returns whether
        they could measure.
        """
        begin = self.machine.time()
        self.setting = dataclasses.replace(setting, until=min(begin + self._seconds, setting.until))
        try:
            return self._run(planned)
        finally:
            self._seconds -= self.machine.time() - begin

    def _run(self, planned: bool) -> bool:
        fruitless = 0
        while fruitless < FRUITLESS:
            if self.machine.time() >= self.setting.until:
                return True
            finished = len(self.journal.lines_of(self.name, "cell"))
            worker = self.machine.start(self.setting)
            try:
                self._measure_in(worker, planned)
                return True
            except TimeIsOver:
                return True
            except EOFError:
                if not self.has_left(planned):
                    return True
            finally:
                worker.kill()
            is_fruitful = len(self.journal.lines_of(self.name, "cell")) > finished
            fruitless = 0 if is_fruitful else fruitless + 1
        print(
            f"benchmarks.gpu: {self.name}: cannot run, {FRUITLESS} processes ended before a cell "
            "did",
            file=sys.stderr,
        )
        return False

    def _measure_in(self, worker: Worker, planned: bool) -> None:
        """Measures cells in one process.

        Raises:
            EOFError: it died between two cells, did nothing for ``IDLE`` seconds, or a cell has
                spoiled it.
            TimeIsOver: the time of the stage is over.
        """
        rows = self.journal.cells(self.name)
        again = {name for name, row in rows.items() if self._is_tried_again(name, row["result"])}
        finished = {name: row for name, row in rows.items() if name not in again}
        worker.send((self.name, self.setting, finished))
        cells, facts = self._answer(worker, IDLE)
        if facts is not None:
            self._note(facts)
        left = {cell.name: cell for cell in cells}
        try:
            for cell in sorted(cells, key=lambda cell: (cell.name in again, not cell.planned)):
                if planned and (cell.name in again or not cell.planned):
                    return
                estimate = 0 if self.setting.dry else cell.seconds
                if self.machine.time() + estimate >= self.setting.until:
                    return
                result, is_spoiled = self._measure(worker, cell)
                self.journal.append(self.name, cell=cell.key, result=result)
                if self._is_tried_again(cell.name, result):
                    again.add(cell.name)
                else:
                    del left[cell.name]
                print(f"{self.name}, {len(left)} left: {cell.name}: {shown(result)}", flush=True)
                if is_spoiled:
                    raise EOFError
        finally:
            waiting = sum(cell.planned for name, cell in left.items() if name not in again)
            finished = len(self.journal.cells(self.name))
            self.journal.append(self.name, left=[waiting, len(left)], finished=finished)
            self._is_counted = True

    def _is_tried_again(self, name: str, result: Row) -> bool:
        """Whether a cell ran out of time and may yet end in time: what it compiled is cached by
        then.
        """
        return "timed out" in result and self.journal.starts(self.name, name) < MOST_STARTS

    def _answer(self, worker: Worker, seconds: float) -> Any:
        left = self.setting.until - self.machine.time()
        answer = worker.receive(min(seconds, left))
        if answer is None:
            raise TimeIsOver if left <= seconds else EOFError
        return answer

    def _note(self, facts: Row) -> None:
        """Writes what the machine is.

        Raises:
            SystemExit: the journal holds figures of another GPU.
        """
        before = self.journal.machine()
        if before is not None and before["gpu"] != facts["gpu"]:
            sys.exit(
                f"benchmarks.gpu: {self.journal.path} holds figures of {before['gpu']}, this is "
                f"{facts['gpu']}; use another --out"
            )
        if facts != before:
            self.journal.append(self.name, machine=facts)

    def _measure(self, worker: Worker, cell: Cell) -> tuple[Row, bool]:
        """Returns the figures of a cell, or why there are none, and whether the next one needs
        another process. A cell whose limit is only what was left of the stage's time has no result.
        """
        if self.journal.starts(self.name, cell.name) >= MOST_STARTS:
            return {"failed": f"begun {MOST_STARTS} times and never finished"}, False
        worker.send(cell.name)
        self._answer(worker, IDLE)
        begin = self.machine.time()
        left = self.setting.until - begin
        short = {"short": True} if left < cell.limit else {}
        self.journal.append(self.name, started=cell.name, **short)
        try:
            answer = worker.receive(min(cell.limit, left))
        except EOFError:
            return {"failed": f"its process ended with {worker.status()}"}, True
        if answer is None and short:
            raise TimeIsOver
        if answer is None:
            return {"failed": f"no result within {cell.limit:.0f} s", "timed out": True}, True
        result, is_spoiled = answer
        return result | {"took": round(self.machine.time() - begin, 3)}, is_spoiled


def shown(result: Row) -> str:
    """Returns the figures that fit a line."""
    if "seconds" in result:
        return f"{1e3 * result['seconds']:.4g} ms"
    kind = next((name for name in ("failed", "wrong") if name in result), None)
    text = str(result) if kind is None else f"{kind}: {result[kind]}"
    return text.splitlines()[0][:200]
