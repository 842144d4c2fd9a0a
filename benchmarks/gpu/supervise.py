"""Runs each stage in worker processes: a worker that dies or hangs costs the cell that it was
measuring, no more.

Nothing that a worker does ends the command. One that died between two cells, or at its end, is
followed by another if it has finished a cell. A stage whose workers finish none is left to the next
call, and the next stage begins.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from benchmarks.gpu import ROOT, STAGES, WORK
from benchmarks.gpu.cells import Journal, Setting
from benchmarks.gpu.processes import dies_with_parent, environment
from benchmarks.gpu.worker import AGAIN

POLL = 0.5  # seconds
# seconds that a worker may take before, between and after cells: it imports torch, and makes a
# context
IDLE = 60.0
# workers of a stage, one after another, that finish no cell before the next stage begins
FRUITLESS = 2


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


class Worker(Protocol):
    """A process that measures cells."""

    def wait(self, seconds: float) -> int | None:
        """Waits until it ends, some seconds at most. Returns its status, or None if it runs."""

    def kill(self) -> None:
        """Ends it and what it has started, if they run."""


class Machine(Protocol):
    """What workers run on (``Local``)."""

    def time(self) -> float:
        """Returns the seconds since the epoch."""

    def start(self, stage: str, setting: Setting, planned: bool) -> Worker:
        """Starts a worker for a stage, for the cells of the plan alone where ``planned``."""


def run(
    stages: list[str], setting: Setting, deadline: float | None, machine: Machine | None = None
) -> int:
    """Runs the stages in order: the cells of the plan first, then all others. The seconds of a
    stage hold for all.

    Returns:
        The exit status: 0, or 1 if a stage cannot run at all.
    """
    WORK.mkdir(parents=True, exist_ok=True)
    machine = machine or Local()
    left = {name: deadline if deadline is not None else STAGES[name] for name in stages}
    since = dict.fromkeys(stages, -math.inf) | {
        "build": machine.time()
    }  # what it counted before, another machine had built
    given_up: set[str] = set()
    with locked(setting.out):
        journals = [Journal(setting.out, name) for name in stages]
        for planned in (True, True, False):  # again, for a stage that was given up
            for journal in journals:
                name, begin = journal.stage, machine.time()
                if has_left(journal, planned, since[name]):
                    ends = dataclasses.replace(
                        setting, until=min(begin + left[name], setting.until)
                    )
                    if not run_stage(journal, ends, planned, machine):
                        given_up.add(name)
                    left[name] -= machine.time() - begin
        unfinished = {
            journal.stage for journal in journals if has_left(journal, False, since[journal.stage])
        }
    why = "the time of --total is over" if machine.time() >= setting.until else "cells are left"
    for name in stages:
        if name in unfinished:
            print(f"benchmarks.gpu: {name}: {why}; the same command goes on")
    return int(bool(given_up & unfinished))


def has_left(journal: Journal, planned: bool, since: float) -> bool:
    """Whether a stage has cells left, of the plan or at all, or no worker has counted them at
    ``since`` or later.
    """
    left = journal.left(since)
    return left is None or left["planned" if planned else "all"] > 0


def run_stage(journal: Journal, setting: Setting, planned: bool, machine: Machine) -> bool:
    """Runs a stage until ``setting.until``, in as many processes as it takes. Returns whether they
    could measure.
    """
    name, fruitless = journal.stage, 0
    while fruitless < FRUITLESS:
        started, finished = machine.time(), journal.finished()
        if started >= setting.until:
            return True
        status = watch(machine.start(name, setting, planned), journal, setting, machine)
        if status in (0, None) or not has_left(journal, planned, started):
            return True
        begun = journal.in_progress(started)
        if begun is not None:
            journal.finish(begun["key"], {"failed": f"its process ended with {_named(status)}"})
        fruitless = 0 if journal.finished() > finished else fruitless + 1
    print(
        f"benchmarks.gpu: {name}: cannot run, {FRUITLESS} processes ended before a cell did",
        file=sys.stderr,
    )
    return False


def watch(worker: Worker, journal: Journal, setting: Setting, machine: Machine) -> int | None:
    """Waits for a worker and returns its status, or None where the time of the stage was over.

    It is killed then, where it has worked on a cell for longer than the cell's limit, and where it
    has done nothing for ``IDLE`` seconds. A cell whose limit is only what was left of the stage's
    time is not recorded as failed.
    """
    started = active = machine.time()
    seen = len(journal.lines())
    try:
        while (status := worker.wait(POLL)) is None:
            now = machine.time()
            if len(journal.lines()) > seen:
                active, seen = now, len(journal.lines())
            begun = journal.in_progress(started)
            late = now - begun["time"] > begun["limit"] if begun else now - active > IDLE
            if now >= setting.until:
                return None
            if late:
                worker.kill()  # first, so that it cannot finish what is recorded as failed
                if begun := journal.in_progress(started):
                    failed = f"no result within {begun['limit']:.0f} s"
                    journal.finish(begun["key"], {"failed": failed, "timed out": True})
                return AGAIN
        return status
    finally:
        worker.kill()


def _named(status: int) -> str:
    return signal.Signals(-status).name if status < 0 else f"status {status}"


class Local:
    """This machine, and its clock."""

    def time(self) -> float:
        return time.time()

    def start(self, stage: str, setting: Setting, planned: bool) -> Worker:
        command = [
            sys.executable,
            "-m",
            "benchmarks.gpu.worker",
            "--stage",
            stage,
            "--setting",
            setting.to_json(),
        ]
        variables = environment(OMP_NUM_THREADS="1") if setting.dry else environment()
        return Process(command + ["--planned"] * planned, variables)


class Process:
    """A worker that is a process, the first of a group."""

    def __init__(self, command: list[str], variables: dict[str, str]) -> None:
        self._popen = subprocess.Popen(
            command, cwd=ROOT, env=variables, start_new_session=True, preexec_fn=dies_with_parent()
        )

    def wait(self, seconds: float) -> int | None:
        try:
            return self._popen.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._popen.pid, signal.SIGKILL)
        self._popen.wait()
