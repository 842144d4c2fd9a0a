"""Runs the stages in worker processes: a worker that dies or hangs costs the cell that it was measuring, no more."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.gpu import ROOT, STAGES, WORK
from benchmarks.gpu.cells import Journal, Setting
from benchmarks.gpu.processes import dies_with_parent, environment
from benchmarks.gpu.worker import AGAIN

POLL = 0.5  # seconds


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


def run(stages: list[str], setting: Setting, deadline: float | None) -> int:
    """Runs the stages in order; returns 0, or 1 if a stage cannot run at all."""
    WORK.mkdir(parents=True, exist_ok=True)
    # The package can be imported only after "build"; and "correctness" tries captures that CUDA may refuse.
    alone = [[name] for name in ("build", "correctness") if name in stages]
    groups = [*alone, [name for name in stages if [name] not in alone]]
    with locked(setting.out):
        for group in filter(None, groups):
            seconds = {name: deadline if deadline is not None else STAGES[name] for name in group}
            if not run_group(seconds, setting):
                return 1
    return 0


def run_group(seconds: dict[str, float], setting: Setting) -> bool:
    """Runs some stages, in as many processes as it takes. Returns whether they ran."""
    since = time.time()
    while True:
        left = time_left(seconds, setting, since)
        if not left:
            return True
        if time.time() >= setting.until:
            print(f"benchmarks.gpu: {' '.join(left)}: the time of --total is over; the same command goes on")
            return True
        started = time.time()
        status = watch(start(left, setting), list(left), setting, started)
        if status == 0:
            return True
        if status != AGAIN and not give_up(list(left), setting, status, started):
            return False


def time_left(seconds: dict[str, float], setting: Setting, since: float) -> dict[str, float]:
    """Returns the stages that were not completed since ``since``, and the seconds that each may still take."""
    left: dict[str, float] = {}
    for name in reversed(seconds):
        begun = [line["begun"] for line in Journal(setting.out / f"{name}.jsonl").lines() if "begun" in line]
        first = next((each for each in begun if each >= since), None)
        left[name] = seconds[name] if first is None else max(seconds[name] - (time.time() - first), 0.0)
        if first is not None:
            break  # the stages before were over when this one began
    return dict(reversed(left.items()))


def start(stages: dict[str, float], setting: Setting) -> subprocess.Popen[bytes]:
    worker = [sys.executable, "-m", "benchmarks.gpu.worker"]
    command = [*worker, "--stages", json.dumps(stages), "--setting", setting.to_json()]
    variables = environment(OMP_NUM_THREADS="1") if setting.dry else environment()
    return subprocess.Popen(command, cwd=ROOT, env=variables, start_new_session=True, preexec_fn=dies_with_parent())


def watch(worker: subprocess.Popen[bytes], stages: list[str], setting: Setting, since: float) -> int:
    """Waits for a worker and returns its status.

    It is killed where it has worked on a cell for longer than the cell's limit, and when the time of all stages is
    over. A cell whose limit is only what was left of that time is not recorded as failed.
    """
    try:
        while worker.poll() is None:
            time.sleep(POLL)
            begun = in_progress(stages, setting, since)
            late = begun is not None and time.time() - begun[1]["time"] > begun[1]["limit"]
            if late or time.time() >= setting.until:
                os.killpg(worker.pid, signal.SIGKILL)
                worker.wait()
                if begun is not None and late and "short" not in begun[1]:
                    failed = f"no result within {begun[1]['limit']:.0f} s"
                    begun[0].finish(begun[1]["key"], {"failed": failed, "timed out": True})
                return AGAIN
    except BaseException:  # an interrupt: leave no worker behind
        if worker.poll() is None:
            os.killpg(worker.pid, signal.SIGKILL)
            worker.wait()
        raise
    return worker.returncode


def in_progress(stages: list[str], setting: Setting, since: float) -> tuple[Journal, dict[str, Any]] | None:
    for name in stages:
        journal = Journal(setting.out / f"{name}.jsonl")
        begun = journal.in_progress(since)
        if begun is not None:
            return journal, begun
    return None


def give_up(stages: list[str], setting: Setting, status: int, since: float) -> bool:
    """Records that the cell in progress ended its process. Returns whether there was one."""
    begun = in_progress(stages, setting, since)
    if begun is None:
        print(f"benchmarks.gpu: {' '.join(stages)}: cannot run, see the error above", file=sys.stderr)
        return False
    why = signal.Signals(-status).name if status < 0 else f"status {status}"
    begun[0].finish(begun[1]["key"], {"failed": f"its process ended with {why}"})
    return True
