"""Look-ups, whole steps with each optimizer, and bags, ours and others'.

A step is forward, backward and update. Nothing is timed before it has trained a small table as the definition of the
optimizer does in float64.
"""

import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from benchmarks.bench_embedding import STEADY, stepping
from benchmarks.embedding import AGREES, LAZY, PEERS, Work, bags, contestants, disagreement, forwards
from benchmarks.gpu.cells import Cell, Setting
from benchmarks.gpu.timing import figures

LIMIT = 120  # seconds of a cell
ROWS = 100_000  # of a field
# Ids, B, F and E; the shapes whose figures say most come first.
SHAPES = [
    ("zipf", 8192, 23, 8),
    ("zipf", 65_536, 23, 8),
    ("zipf", 1024, 23, 8),
    ("zipf", 8192, 23, 64),
    ("zipf", 8192, 121, 16),
    ("uniform", 8192, 23, 8),
    ("uniform", 65_536, 23, 32),
]
GRID = itertools.product(("zipf", "uniform"), (1024, 8192, 65_536), (23, 121), (8, 16, 32, 64))
FIRST, REST = (
    [Work(fields, batch, ROWS, width, ids) for ids, batch, fields, width in shapes]
    for shapes in (SHAPES, [shape for shape in GRID if shape not in SHAPES])
)
BAGS = [Work(1, 1024, ROWS), Work(1, 8192, ROWS), Work(1, 8192, ROWS, ids="uniform")]
BAG, DRY_BAG = 50, 3  # ids a bag
TABLES = ("ours", "nn.EmbeddingBag, sparse and coalesced", "nn.EmbeddingBag, dense gradient")


def cells(setting: Setting) -> Iterator[Cell]:
    """Yields the first shapes, then bags, then the rest of the grid."""
    first, rest, of_bags, bag = FIRST, REST, BAGS, BAG
    if setting.dry:
        first, rest, of_bags, bag = [Work(3, 8, 50)], [], [Work(1, 4, 50)], DRY_BAG
    for work in first:
        yield from of_shape(work, setting)
    for work in of_bags:
        for name in TABLES:
            key = {"case": "bags", "ids": work.ids, "batch": work.batch, "ids a bag": bag, "width": work.width}
            yield Cell(key | {"contestant": name}, lambda w=work, n=name: of_bag(w, bag, n, setting))
    for work in rest:
        yield from of_shape(work, setting)


def of_shape(work: Work, setting: Setting) -> Iterator[Cell]:
    on = replace(work, device=setting.device)
    for case in ("forward", *reversed(PEERS)):
        names = ("ours", "concatenated nn.Embedding") if case == "forward" else contestants(case, work.rows)
        for name in (name for name in names if name != LAZY):
            key = {"case": case, "ids": work.ids, "batch": work.batch, "fields": work.fields, "width": work.width}
            yield Cell(key | {"contestant": name}, lambda c=case, n=name: measure(c, n, on, setting))


def measure(case: str, name: str, work: Work, setting: Setting) -> dict[str, Any]:
    """Returns how far the contestant is from the definition and, if it is right, its times."""
    if case == "forward":
        return {"error": 0.0} | figures(forwards(work)[name], setting.device)  # of equal results
    make = contestants(case, work.rows)[name]
    found: dict[str, Any] = {"error": disagreement(make, replace(work, rows=40, batch=30), case)}
    if not found["error"] <= AGREES:
        return found | {"wrong": f"another table: error {found['error']:.3g} of the largest change, allowed {AGREES:g}"}
    warmup = STEADY if (case, name) == ("Adam", "ours") and not setting.dry else 0
    return found | figures(stepping(make, work, warmup), setting.device)


def of_bag(work: Work, bag: int, name: str, setting: Setting) -> dict[str, Any]:
    """Times forward and backward of one multi-valued field, mean over a bag, to a gradient of the table."""
    runs = bags(replace(work, device=setting.device), bag)
    return figures(runs[name], setting.device)
