"""Look-ups, whole steps with each optimizer, and bags, ours and others'.

A step is forward, backward and update. Nothing is timed before it has trained a small table as the
definition of the optimizer does in float64.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

import adaftr_fast as af
from benchmarks.gpu.cells import Cell, Setting
from benchmarks.gpu.stages import tables
from benchmarks.gpu.stages.tables import Work
from benchmarks.gpu.timing import figures

LIMIT = 30  # seconds of a cell
ROWS, DRY_ROWS = 100_000, 50  # of a field
CASES = ["forward", "Adam", "LazyAdam", "RowwiseAdagrad", "Adagrad", "SGD"]
Shape = tuple[str, int, int, int]  # ids, B, F, E
FIRST: list[Shape] = [
    ("zipf", 8192, 23, 8),
    ("zipf", 65_536, 23, 8),
    ("zipf", 1024, 23, 8),
    ("zipf", 8192, 23, 64),
    ("zipf", 8192, 121, 16),
    ("uniform", 8192, 23, 8),
]
GRID: list[Shape] = list(
    itertools.product(("zipf", "uniform"), (1024, 8192, 65_536), (23, 121), (8, 16, 32, 64))
)
# exact Adam replays missed steps one by one in its first few hundred
STEADY, STEADY_SECONDS = 350, 5.0
AGREES = 1e-3  # of the largest change; float32 rounds a sum of many gradients by far less
BAGS = [("zipf", 1024, 50), ("zipf", 8192, 50), ("uniform", 8192, 50)]  # ids, B, ids a bag
OURS = "adaftr_fast"
BAG_TABLES = (OURS, "nn.EmbeddingBag, sparse and coalesced", "nn.EmbeddingBag, dense gradient")


def cells(setting: Setting) -> Iterator[Cell]:
    """Yields the shapes whose figures say most, then bags, then the rest of the grid."""
    first, rest = FIRST, [shape for shape in GRID if shape not in FIRST]
    if setting.dry:
        first, rest = [("zipf", 8, 3, 8)], []
    for shape in first:
        yield from of_shape(shape, setting, planned=True)
    for kind, batch, each in [("zipf", 4, 3)] if setting.dry else BAGS:
        for name in BAG_TABLES:
            key = {
                "case": "bags",
                "ids": kind,
                "batch": batch,
                "ids a bag": each,
                "width": 8,
                "contestant": name,
            }
            yield Cell(key, lambda key=key: bags(key, setting), seconds=0 if setting.dry else 1)
    for shape in rest:
        yield from of_shape(shape, setting, planned=False)


def of_shape(shape: Shape, setting: Setting, planned: bool) -> Iterator[Cell]:
    kind, batch, fields, width = shape
    for case in CASES:
        for name in tables.contestants(optimizer_of(case)):
            key = {
                "case": case,
                "ids": kind,
                "batch": batch,
                "fields": fields,
                "width": width,
                "contestant": name,
            }
            seconds = 0.0 if setting.dry else 4.0 if (case, name) == ("Adam", OURS) else 1.2
            yield Cell(key, lambda key=key: measure(key, setting), seconds, planned)


def optimizer_of(case: str) -> str:
    return "SGD" if case == "forward" else case


def measure(key: dict[str, Any], setting: Setting) -> dict[str, Any]:
    """Returns how far the contestant is from the definition and, if it is right, its times."""
    case, optimizer = key["case"], optimizer_of(key["case"])
    make = tables.contestants(optimizer)[key["contestant"]]
    small = Work(key["fields"], 40, key["width"], 30, key["ids"], setting.device)
    found: dict[str, Any] = {"error": tables.disagreement(make, small, optimizer)}
    if not found["error"] <= AGREES:
        return found | {
            "wrong": f"another table: error {found['error']:.3g} of the largest change, allowed "
            f"{AGREES:g}"
        }
    rows = DRY_ROWS if setting.dry else ROWS
    work = Work(key["fields"], rows, key["width"], key["batch"], key["ids"], setting.device)
    table = make(work, optimizer)
    batches = itertools.cycle(work.batches())
    grad = work.grad()
    if case == "forward":
        return found | figures(
            torch.no_grad()(lambda: table.look_up(next(batches))), setting.device
        )

    def step() -> None:
        table.step(next(batches), grad)

    if (case, key["contestant"]) == ("Adam", OURS) and not setting.dry:
        found["steps before"] = settle(step)
    return found | figures(step, setting.device)


def settle(step: Callable[[], None]) -> int:
    """Takes steps until exact Adam is in its steady state, or some seconds have passed. Returns
    their number.
    """
    end = time.monotonic() + STEADY_SECONDS
    for number in range(STEADY):
        if time.monotonic() > end:
            return number
        step()
    return STEADY


def bags(key: dict[str, Any], setting: Setting) -> dict[str, Any]:
    """Times forward and backward of one multi-valued field, mean over a bag, to a gradient of the
    table.
    """
    batch = key["batch"]
    each = key["ids a bag"]
    rows = DRY_ROWS if setting.dry else ROWS
    work = Work(1, rows, key["width"], batch * each, key["ids"], setting.device)
    batches = [ids.flatten() for ids in work.batches()]
    offsets = torch.arange(batch + 1, device=setting.device) * each
    grad = torch.randn(batch, key["width"], generator=torch.Generator().manual_seed(1)).to(
        setting.device
    )
    table = bag_table(key["contestant"], work)

    def run(ids: Tensor) -> Tensor:
        table.weight.grad = None
        table(ids, offsets).backward(grad)
        gradient = table.weight.grad
        return gradient.coalesce() if gradient.is_sparse else gradient

    true = torch.zeros(rows, key["width"], dtype=torch.float64, device=setting.device)
    true.index_add_(0, batches[0], grad.double().repeat_interleave(each, 0) / each)
    error = ((run(batches[0]).to_dense() - true).abs().max() / true.abs().max()).item()
    if not error <= AGREES:
        return {
            "error": error,
            "wrong": f"another gradient: error {error:.3g} of the largest, allowed {AGREES:g}",
        }
    others = itertools.cycle(batches)
    return {"error": error} | figures(lambda: run(next(others)), setting.device)


def bag_table(name: str, work: Work) -> nn.Module:
    if name != OURS:
        options = {
            "mode": "mean",
            "include_last_offset": True,
            "freeze": False,
            "sparse": "sparse" in name,
        }
        return nn.EmbeddingBag.from_pretrained(work.start(), **options)
    table = af.FusedEmbedding([work.rows], work.width, device=work.device)
    with torch.no_grad():
        table.weight.copy_(work.start())
    return table
