"""FusedEmbedding and its optimizers beside nn.Embedding, nn.EmbeddingBag and, where installed, FBGEMM.

    python -m pytest benchmarks/bench_embedding.py --benchmark-only    groups to compare at a glance
    python -m benchmarks.bench_embedding                               all of it in turns -> results/embedding.json

FBGEMM on the CPU: pip install --no-deps fbgemm-gpu-cpu==1.8.0 beside torch 2.13.
"""

import argparse
import importlib.util

import pytest

from benchmarks.embedding_cases import Workload, bags, fbgemm_steps, forwards, steps
from benchmarks.measure import side_by_side, write

MAIN = Workload(fields=100, batch=1024, rows=10_000)
LARGE_TABLES = Workload(fields=20, batch=1024, rows=1_000_000)
LARGE_BATCH = Workload(fields=100, batch=8192, rows=10_000)
HAS_FBGEMM = importlib.util.find_spec("fbgemm_gpu") is not None


@pytest.mark.parametrize("name", ["ours", "concatenated nn.Embedding", "list of nn.Embedding"])
def test_forward(benchmark, name):
    benchmark.group = f"forward {MAIN}"
    benchmark(forwards(MAIN)[name])


@pytest.mark.parametrize("name", ["SGD", "Adagrad", "RowwiseAdagrad", "LazyAdam", "Adam"])
def test_step(benchmark, name):
    benchmark.group = f"step {MAIN}"
    benchmark(steps(MAIN, dense=False)[name])


@pytest.mark.parametrize("name", list(bags(batch=2)))
def test_bags(benchmark, name):
    benchmark.group = "bags of 250"
    benchmark(bags()[name])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2.0, help="time for each contestant")
    parser.add_argument("--large", action="store_true", help="also 20 tables of 1M rows, and batches of 8192")
    arguments = parser.parse_args()
    cases = []
    for work in [MAIN, LARGE_TABLES, LARGE_BATCH] if arguments.large else [MAIN]:
        contestants = steps(work, dense=work is MAIN) | (fbgemm_steps(work) if HAS_FBGEMM else {})
        for kind, runs in (("forward", forwards(work)), ("step", contestants)):
            cases.append({"case": f"{kind} {work}", "ms": side_by_side(runs, arguments.seconds)})
    cases.append({"case": "bags of 250", "ms": side_by_side(bags(), arguments.seconds)})
    for case in cases:
        print(case["case"])
        for name, ms in case["ms"].items():
            print(f"  {name:40s} {ms:9.3f} ms")
    print(write("embedding", cases))


if __name__ == "__main__":
    main()
