"""Rows per second from a prepared parquet file to shuffled batches of tensors: 23 fields, B = 1024.

    python -m benchmarks.bench_loader        -> results/loader-*.json

Also measures torch's DataLoader over a Dataset of the same rows in memory, which reads no file.
"""

import tempfile
import time
from pathlib import Path

from torch.utils.data import DataLoader, TensorDataset

from adaftr_fast.data.dataset.loader import PreparedData, Split
from benchmarks import render
from benchmarks.measure import options, write
from benchmarks.prepared import write_prepared

BATCH = 1024


def epochs(split: Split, seconds: float) -> list[float]:
    """Returns rows per second of complete passes: as many as fit into ``seconds``, at
    least three.
    """
    rates = []
    while len(rates) < 3 or sum(len(split) / rate for rate in rates) < seconds:
        start = time.perf_counter()
        rows = sum(len(batch) for batch in split.shuffled(BATCH, seed=0, epoch=len(rates)))
        rates.append(rows / (time.perf_counter() - start))
    return rates


def peer(split: Split, rows: int) -> float:
    """Returns rows per second of DataLoader's default collation over tensors in memory."""
    content = next(split.batches(rows))
    batches = iter(DataLoader(TensorDataset(content.ids, content.labels), BATCH, shuffle=True))
    start = time.perf_counter()
    for _ in batches:
        pass
    return rows / (time.perf_counter() - start)


def main() -> None:
    seconds = 5.0, "seconds of passes per number of ids"
    arguments = options(__doc__, rows=4_000_000, seconds=seconds, threads=2)
    cases = []
    for ids in (10_000, 1_000_000):
        with tempfile.TemporaryDirectory() as folder:
            write_prepared(Path(folder), arguments.rows, ids)
            size = (Path(folder) / "train.parquet").stat().st_size
            split = PreparedData(folder).load("train")
            rates = sorted(epochs(split, arguments.seconds))
            case = {
                "ids a field": ids,
                "bytes a row": round(size / len(split), 1),
                "million rows/s": round(rates[len(rates) // 2] / 1e6, 2),
                "DataLoader in memory, million rows/s": round(peer(split, 100_000) / 1e6, 3),
            }
        cases.append(case)
    print(render.loader(cases))
    print(write("loader", cases))


if __name__ == "__main__":
    main()
