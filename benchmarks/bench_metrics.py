"""AUC, GAUC and log-loss of millions of rows, beside scikit-learn's AUC.

    python -m pytest benchmarks/bench_metrics.py --benchmark-only   a million rows
    python -m benchmarks.bench_metrics        10 M and 40 M rows -> results/metrics-*.json

The rows are those of an impression log: 4 % positives, ten rows a user on average and some users
with many, float32 logits.
"""

import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from adaftr_fast.training.metrics import auc, gauc, log_loss
from benchmarks import render
from benchmarks.measure import write

SIZES = [10_000_000, 40_000_000]
SKLEARN = "AUC of scikit-learn"
Log = tuple[np.ndarray, np.ndarray, np.ndarray]


def log(rows: int) -> Log:
    """Labels uint8, logits float32 and user numbers int64, each [rows]."""
    random = np.random.default_rng(0)
    user = (rows // 10 * random.random(rows) ** 2).astype(np.int64)
    score = random.standard_normal(rows, np.float32) - np.float32(3.6)
    label = random.random(rows, np.float32) < 1 / (1 + np.exp(-score))
    return label.astype(np.uint8), score, user


def contestants(rows: Log) -> dict[str, Callable[[], float]]:
    label, score, user = rows
    return {
        "AUC": lambda: auc(label, score),
        "GAUC": lambda: gauc(label, score, user),
        "GAUC weighted by impressions": lambda: gauc(label, score, user, "impressions"),
        "log-loss": lambda: log_loss(label, score),
        SKLEARN: lambda: roc_auc_score(label, score),
    }


@pytest.mark.parametrize("name", list(contestants(log(10))))
def test_metrics(benchmark, name):
    benchmark.group = "metrics of 1 M rows"
    benchmark.pedantic(contestants(log(1_000_000))[name], rounds=3)


def measure(rows: int) -> dict[str, Any]:
    """Seconds of each metric at its first call, and the most memory that AUC and GAUC take beyond
    their arguments.
    """
    runs = contestants(log(rows))
    if rows > SIZES[0]:
        del runs[SKLEARN]  # takes minutes
    seconds = {}
    values = {}
    for name, run in runs.items():
        start = time.perf_counter()
        values[name] = run()
        seconds[name] = time.perf_counter() - start
    if SKLEARN in values and abs(values["AUC"] - values[SKLEARN]) > 1e-9:
        raise RuntimeError(
            f"bench_metrics: AUC {values['AUC']} differs from scikit-learn's {values[SKLEARN]}"
        )
    tracemalloc.start()
    runs["AUC"](), runs["GAUC"]()
    memory = tracemalloc.get_traced_memory()[1] / 2**20
    tracemalloc.stop()
    return {"case": f"{rows:,} rows, {rows // 10:,} users", "seconds": seconds, "MiB": memory}


def main() -> None:
    cases = [measure(rows) for rows in SIZES]
    print(render.metrics(cases))
    print(write("metrics", cases))


if __name__ == "__main__":
    main()
