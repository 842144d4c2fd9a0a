"""Look-ups, whole steps with each optimizer, and bags, ours and others'.

A step is forward, backward and update. Nothing is timed before it has trained a small table as the
definition of the optimizer does in float64.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator

import torch

from benchmarks.embedding import (
    AGREES,
    BAGS,
    OURS,
    STATES,
    Work,
    bag_step,
    contestants,
    disagreement,
    settle,
    stepper,
)
from benchmarks.gpu.cells import Cell, Row, Setting
from benchmarks.gpu.timing import figures

LIMIT = 30  # seconds of a cell
ROWS, DRY_ROWS = 100_000, 50  # of a field
Shape = tuple[str, int, int, int]  # ids, B, F, E
FIRST = [
    ("zipf", 8192, 23, 8),
    ("zipf", 65_536, 23, 8),
    ("zipf", 1024, 23, 8),
    ("zipf", 8192, 23, 64),
    ("zipf", 8192, 121, 16),
    ("uniform", 8192, 23, 8),
]
GRID = list(
    itertools.product(("zipf", "uniform"), (1024, 8192, 65_536), (23, 121), (8, 16, 32, 64))
)
CASES = ["forward", *reversed(STATES)]
STEADY_SECONDS = 5.0  # the most that exact Adam takes before it is timed
BAG_SHAPES = [("zipf", 1024, 50), ("zipf", 8192, 50), ("uniform", 8192, 50)]  # ids, B, ids a bag


def cells(setting: Setting) -> Iterator[Cell]:
    """Yields the shapes whose figures say most, then bags, then the rest of the grid."""
    first = FIRST
    rest = [shape for shape in GRID if shape not in FIRST]
    if setting.dry:
        first = [("zipf", 8, 3, 8)]
        rest = []
    for shape in first:
        yield from of_shape(shape, setting, planned=True)
    for kind, batch, each in [("zipf", 4, 3)] if setting.dry else BAG_SHAPES:
        for name in BAGS:
            key = {"case": "bags", "ids": kind, "batch": batch, "ids a bag": each, "width": 8}
            yield Cell(key | {"contestant": name}, bags, seconds=1)
    for shape in rest:
        yield from of_shape(shape, setting, planned=False)


def of_shape(shape: Shape, setting: Setting, planned: bool) -> Iterator[Cell]:
    for case in CASES:
        for name in contestants(optimizer_of(case), setting.device):
            key = {"case": case} | dict(zip(("ids", "batch", "fields", "width"), shape))
            seconds = 4.0 if (case, name) == ("Adam", OURS) else 1.2
            yield Cell(key | {"contestant": name}, measure, seconds, planned)


def optimizer_of(case: str) -> str:
    return "SGD" if case == "forward" else case


def measure(key: Row, setting: Setting) -> Row:
    """Returns how far the contestant is from the definition and, if it is right, its times."""
    case = key["case"]
    optimizer = optimizer_of(key["case"])
    make = contestants(optimizer, setting.device)[key["contestant"]]
    shape = {"width": key["width"], "ids": key["ids"], "device": setting.device}
    error = disagreement(make, Work(key["fields"], 30, 40, **shape), optimizer)
    found = {"error": error}
    if not error <= AGREES:
        wrong = f"another table: error {error:.3g} of the largest change, allowed {AGREES:g}"
        return found | {"wrong": wrong}
    rows = DRY_ROWS if setting.dry else ROWS
    work = Work(key["fields"], key["batch"], rows, **shape)
    table = make(work, optimizer)
    if case == "forward":
        batches = itertools.cycle(work.batches())
        step = torch.no_grad()(lambda: table.look_up(next(batches)))
    else:
        step = stepper(table, work)
    if (case, key["contestant"]) == ("Adam", OURS) and not setting.dry:
        end = time.monotonic() + STEADY_SECONDS
        found["steps before"] = settle(step, lambda: time.monotonic() < end)
    return found | figures(step, setting.device)


def bags(key: Row, setting: Setting) -> Row:
    """Times forward and backward of one multi-valued field, mean over a bag, to a gradient of the
    table.
    """
    rows = DRY_ROWS if setting.dry else ROWS
    each = key["ids a bag"]
    shape = {"width": key["width"], "ids": key["ids"], "device": setting.device}
    run, error = bag_step(key["contestant"], Work(1, key["batch"] * each, rows, **shape), each)
    if not error <= AGREES:
        wrong = f"another gradient: error {error:.3g} of the largest, allowed {AGREES:g}"
        return {"error": error, "wrong": wrong}
    return {"error": error} | figures(run, setting.device)
