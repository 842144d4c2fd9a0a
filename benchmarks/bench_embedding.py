"""FusedEmbedding and its optimizers beside nn.Embedding, nn.EmbeddingBag and, where installed,
FBGEMM.

    python -m pytest benchmarks/bench_embedding.py --benchmark-only   groups to compare at a glance
    python -m benchmarks.bench_embedding        -> results/embedding-*.json, embedding.png

FBGEMM on the CPU: pip install --no-deps fbgemm-gpu-cpu==1.8.0 beside torch 2.13. Nothing is timed
before its results were compared.
"""

from collections.abc import Iterator
from typing import Any

import pytest

from benchmarks import RESULTS, render
from benchmarks.embedding import (
    PEERS,
    Run,
    Workload,
    bags,
    copy_rate,
    floor_bytes,
    forwards,
    growth,
    steps,
    table_bytes,
)
from benchmarks.measure import options, side_by_side, write

MAIN = Workload(fields=100, batch=1024, rows=10_000)
LARGE = [
    Workload(fields=20, batch=1024, rows=1_000_000),
    Workload(fields=100, batch=8192, rows=10_000),
]
# The same batches on tables of 10,000 and of 1M rows a field.
GROWTH = (
    Workload(fields=20, batch=1024, rows=10_000),
    Workload(fields=20, batch=1024, rows=1_000_000, spread=100),
)


@pytest.mark.parametrize("name", ["ours", "concatenated nn.Embedding", "list of nn.Embedding"])
def test_forward(benchmark, name):
    benchmark.group = f"forward {MAIN}"
    benchmark(forwards(MAIN)[name])


@pytest.mark.parametrize("optimizer", list(PEERS))
def test_step(benchmark, optimizer):
    benchmark.group = f"step {MAIN}"
    benchmark(steps(MAIN, optimizer)["ours"])


@pytest.mark.parametrize("name", list(bags(batch=2)))
def test_bags(benchmark, name):
    benchmark.group = "bags of 250"
    benchmark(bags()[name])


def cases() -> Iterator[tuple[str, Workload | str, dict[str, Run]]]:
    """What is measured, the workload and the contestants; made one after another, since large
    tables fill memory.
    """
    for work in [MAIN, *LARGE]:
        yield "forward", work, forwards(work)
        for optimizer in PEERS:
            yield optimizer, work, steps(work, optimizer)
    yield "bags", "250 ids each, B=1024 V=100000", bags()
    yield "growth", "Adam, F=20 B=1024, 10000 rows a field occur", growth(*GROWTH)


def measure(
    case: str, work: Workload | str, runs: dict[str, Run], seconds: float
) -> dict[str, Any]:
    """Medians, and for look-ups and steps what the least traffic would take."""
    found = {"case": case, "workload": str(work), "ms": side_by_side(runs, seconds)}
    if isinstance(work, Workload):
        size, rate = floor_bytes(work, case), copy_rate(table_bytes(work, case))
        found |= {
            "floor_mb": size / 1e6,
            "copy_gb_per_s": rate / 1e9,
            "floor_ms": 1e3 * size / rate,
        }
    return found


def draw(measured: list[dict[str, Any]]) -> None:
    """Milliseconds of everyone at the main workload -> results/embedding.png."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    shown = [case for case in measured if case["workload"] == str(MAIN)]
    figure, axis = plt.subplots(figsize=(9, 5.5), layout="constrained")
    at, ticks = 0, []
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
