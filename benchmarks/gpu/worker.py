"""Measures the cells that the supervisor asks for, in a process of its own; another follows where
it dies.

A fault of a kernel (an address that is not mapped, say) leaves a CUDA context in which nothing runs
any more. The answer then asks for a new process.
"""

from __future__ import annotations

import dataclasses
import importlib
import sys
from multiprocessing.connection import Connection

from benchmarks.gpu.cells import Cell, Row, Setting


def stage_cells(stage: str, setting: Setting, rows: dict[str, Row]) -> list[Cell]:
    """Returns the cells of a stage that have no result, or one that does not hold here.

    Args:
        rows: the lines of the finished cells by the cell's name.
    """
    module = importlib.import_module(f"benchmarks.gpu.stages.{stage}")
    is_current = getattr(module, "is_current", lambda setting, row: True)
    return [
        dataclasses.replace(cell, limit=cell.limit or module.LIMIT)
        for cell in module.cells(setting)
        if cell.name not in rows or not is_current(setting, rows[cell.name])
    ]


def serve(pipe: Connection) -> None:
    """Answers with the cells of a stage and the facts about the machine, and then, for each cell
    that is asked for, that it has begun, and its figures and whether the next one needs a new
    process.
    """
    stage, setting, rows = pipe.recv()
    cells = {cell.name: cell for cell in stage_cells(stage, setting, rows)}
    facts = None
    if cells and stage != "build":  # which makes importable what names them
        from benchmarks.gpu.card import facts as facts_of

        facts = facts_of(setting.device, setting.commit)
    pipe.send(([dataclasses.replace(cell, measure=None) for cell in cells.values()], facts))
    while True:
        cell = cells[pipe.recv()]
        pipe.send("begun")
        result = measured(cell, setting)
        is_on_a_card = stage != "build" and not setting.dry
        again = "failed" in result and is_on_a_card and (cell.captures or is_broken())
        pipe.send((result, again))


def measured(cell: Cell, setting: Setting) -> Row:
    """Returns the figures of a cell, or why there are none."""
    try:
        return cell.measure(cell.key, setting)
    except Exception as error:  # a failure is a result too, and not the end of the run
        result = {"failed": f"{type(error).__name__}: {error}"[:2000]}
        return result | ({"timed out": True} if isinstance(error, TimeoutError) else {})


def is_broken() -> bool:
    """Whether CUDA has stopped working in this process."""
    import torch

    try:
        return torch.ones(2, device="cuda").sum().item() != 2
    except RuntimeError:
        return True


if __name__ == "__main__":
    serve(Connection(int(sys.argv[1])))
