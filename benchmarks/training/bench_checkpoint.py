"""What a snapshot costs: the training time that it takes within an epoch, and the time to write it on several ranks.

    python -m benchmarks.training.bench_checkpoint    -> results/checkpoint-*.json
    python -m benchmarks.training.bench_checkpoint --only_ranks    prints the times by ranks, and writes no file

Training: steps of AdaFTR on MMoE (B = 1024, 23 fields, E = 8, exact Adam) until a thread has written a snapshot, and as
many steps without one before and after. The lost time is the difference to the mean of these, and the pause is the part
of it in which training waits for the copy. The write time is that of a snapshot for which training waits.

Ranks: a table with Adagrad's sums, an equal part on each rank, without training. "write s" is the time of a snapshot,
and "checkpoint s" that of the best weights, without sums and with SHA-256 instead of CRC-32. The memory is the
peak of rank 0 beyond its rows and libraries.
"""

import argparse
import itertools
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from adaftr_fast.config import OptimizerConfig, RunConfig, TrainingConfig
from adaftr_fast.data.dataset.batch import Batch
from adaftr_fast.data.dataset.loader import Split
from adaftr_fast.distributed.ranks import Ranks
from adaftr_fast.models import ModelConfig, build_model
from adaftr_fast.torchrec.rows import Shard, ShardedRows
from adaftr_fast.training.checkpoint.progress import Progress
from adaftr_fast.training.checkpoint.run_snapshots import RunSnapshots
from adaftr_fast.training.checkpoint.state import capture
from adaftr_fast.training.checkpoint.weights import Description, save_checkpoint
from adaftr_fast.training.trainer import BEST, Trainer
from benchmarks.measure import write

FIELDS = 23
TASKS = ["click", "conversion"]
BATCH = 1024
BATCHES = 100
WIDTH = 8
ABOUT = Description(config=RunConfig(), fingerprint="", num_embeddings=[], tasks=TASKS, metrics={})


def split(rows: int, ids: int) -> Split:
    """Rows with log-uniform ids in [0, ids)."""
    random = np.random.default_rng(0)
    values = (float(ids) ** random.random((rows, FIELDS), np.float32)).astype(np.int32) % ids
    labels = torch.from_numpy((random.random((rows, 2)) < 0.1).astype(np.float32))
    return Split.of(Batch(torch.from_numpy(values), labels, torch.zeros(rows, dtype=torch.int64)))


class Steps:
    """Trains with and without a snapshot."""

    def __init__(self, ids: int, folder: Path) -> None:
        torch.manual_seed(0)
        model = build_model(ModelConfig(embedding_dim=WIDTH), [ids] * FIELDS, TASKS)
        config, data = TrainingConfig(batch_size=BATCH, progress=False), split(BATCHES * BATCH, ids)
        self.trainer = Trainer(
            model, data, data, optimizer=OptimizerConfig(), config=config, folder=folder, about=ABOUT
        )
        model.train()
        self.batches = itertools.cycle(list(data.batches(BATCH)))
        assert self.trainer.snapshots is not None
        self.snapshots = self.trainer.snapshots

    def step(self) -> None:
        progress = self.trainer.progress
        self.trainer.means.add(self.trainer.train_step(next(self.batches), 1, progress.step + 1))
        progress.step = progress.step + 1
        progress.total_steps = progress.total_steps + 1

    def plain(self, steps: int) -> float:
        """Returns the time of ``steps`` steps."""
        start = time.perf_counter()
        for _ in range(steps):
            self.step()
        return time.perf_counter() - start

    def with_snapshot(self) -> tuple[int, float, float]:
        """Trains until the thread has written a snapshot; returns the number of steps, their time and the pause."""
        start, steps = time.perf_counter(), 0
        self.snapshots.start(self.trainer.progress, self.state(), self.trainer.means.sums)
        pause = time.perf_counter() - start
        while self.snapshots._is_busy() or not steps:
            self.step()
            steps += 1
        return steps, time.perf_counter() - start, pause

    def write(self) -> float:
        """Returns the time of a snapshot for which training waits."""
        start = time.perf_counter()
        self.snapshots.save(self.trainer.progress, self.state(), self.trainer.means.sums)
        return time.perf_counter() - start

    def state(self) -> dict[str, torch.Tensor]:
        return capture(self.trainer.model, self.trainer.stepper.optimizers)


