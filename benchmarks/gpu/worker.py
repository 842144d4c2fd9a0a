"""Measures the cells of a stage in a process that the supervisor starts; another follows where it
dies.

A fault of a kernel (an address that is not mapped, say) leaves a CUDA context in which nothing runs
any more. The process then ends with ``AGAIN``, and the next one goes on with the next cell.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import time
import traceback
from collections.abc import Callable
from types import ModuleType
from typing import Any

from benchmarks.gpu.cells import Cell, Journal, Setting

AGAIN = 75  # the exit status that asks for a new process
# a cell that was begun as often and never finished, or always ran out of time, is given up
MOST_STARTS = 3
Clock = Callable[[], float]


def stage_module(name: str) -> ModuleType:
    return importlib.import_module(f"benchmarks.gpu.stages.{name}")


def unfinished(
    stage: ModuleType, journal: Journal, setting: Setting
) -> tuple[list[Cell], list[Cell], int]:
    """Returns the cells without a result, those that ran out of time and are tried again, and the
    number of all.
    """
    rows, every = journal.cells(), list(stage.cells(setting))
    is_current = getattr(stage, "is_current", lambda setting, row: True)
    first: list[Cell] = []
    again: list[Cell] = []
    for cell in every:
        if cell.name not in rows or not is_current(setting, rows[cell.name]):
            first.append(cell)
        elif is_tried_again(cell, rows[cell.name]["result"], journal):
            again.append(cell)
    return first, again, len(every)


def is_tried_again(cell: Cell, result: dict[str, Any], journal: Journal) -> bool:
    """Whether a cell ran out of time and may yet end in time: what it compiled is
    cached by then.
    """
    return "timed out" in result and journal.starts(cell.name) < MOST_STARTS


def run_stage(name: str, setting: Setting, planned: bool, clock: Clock = time.time) -> int:
    """Measures cells until all are done or the stage ends, at ``setting.until``.

    Args:
        name: the stage.
        setting: as the supervisor passes it.
        planned: measures the cells of the plan alone, and tries none again.
        clock: returns the time in seconds since the epoch.

    Returns:
        The exit status of the process: 0, or ``AGAIN`` where the next cell needs a new one.
    """
    stage, journal = stage_module(name), Journal(setting.out, name)
    first, again, total = unfinished(stage, journal, setting)
    todo = [cell for cell in first if cell.planned]
    if not planned:
        todo += [*(cell for cell in first if not cell.planned), *again]
    left = {cell.name: cell for cell in (*first, *again)}
    waiting = {cell.name for cell in first if cell.planned}
    if todo and name != "build":
        note_machine(journal, setting)
    status = 0
    with Progress(name, total, total - len(left)) as progress:
        for cell in todo:
            if clock() + cell.seconds >= setting.until:
                break
            result = measure(cell, journal, cell.limit or stage.LIMIT, setting.until, clock)
            waiting.discard(cell.name)
            if not is_tried_again(cell, result, journal):
                del left[cell.name]
            progress.step(cell, result)
            if (
                "failed" in result
                and not setting.dry
                and name != "build"
                and (cell.captures or is_broken())
            ):
                status = AGAIN
                break
    journal.append({"left": {"planned": len(waiting), "all": len(left)}, "time": clock()})
    if left:
        progress.write(f"{name}: {len(left)} of {total} cells left, from {next(iter(left))} on")
    return status


def measure(
    cell: Cell, journal: Journal, limit: float, until: float, clock: Clock = time.time
) -> dict[str, Any]:
    """Returns the figures of a cell, or why there are none, once they are on disk.

    The supervisor ends the cell after ``limit`` seconds, and at the time ``until``.
    """
    if journal.starts(cell.name) >= MOST_STARTS:
        result: dict[str, Any] = {"failed": f"begun {MOST_STARTS} times and never finished"}
        journal.finish(cell.key, result)
        return result
    begin = clock()
    left = until - begin
    journal.start(cell, begin, min(limit, left), short=left < limit)
    try:
        result = cell.measure()
    except Exception as error:  # a failure is a result too, and not the end of the run
        result = {"failed": f"{type(error).__name__}: {error}"[:2000]}
        if isinstance(error, TimeoutError):
            result["timed out"] = True
    journal.finish(cell.key, result | {"took": round(clock() - begin, 3)})
    return result


def is_broken() -> bool:
    """Whether CUDA has stopped working in this process."""
    import torch

    try:
        return torch.ones(2, device="cuda").sum().item() != 2
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
            f"benchmarks.gpu: {journal.path} holds figures of {before['gpu']}, this is "
            f"{now['gpu']}; use another --out"
        )
    journal.append({"machine": now})


class Progress:
    """A bar with rate and time left, and a line for each cell; the lines alone before tqdm is
    installed.
    """

    def __init__(self, stage: str, total: int, done: int) -> None:
        try:
            from tqdm import tqdm
        except ImportError:
            self.bar = None
        else:
            self.bar = tqdm(
                total=total,
                initial=done,
                desc=stage,
                unit="cell",
                dynamic_ncols=True,
                mininterval=1.0,
            )
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
    return ", ".join(
        f"{name} {value}" for name, value in result.items() if isinstance(value, int | float | str)
    )[:200]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--stage")
    parser.add_argument("--planned", action="store_true")
    parser.add_argument("--setting", type=Setting.from_json)
    arguments = parser.parse_args()
    try:
        status = run_stage(arguments.stage, arguments.setting, arguments.planned)
    except SystemExit as error:
        print(error, file=sys.stderr)
        status = 1
    except Exception:
        traceback.print_exc()
        status = 1
    leave(status)


def leave(status: int) -> None:
    """Ends the process at once: destructors of tensors abort in a CUDA context that has faulted."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    main()
