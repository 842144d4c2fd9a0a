"""FusedEmbedding and its optimizers beside nn.Embedding, nn.EmbeddingBag and, where installed, FBGEMM.

    python -m benchmarks.bench_embedding        -> results/embedding-*.json, embedding.png

FBGEMM on the CPU: pip install --no-deps fbgemm-gpu-cpu==1.8.0 beside torch 2.13. Nothing is timed before its results
were compared.
"""

import argparse
import itertools
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks import RESULTS, render
from benchmarks.embedding import (
    AGREES,
    LAZY,
    PEERS,
    Make,
    Run,
    Work,
    bags,
    contestants,
    disagreement,
    forwards,
)
from benchmarks.measure import pyplot, side_by_side, write

MAIN = Work(fields=100, batch=1024, rows=10_000)
LARGE = [Work(fields=20, batch=1024, rows=1_000_000), Work(fields=100, batch=8192, rows=10_000)]
# The same batches on tables of 10,000 and of 1M rows a field.
GROWTH = Work(fields=20, batch=1024, rows=10_000), Work(fields=20, batch=1024, rows=1_000_000, spread=100)
STEADY = 350  # steps of exact Adam before it is timed: in the first few hundred it replays missed steps one by one
LINE = 64  # bytes: memory moves in cache lines
ROW = 4 * MAIN.width  # bytes of a row of float32
# Bytes of optimizer state a row has; exact Adam also keeps the step a row is current to, in a table of its own.
STATE = {"SGD": [], "RowwiseAdagrad": [4], "Adagrad": [ROW], "LazyAdam": [2 * ROW], "Adam": [2 * ROW, 4]}


def stepping(make: Make, work: Work, warmup: int = 0) -> Run:
    """Returns what takes a step on the next batch, after some steps."""
    table, batches, grad = make(work), itertools.cycle(work.batches()), work.grad()
    for _ in range(warmup):
        table.step(next(batches), grad)
    return lambda: table.step(next(batches), grad)


def steps(work: Work, optimizer: str) -> dict[str, Run]:
    """Whole steps, once the contestants have been seen to follow the optimizer's definition on a small workload."""
    makes = contestants(optimizer, work.rows)
    for name, make in makes.items():
        error = 0.0 if name == LAZY else disagreement(make, Work(fields=5, batch=64, rows=100), optimizer)
        if not error <= AGREES:
            raise RuntimeError(f"{optimizer}: {name} has trained another table: error {error:.3g}")
    warmup = STEADY if optimizer == "Adam" else 3
    return {name: stepping(make, work, warmup if name == "ours" else 0) for name, make in makes.items()}


def growth(small: Work, large: Work) -> dict[str, Run]:
    """Adam's steps on two tables that differ in their size alone."""
    makes = contestants("Adam", large.rows)
    return {
        f"{name.removeprefix('concatenated + ')}, V={work.rows}": stepping(makes[name], work, warmup)
        for work in (small, large)
        for name, warmup in (("ours", STEADY), ("concatenated + dense fused Adam", 0))
    }


def cases() -> Iterator[tuple[str, Work | str, dict[str, Run]]]:
    """What is measured, the workload and the contestants; made one after another, since large tables fill memory."""
    for work in [MAIN, *LARGE]:
        yield "forward", work, forwards(work)
        for optimizer in PEERS:
            yield optimizer, work, steps(work, optimizer)
    yield "bags", "250 ids each, B=1024 V=100000", bags(Work(fields=1, batch=1024, rows=100_000), 250)
    yield "growth", "Adam, F=20 B=1024, 10000 rows a field occur", growth(*GROWTH)


def lines(rows: Tensor, record: int) -> int:
    """Bytes of the cache lines that hold the records of ``rows``, ``record`` bytes each in one table."""
    return LINE * len(torch.unique(rows * record // LINE))


def floor_bytes(work: Work, case: str) -> float:
    """The least that must move: each line once to look up, and once each way to update; a mean over the batches.

    Look-up: ids, rows, output. A step: the ids again, the gradient, and rows and state there and back.
    """
    total = 0
    for ids in work.batches():
        rows, look_ups = torch.unique(ids + work.first()), ids.numel()
        total += look_ups * (8 + ROW) + lines(rows, ROW)
        if case != "forward":
            total += look_ups * (8 + ROW) + 2 * sum(lines(rows, record) for record in [ROW, *STATE[case]])
    return total / len(work.batches())


def copy_rate(size: int) -> float:
    """Bytes a second, read and written, on all threads, where one half of ``size`` bytes is copied over the other.

    Tables that fit into a cache are copied from there, and larger ones from memory, as their rows are.
    """
    source = torch.ones(size // 2, dtype=torch.uint8)
    target = torch.empty_like(source)
    milliseconds = side_by_side({"copy": partial(target.copy_, source)}, seconds=0.3)["copy"]
    return 2 * len(source) / (milliseconds / 1e3)


def measure(case: str, work: Work | str, runs: dict[str, Run], seconds: float) -> dict[str, Any]:
    """Medians, and for look-ups and steps what the least traffic would take."""
    found = {"case": case, "workload": str(work), "ms": side_by_side(runs, seconds)}
    if isinstance(work, Work):
        of_tables = work.fields * work.rows * (ROW + sum(STATE.get(case, [])))
        size, rate = floor_bytes(work, case), copy_rate(of_tables)
        found |= {"floor_mb": size / 1e6, "copy_gb_per_s": rate / 1e9, "floor_ms": 1e3 * size / rate}
    return found


def draw(measured: list[dict[str, Any]]) -> None:
    """Milliseconds of everyone at the main workload -> results/embedding.png."""
    figure, axis = pyplot().subplots(figsize=(9, 5.5), layout="constrained")
    at, ticks = 0, []
    for case in (case for case in measured if case["workload"] == str(MAIN)):
        for name, ms in case["ms"].items():
            axis.barh(at, ms, color="tab:blue" if name == "ours" else "tab:gray")
            axis.text(ms, at, f" {ms:.2f}", va="center", fontsize=7)
            ticks.append((at, f"{case['case']}: {name}"))
            at += 1
        at += 1  # a gap between cases
    axis.set_yticks([place for place, _ in ticks], [label for _, label in ticks], fontsize=7)
    axis.invert_yaxis()
    axis.set(xscale="log", xlabel=f"ms ({MAIN}, E=8, float32); forward, and steps by optimizer")
    axis.grid(axis="x", alpha=0.3)
    figure.savefig(RESULTS / "embedding.png", dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2.0, help="time for each contestant")
    arguments = parser.parse_args()
    measured = []
    for case, workload, runs in cases():
        measured.append(measure(case, workload, runs, arguments.seconds))
        del runs
        print(case, workload, {name: round(ms, 3) for name, ms in measured[-1]["ms"].items()}, flush=True)
    print(render.embedding(measured), render.embedding_growth(measured), sep="\n\n")
    draw(measured)
    print(write("embedding", measured))


if __name__ == "__main__":
    main()