def training(ids: int, turns: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(dir=".") as folder:
        steps = Steps(ids, Path(folder))
        count, _, _ = steps.with_snapshot()  # allocates the copy
        lost = []
        pauses = []
        writes = []
        threads = []
        counts = []
        for _ in range(turns):
            before = steps.plain(count) / count
            count, seconds, pause = steps.with_snapshot()
            lost.append(seconds - count * (before + steps.plain(count) / count) / 2)
            pauses.append(pause)
            threads.append(seconds)
            counts.append(count)
            writes.append(steps.write())
        return {
            "case": "training",
            "GB": sum(each.nbytes for each in steps.state().values()) / 1e9,
            "steps": statistics.median(counts),
            "write s": statistics.median(writes),
            "thread s": statistics.median(threads),
            "pause s": statistics.median(pauses),
            "lost s": statistics.median(lost),
            "lost s of each": [round(each, 3) for each in lost],
        }


def rank_times(rank: int, size: int, rows: int, turns: int, folder: str, results: Any) -> None:
    """Saves a table that ``size`` ranks share; rank 0 puts the times and its memory into ``results``."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size)
    part = rows // size
    local = {"table": torch.ones(part, WIDTH), "sums": torch.ones(part, WIDTH)}
    sharded = {
        name: ShardedRows([Shard(n, part, value if n == rank else None) for n in range(size)], [WIDTH])
        for name, value in local.items()
    }
    ranks = Ranks(dist.HashStore(), 600)
    run, dense = RunSnapshots(Path(folder), ABOUT, 1, 0, ranks), {"dense": torch.ones(10)}
    weights, model = {"table": sharded["table"]}, torch.nn.Linear(3, 3)
    before = peak()
    times = []
    checkpoints = []
    for turn in range(turns):
        start = time.perf_counter()
        run.save(Progress(total_steps=turn), dense, {}, sharded)
        times.append(time.perf_counter() - start)
        dist.barrier()
        start = time.perf_counter()
        save_checkpoint(Path(folder, BEST), model, ABOUT, weights, ranks)
        dist.barrier()  # rank 0 ends last
        checkpoints.append(time.perf_counter() - start)
    if rank == 0:
        medians = {"write s": statistics.median(times), "checkpoint s": statistics.median(checkpoints)}
        results.put(medians | {"MB": (peak() - before) / 1e6})
    dist.barrier()
    dist.destroy_process_group()


def peak() -> int:
    """Returns the most memory in bytes that this process has held."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def by_ranks(sizes: list[int], rows: int, turns: int) -> list[dict[str, Any]]:
    cases = []
    for size in sizes:
        context = torch.multiprocessing.get_context("spawn")
        results = context.SimpleQueue()
        with tempfile.TemporaryDirectory(dir=".") as folder:
            arguments = (size, rows, turns, str(Path(folder).resolve()), results)
            torch.multiprocessing.start_processes(rank_times, arguments, size, start_method="spawn")
        about = {"case": "ranks", "ranks": size, "GB": 2 * 4 * WIDTH * rows / 1e9, "turns": turns}
        cases.append(about | results.get())
    return cases


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ids", type=int, default=50_000, help="of every field")
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--table", type=int, default=5_000_000, help="rows of the table of all ranks")
    parser.add_argument("--only_ranks", action="store_true", help="print the times by ranks, and write no file")
    arguments = parser.parse_args()
    cases = [] if arguments.only_ranks else [training(arguments.ids, arguments.turns)]
    cases += by_ranks(arguments.ranks, arguments.table, arguments.turns)
    print(*cases, sep="\n")
    if not arguments.only_ranks:
        print(write("checkpoint", cases))


if __name__ == "__main__":
    main()
