"""Rows per second from a prepared parquet file to shuffled batches of tensors: 23 fields, B = 1024.

    python -m benchmarks.bench_loader        -> results/loader-*.json

Also measures torch's DataLoader over a million of these rows as tensors in memory, which reads no
file: row by row, as it does by default, and with an index of each batch.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

from adaftr_fast.data.dataset.loader import PreparedData, Split
from benchmarks import render
from benchmarks.measure import options, write
from benchmarks.prepared import write_prepared

BATCH = 1024
IN_MEMORY = 1_000_000  # rows of a DataLoader


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


def by_rows(content: TensorDataset) -> DataLoader:
    """Returns batches that DataLoader's default collation makes of single rows."""
    return DataLoader(content, BATCH, shuffle=True)


def by_indices(content: TensorDataset) -> DataLoader:
    """Returns batches that an index of ``BATCH`` rows each takes from the tensors."""
    sampler = BatchSampler(RandomSampler(content), BATCH, drop_last=False)
    return DataLoader(content, batch_size=None, sampler=sampler)


def peer(split: Split, batches: Callable[[TensorDataset], DataLoader]) -> float:
    """Returns rows per second of a DataLoader over tensors in memory."""
    content = next(split.batches(IN_MEMORY))
    loader = iter(batches(TensorDataset(content.ids, content.labels)))
    start = time.perf_counter()
    for _ in loader:
        pass
    return len(content) / (time.perf_counter() - start)


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
                "DataLoader by rows, million rows/s": round(peer(split, by_rows) / 1e6, 3),
                "DataLoader by indices, million rows/s": round(peer(split, by_indices) / 1e6, 2),
            }
        cases.append(case)
    print(render.loader(cases))
    print(write("loader", cases))


if __name__ == "__main__":
    main()
