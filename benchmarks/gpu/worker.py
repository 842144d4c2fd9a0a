"""Measures the cells of some stages in one process: the supervisor starts it, and starts another where it dies.

A fault of a kernel (an address that is not mapped, say) leaves a CUDA context in which nothing runs any more. The
process then ends with ``AGAIN``, and the next one goes on with the next cell.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import sys
import time
from types import ModuleType
from typing import Any

from benchmarks.gpu.cells import Cell, Journal, Setting

AGAIN = 75  # the exit status that asks for a new process
MOST_STARTS = 3  # a cell that was begun as often and never finished, or always ran out of time, is given up


def stage_module(name: str) -> ModuleType:
    return importlib.import_module(f"benchmarks.gpu.stages.{name}")


def unfinished(name: str, setting: Setting) -> tuple[list[Cell], int]:
    """Returns the cells that remain, those that ran out of time at the end, and the number of all."""
    stage, journal = stage_module(name), Journal(setting.out / f"{name}.jsonl")
    rows, every = journal.cells(), list(stage.cells(setting))
    is_current = getattr(stage, "is_current", lambda setting, row: True)
    first: list[Cell] = []
    again: list[Cell] = []
    for cell in every:
        if cell.name not in rows or not is_current(setting, rows[cell.name]):
            first.append(cell)
        elif is_tried_again(cell, rows[cell.name]["result"], journal):
            again.append(cell)
    return first + again, len(every)


def is_tried_again(cell: Cell, result: dict[str, Any], journal: Journal) -> bool:
    """Whether a cell ran out of time and may yet end in time: what it compiled is cached by then."""
    return "timed out" in result and journal.starts(cell.name) < MOST_STARTS


def run_stage(name: str, setting: Setting, seconds: float) -> None:
    """Measures cells until all are done, ``seconds`` have passed or the time of all stages is over."""
    end = time.monotonic() + min(seconds, setting.until - time.time())
    stage, journal = stage_module(name), Journal(setting.out / f"{name}.jsonl")
    todo, total = unfinished(name, setting)
    if not todo:
        return
    if name != "build":
        note_machine(journal, setting)
    left = {cell.name: cell for cell in todo}
    with Progress(name, total, total - len(left)) as progress:
        for cell in todo:
            if time.monotonic() + cell.seconds >= end:
                break
            result = measure(cell, journal, stage.LIMIT, setting.until)
            if not is_tried_again(cell, result, journal):
                del left[cell.name]
            progress.step(cell, result)
            if "failed" in result and not setting.dry and name != "build" and is_broken():
                sys.exit(AGAIN)
    if left:
        progress.write(f"{name}: {len(left)} of {total} cells left; the same command goes on with {next(iter(left))}")


def measure(cell: Cell, journal: Journal, limit: float, until: float = math.inf) -> dict[str, Any]:
    """Returns the figures of a cell, or why there are none, once they are on disk.

    The supervisor ends the cell after ``limit`` seconds, and at the time ``until``.
    """
    if journal.starts(cell.name) >= MOST_STARTS:
        result: dict[str, Any] = {"failed": f"begun {MOST_STARTS} times and never finished"}
        journal.finish(cell.key, result)
        return result
    left = until - time.time()
    journal.start(cell, min(limit, left), short=left < limit)
    begin = time.perf_counter()
    try:
        result = cell.measure()
    except Exception as error:  # a failure is a result too, and not the end of the run
        result = {"failed": f"{type(error).__name__}: {error}"[:2000]}
        if isinstance(error, TimeoutError):
            result["timed out"] = True
    journal.finish(cell.key, result | {"took": round(time.perf_counter() - begin, 3)})
    return result


def is_broken() -> bool:
    """Whether CUDA, or the capture of a graph, has stopped working in this process."""
    import torch

    from benchmarks.gpu.timing import graphed

    try:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        replay, total = graphed(torch.ones(2, device="cuda").sum, "cuda")
        replay()
        return total.item() != 2
    except RuntimeError:
        return True


def note_machine(journal: Journal, setting: Setting) -> None:
    """Writes what the machine is.

    Raises:
        SystemExit: the journal holds figures of another GPU.
    """
    from benchmarks.gpu.card import facts

    now, before = facts(setting.device, setting.commit), journal.machine()
    if before is not None and before["gpu"] != now["gpu"]:
        sys.exit(
            f"benchmarks.gpu: {journal.path} holds figures of {before['gpu']}, this is {now['gpu']}; use another --out"
        )
    journal.append({"machine": now})


class Progress:
    """A bar with rate and time left, and a line for each cell; the lines alone before tqdm is installed."""

    def __init__(self, stage: str, total: int, done: int) -> None:
        try:
            from tqdm import tqdm
        except ImportError:
            self.bar = None
        else:
            self.bar = tqdm(total=total, initial=done, desc=stage, unit="cell", dynamic_ncols=True, mininterval=1.0)
        self.stage = stage

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.close()

    def step(self, cell: Cell, result: dict[str, Any]) -> None:
        self.write(f"{self.stage}: {cell.name}: {shown(result)}")
        if self.bar is not None:
            self.bar.update()

    def write(self, text: str) -> None:
        if self.bar is None:
            print(text, flush=True)
        else:
            self.bar.write(text)
            sys.stdout.flush()


def shown(result: dict[str, Any]) -> str:
    """Returns the figures that fit a line."""
    if "failed" in result:
        return f"FAILED: {str(result['failed']).splitlines()[0][:200]}"
    if "wrong" in result:
        return f"WRONG: {result['wrong']}"
    if "seconds" in result:
        return f"{1e3 * result['seconds']:.4g} ms"
    return ", ".join(f"{name} {value}" for name, value in result.items() if isinstance(value, int | float | str))[:200]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--stages", type=json.loads)  # {name: seconds left}
    parser.add_argument("--setting", type=Setting.from_json)
    arguments = parser.parse_args()
    setting: Setting = arguments.setting
    for name, seconds in arguments.stages.items():
        Journal(setting.out / f"{name}.jsonl").append({"begun": time.time()})
        run_stage(name, setting, seconds)


if __name__ == "__main__":
    main()
