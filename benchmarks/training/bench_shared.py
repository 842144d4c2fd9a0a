"""Samples a second of training beside other work, for several waits of OpenMP's threads.

    python -m benchmarks.training.bench_shared         -> results/shared-*.json

Trains AdaFTR on MMoE as benchmarks.bench_trainer does, in a process of its own for each GOMP_SPINCOUNT, on an idle
machine and beside busy processes, in turns. "default" leaves the variable unset.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.measure import write
from benchmarks.prepared import write_prepared

DEFAULT = "default"
SPIN = "GOMP_SPINCOUNT"
BATCH = 1024


def worker(folder: str) -> None:
    """Trains an epoch after one to warm up, and prints samples a second."""
    from adaftr_fast.data.dataset.loader import PreparedData
    from adaftr_fast.models import ModelConfig
    from benchmarks.bench_trainer import ours

    data = PreparedData(folder)
    run = ours(data, data.load("train"), ModelConfig())
    run()
    print(json.dumps(run()))


@contextmanager
def busy(count: int) -> Iterator[None]:
    """Runs ``count`` processes that compute without end during the block."""
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_spin, daemon=True) for _ in range(count)]
    for each in processes:
        each.start()
    try:
        yield
    finally:
        for each in processes:
            each.kill()
            each.join()


def _spin() -> None:
    while True:
        pass


def rate(spin: str, folder: str, limit: float) -> float:
    """Returns samples a second of one process; 0 if it takes more than ``limit`` seconds."""
    environment = {name: value for name, value in os.environ.items() if name != SPIN}
    if spin != DEFAULT:
        environment[SPIN] = spin
    command = [sys.executable, "-m", "benchmarks.training.bench_shared", "--worker", folder]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=limit)
    except subprocess.TimeoutExpired:
        return 0.0
    return float(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spins", nargs="+", default=[DEFAULT, "10000", "3000", "1000", "300", "0"])
    parser.add_argument("--busy", type=int, nargs="+", default=[0, 2, 6], help="processes beside the training")
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--limit", type=float, default=120.0, help="seconds of one process")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        return worker(arguments.worker)
    cases = []
    with tempfile.TemporaryDirectory() as folder:
        write_prepared(Path(folder), arguments.rows, 10_000, held_out=BATCH)
        for count in arguments.busy:
            rates: dict[str, list[float]] = {spin: [] for spin in arguments.spins}
            for _ in range(arguments.turns):
                for spin, found in rates.items():
                    with busy(count):
                        found.append(rate(spin, folder, arguments.limit))
            medians = {spin: round(statistics.median(found)) for spin, found in rates.items()}
            cases.append({"busy processes": count, "samples/s": medians})
            print(cases[-1], flush=True)
    print(write("shared", cases))


if __name__ == "__main__":
    main()
