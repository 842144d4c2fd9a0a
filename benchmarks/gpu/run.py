"""Measures the cells of a stage in worker processes: one that dies or hangs costs the cell that it was at, no more.

A fault of a kernel (an address that is not mapped, say) leaves a CUDA context in which nothing runs any more. The
process then ends with ``AGAIN``, and the next one goes on with the next cell.
"""

import ctypes
import fcntl
import importlib
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from benchmarks.gpu.card import facts
from benchmarks.gpu.cells import Cell, Journal, Setting
from benchmarks.gpu.timing import graphed

AGAIN = 75  # the exit status that asks for a new process
POLL = 0.2  # seconds
PR_SET_PDEATHSIG = 1
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["benchmarks.gpu.card"])  # torch, without CUDA's state


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Locks the folder, so that no two runs write into it.

    Raises:
        SystemExit: another run has locked it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    opened = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sys.exit(f"benchmarks.gpu: another run writes into {folder}")
    try:
        yield
    finally:
        os.close(opened)


def journal_of(stage: str, setting: Setting) -> Journal:
    return Journal(setting.out / f"{stage.rpartition('.')[2]}.jsonl")


def run(stage: str, setting: Setting) -> None:
    """Measures the cells of a stage, which is a module, until all are done or the time of the setting is over.

    Raises:
        SystemExit: the stage cannot run at all.
    """
    journal = journal_of(stage, setting)
    while time.time() < setting.until:
        known = len(journal.lines())
        worker = SERVER.Process(target=work, args=(stage, setting))
        worker.start()
        try:
            failed = watch(worker, journal, known, importlib.import_module(stage).LIMIT, setting.until)
        finally:  # an interrupt leaves no worker behind
            worker.kill()
            worker.join()
        if worker.exitcode == 0:
            return
        begun = _in_progress(journal, known)
        if begun is not None and failed is not None:
            journal.append({"cell": begun["started"], "result": {"failed": failed}})
        elif failed is not None:
            sys.exit(f"benchmarks.gpu: {stage}: cannot run, see the error above")
    print(f"{stage}: the time of --total is over; the same command goes on")


def watch(worker: BaseProcess, journal: Journal, known: int, limit: float, until: float) -> str | None:
    """Waits for a worker; returns why the cell that it was at failed, or None if none did.

    The worker is killed where it works on a cell for longer than ``limit`` seconds, and at the time ``until``.
    """
    while worker.exitcode is None:
        worker.join(POLL)
        begun = _in_progress(journal, known)
        if time.time() >= until:
            return None
        if begun is not None and time.time() - begun["time"] > limit:
            return f"no result within {limit:.0f} s"
    if worker.exitcode in (0, AGAIN):
        return None
    why = signal.Signals(-worker.exitcode).name if worker.exitcode < 0 else f"status {worker.exitcode}"
    return f"its process ended with {why}"


def _in_progress(journal: Journal, known: int) -> dict[str, Any] | None:
    """Returns the line of the cell that was begun last, beyond the first ``known`` lines, unless it has finished."""
    line = [{}, *journal.lines()[known:]][-1]
    return line if "started" in line else None


def work(stage: str, setting: Setting) -> None:
    """Measures cells in this process; it ends with the server that made it, so that none is left using the GPU.

    Raises:
        SystemExit: the journal holds figures of another GPU, or CUDA has stopped working.
    """
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    journal = journal_of(stage, setting)
    now, before = facts(setting.device, setting.commit), journal.machine()
    if before is not None and before["gpu"] != now["gpu"]:
        sys.exit(f"{journal.path} holds figures of {before['gpu']}, this is {now['gpu']}; use another --out")
    cells = list(importlib.import_module(stage).cells(setting))
    todo = [cell for cell in cells if cell.name not in journal.cells()]
    journal.append({"machine": now})
    with tqdm(total=len(cells), initial=len(cells) - len(todo), desc=stage, unit="cell") as bar:
        for cell in todo:
            result = measure(cell, journal)
            bar.write(f"{cell.name}: {shown(result)}")
            bar.update()
            if "failed" in result and not setting.dry and is_broken():
                sys.exit(AGAIN)


def measure(cell: Cell, journal: Journal) -> dict[str, Any]:
    """Returns the figures of a cell, or why there are none, once they are on disk."""
    journal.append({"started": cell.key, "time": time.time()})
    try:
        result = cell.measure()
    except Exception as error:  # a failure is a result too, and not the end of the run
        result = {"failed": f"{type(error).__name__}: {error}"[:2000]}
    journal.append({"cell": cell.key, "result": result})
    return result


def is_broken() -> bool:
    """Whether CUDA, or the capture of a graph, has stopped working in this process."""
    try:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        replay, total = graphed(torch.ones(2, device="cuda").sum, "cuda")
        replay()
        return total.item() != 2
    except RuntimeError:
        return True


def shown(result: dict[str, Any]) -> str:
    """Returns the figures that fit a line."""
    if "failed" in result:
        return f"FAILED: {result['failed'].splitlines()[0][:200]}"
    if "wrong" in result:
        return f"WRONG: {result['wrong']}"
    return ", ".join(f"{name} {value}" for name, value in result.items() if isinstance(value, int | float))[:200]
