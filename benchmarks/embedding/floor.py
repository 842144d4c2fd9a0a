"""What an embedding step must move through memory, and how fast this machine moves as much."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.embedding.cases import E, Workload
from benchmarks.measure import side_by_side

LINE = 64  # bytes: memory moves in cache lines
ROW = 4 * E  # bytes of a row of float32
# Bytes of optimizer state a row has; exact Adam also keeps the step a row is current to, in a table of its own.
STATE = {"SGD": [], "RowwiseAdagrad": [4], "Adagrad": [ROW], "LazyAdam": [2 * ROW], "Adam": [2 * ROW, 4]}


def lines(rows: Tensor, record: int) -> int:
    """Bytes of the cache lines that hold the records of ``rows``, ``record`` bytes each in one table."""
    return LINE * len(torch.unique(rows * record // LINE))


def floor_bytes(work: Workload, case: str) -> float:
    """The least that must move: each line once to look up, and once each way to update; a mean over the batches.

    Look-up: ids, rows, output. A step: the ids again, the gradient, and rows and state there and back.
    """
    first = torch.arange(work.fields) * work.rows
    total = 0
    for ids in work.ids():
        rows, look_ups = torch.unique(ids + first), ids.numel()
        total += look_ups * (8 + ROW) + lines(rows, ROW)
        if case != "forward":
            total += look_ups * (8 + ROW) + 2 * sum(lines(rows, record) for record in [ROW, *STATE[case]])
    return total / len(work.ids())


def table_bytes(work: Workload, case: str) -> int:
    """Bytes of the table and its optimizer state, which decide whether they stay in cache."""
    return work.fields * work.rows * (ROW + sum(STATE.get(case, [])))


def copy_rate(size: int) -> float:
    """Bytes a second, read and written, on all threads, where one half of ``size`` bytes is copied over the other.

    Tables that fit into a cache are copied from there, and larger ones from memory, as their rows are.
    """
    source = torch.ones(size // 2, dtype=torch.uint8)
    target = torch.empty_like(source)
    milliseconds = side_by_side({"copy": lambda: target.copy_(source)}, seconds=0.3)["copy"]
    return 2 * len(source) / (milliseconds / 1e3)
