"""FusedEmbedding and its optimizers beside nn.Embedding, nn.EmbeddingBag and, where installed,
FBGEMM.

    python -m pytest benchmarks/bench_embedding.py --benchmark-only   groups to compare at a glance
    python -m benchmarks.bench_embedding        -> results/embedding-*.json, embedding.png

FBGEMM on the CPU: pip install --no-deps fbgemm-gpu-cpu==1.8.0 beside torch 2.13. Nothing is timed
before its results were compared.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from benchmarks import RESULTS, render
from benchmarks.embedding import (
    AGREES,
    BAGS,
    OURS,
    STATES,
    Run,
    Work,
    bag_step,
    concatenated,
    contestants,
    copy_rate,
    disagreement,
    floor_bytes,
    listed,
    mixed,
    ours,
    records,
    settle,
    stepper,
)
from benchmarks.measure import options, side_by_side, write

MAIN = Work(fields=100, batch=1024, rows=10_000)
LARGE = [
    Work(fields=20, batch=1024, rows=1_000_000),
    Work(fields=100, batch=8192, rows=10_000),
]
# The same batches on tables of 10,000 and of 1M rows a field.
GROWTH = (
    Work(fields=20, batch=1024, rows=10_000),
    Work(fields=20, batch=1024, rows=1_000_000, spread=100),
)
SMALL = Work(fields=5, batch=64, rows=100)
LISTED = 100_000  # rows up to which a table a field is measured, too
FORWARD = {OURS: ours, "concatenated nn.Embedding": concatenated, "list of nn.Embedding": listed}
LAZY = "concatenated + SparseAdam (lazy)"
"""A peer of exact Adam for its speed alone: it does other arithmetic."""
WIDTHS = (4, 5, 8, 12, 16, 32, 64)
BAG_ROWS = 1024
PER_BAG = 250


def forwards(work: Work) -> dict[str, Run]:
    """Look-ups alone, once their results have been compared."""
    tables = {name: make(work, "SGD") for name, make in FORWARD.items()}
    first, *others = (table.look_up(work.batches()[0]) for table in tables.values())
    if not all(torch.equal(first, each) for each in others):
        raise AssertionError(f"forward, {work}: the contestants' results differ")
    return {name: _look_ups(table.look_up, work) for name, table in tables.items()}


def _look_ups(look_up: Callable[[Tensor], Tensor], work: Work) -> Run:
    batches = itertools.cycle(work.batches())
    return torch.no_grad()(lambda: look_up(next(batches)))


def steps(work: Work, optimizer: str) -> dict[str, Run]:
    """Whole steps, once each contestant has trained a small table as the optimizer is defined."""
    makes = contestants(optimizer, "cpu")
    for name, make in makes.items():
        if not disagreement(make, SMALL, optimizer) <= AGREES:
            raise AssertionError(f"{optimizer}, {SMALL}: {name} has trained another table")
    runs = {
        name: stepper(make(work, optimizer), work)
        for name, make in makes.items()
        if work.rows <= LISTED or make is not listed
    }
    if optimizer == "Adam":
        settle(runs[OURS])
        runs[LAZY] = stepper(concatenated(work, "LazyAdam"), work)
    return runs


def growth(works: tuple[Work, Work]) -> dict[str, Run]:
    """Adam's steps on two tables that differ in their size alone."""
    return {
        f"{name.removeprefix('concatenated + ')}, V={work.rows}": run
        for work in works
        for name, run in steps(work, "Adam").items()
        if name != LAZY
    }


def widths(work: Work) -> dict[str, Run]:
    """Our steps of exact Adam at each width, and of a table whose fields have these widths in
    turns.
    """
    runs = {}
    for width in WIDTHS:
        if not disagreement(ours, replace(SMALL, width=width), "Adam") <= AGREES:
            raise AssertionError(f"Adam, E={width}: ours has trained another table")
        of_width = replace(work, width=width)
        runs[f"E={width}"] = stepper(ours(of_width, "Adam"), of_width)
    runs["mixed"] = mixed(work, WIDTHS)
    for run in runs.values():
        settle(run)
    return runs


def bags() -> dict[str, Run]:
    """Forward and backward of one multi-valued field, once gradients have been compared."""
    work = Work(fields=1, batch=BAG_ROWS * PER_BAG, rows=100_000)
    runs = {}
    for name in BAGS:
        runs[name], error = bag_step(name, work, PER_BAG)
        if not error <= AGREES:
            raise AssertionError(f"bags: {name} has another gradient")
    return runs


@pytest.mark.parametrize("name", FORWARD)
def test_forward(benchmark, name):
    benchmark.group = f"forward {MAIN}"
    benchmark(forwards(MAIN)[name])


@pytest.mark.parametrize("optimizer", STATES)
def test_step(benchmark, optimizer):
    benchmark.group = f"step {MAIN}"
    benchmark(steps(MAIN, optimizer)[OURS])


@pytest.mark.parametrize("name", BAGS)
def test_bags(benchmark, name):
    benchmark.group = f"bags of {PER_BAG}"
    benchmark(bags()[name])


def cases() -> Iterator[tuple[str, Work | str, dict[str, Run]]]:
    """What is measured, the workload and the contestants; made one after another, since large
    tables fill memory.
    """
    for work in [MAIN, *LARGE]:
        yield "forward", work, forwards(work)
        for optimizer in STATES:
            yield optimizer, work, steps(work, optimizer)
    yield "bags", f"{PER_BAG} ids each, B={BAG_ROWS} V=100000", bags()
    yield "widths", f"Adam, {GROWTH[0]}", widths(GROWTH[0])
    yield "growth", "Adam, F=20 B=1024, 10000 rows a field occur", growth(GROWTH)


def measure(case: str, work: Work | str, runs: dict[str, Run], seconds: float) -> dict[str, object]:
    """Medians, and for look-ups and steps what the least traffic would take."""
    found = {"case": case, "workload": str(work), "ms": side_by_side(runs, seconds)}
    if isinstance(work, Work):
        table = work.fields * work.rows * sum(records(work, case))
        size = floor_bytes(work, case)
        rate = copy_rate(table)
        found |= {"floor_mb": size / 1e6, "copy_gb_per_s": rate / 1e9}
        found["floor_ms"] = 1e3 * size / rate
    return found


def draw(measured: list[dict]) -> None:
    """Milliseconds of everyone at the main workload -> results/embedding.png."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    shown = [case for case in measured if case["workload"] == str(MAIN)]
    figure, axis = plt.subplots(figsize=(9, 5.5), layout="constrained")
    at = 0
    ticks = []
    for case in shown:
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
    axis.margins(x=0.06)  # for the numbers beside the longest bars
    figure.savefig(RESULTS / "embedding.png", dpi=110)


def main() -> None:
    arguments = options(__doc__, seconds=(2.0, "time for each contestant"))
    measured = []
    for case, workload, runs in cases():
        measured.append(measure(case, workload, runs, arguments.seconds))
        del runs
        print(
            case,
            workload,
            {name: round(ms, 3) for name, ms in measured[-1]["ms"].items()},
            flush=True,
        )
    print(render.embedding(measured), render.embedding_growth(measured), sep="\n\n")
    draw(measured)
    print(write("embedding", measured))


if __name__ == "__main__":
    main()
