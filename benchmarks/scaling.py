"""What a step takes on several ranks: calculated from bytes, flops and measured rates, and checked on this machine.

    python -m benchmarks.scaling          one global batch on 1, 2, 4 processes of a thread -> results/scaling-*.json
    python -m benchmarks.scaling --plan   the table of docs/scaling.md, for machines that are assumed, not measured

W ranks, B rows of a rank and step, F fields, E width, U distinct table rows of B rows, R rows of all tables, P dense
weights, d width of what is contrasted. Bytes are those a rank receives.
"""

import argparse
import json
import math
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from adaftr_fast.config import OptimizerConfig, TrainingConfig
from adaftr_fast.data.dataset.batch import Batch
from adaftr_fast.distributed.gather import gather_rows
from adaftr_fast.distributed.ranks import Ranks
from adaftr_fast.models import ModelConfig, build_model
from adaftr_fast.ops.embedding.lookup import coalesce_gradient
from adaftr_fast.training.stepper import Stepper
from benchmarks.measure import write

FIELDS, IDS, TASKS = 23, 10_000, ["click", "conversion"]
GLOBAL_BATCH = 4096
COLLECTIVES = 7  # a step: sizes, candidates and back, counts, rows, their values, dense gradients


@dataclass(frozen=True)
class Work:
    """A rank's share of a step."""

    ranks: int  # W
    rows: int  # B
    fields: int = FIELDS  # F
    width: int = 8  # E
    distinct: float = 1.0  # U / (B F)
    table_rows: int = FIELDS * IDS  # R
    dense: int = 60_000  # P
    contrasted: int = 64  # d

    @property
    def received(self) -> dict[str, float]:
        """Bytes of a step from other ranks."""
        others, touched = self.ranks - 1, self.distinct * self.rows * self.fields
        return {
            "table rows": others * touched * (8 + 4 * self.width),  # every rank's, number and gradient
            "dense": 2 * others / self.ranks * 4 * self.dense,  # an all-reduce
            "candidates": 2 * others * self.rows * 4 * self.contrasted,  # gathered, and their gradients back
        }

    def sharded(self) -> float:
        """Bytes of a step if each rank held 1 / W of the tables: vectors come, their gradients go."""
        return 2 * (self.ranks - 1) / self.ranks * self.rows * self.fields * 4 * self.width

    def contrast_flops(self, products: int = 3) -> float:
        """Of the loss: ``products`` of [B, d] by [d, W B], forward and backward: 3 on CPU, 4 on GPU."""
        return products * 2 * self.rows * self.ranks * self.rows * self.contrasted

    @property
    def memory(self) -> dict[str, float]:
        """Bytes of a rank: tables with two moments and the step each row is current to, and what is exchanged."""
        touched = self.distinct * self.rows * self.fields
        return {
            "tables": self.table_rows * (12 * self.width + 4),
            "merging": 2 * self.ranks * touched * (8 + 4 * self.width),
            "candidates": 3 * self.ranks * self.rows * 4 * self.contrasted,
        }


@dataclass(frozen=True)
class Rates:
    """What a rank of some machine does in a second."""

    rows: float  # through everything but the contrast
    contrast_flops: float
    merge: float  # table rows of other ranks merged and moved
    link: float  # bytes received
    latency: float  # seconds a collective takes at least


def step_seconds(work: Work, rates: Rates, products: int = 3) -> dict[str, float]:
    """Seconds of a step by what they go to, nothing overlapping."""
    exchange = work.received if work.ranks > 1 else {}
    parts = {
        "rows": work.rows / rates.rows,
        "contrast": work.contrast_flops(products) / rates.contrast_flops,
        "merging": (work.ranks - 1) * work.distinct * work.rows * work.fields / rates.merge,
        "latency": COLLECTIVES * rates.latency * bool(exchange),
    }
    return parts | {name: size / rates.link for name, size in exchange.items()}


# Measuring -----------------------------------------------------------------------------------------------------------


def random_batch(rows: int, seed: int) -> Batch:
    random = np.random.default_rng(seed)
    ids = (float(IDS) ** random.random((rows, FIELDS), np.float32)).astype(np.int32) % IDS
    labels = (random.random((rows, 2)) < (0.3, 0.1)).astype(np.float32)
    return Batch(torch.from_numpy(ids), torch.from_numpy(labels))


def stepper(rows: int, ranks: Ranks | None, contrast: str = "infonce") -> Stepper:
    torch.manual_seed(0)
    model = build_model(ModelConfig(contrast=contrast), [IDS] * FIELDS, TASKS)
    return Stepper(model, OptimizerConfig(), TrainingConfig(batch_size=rows, progress=False), ranks)


def seconds_of(run: Any, turns: int) -> float:
    """Median of ``turns``, after some to warm."""
    times = []
    for turn in range(turns + 3):
        if dist.is_initialized():
            dist.barrier()
        start = time.perf_counter()
        run(turn)
        times.append(time.perf_counter() - start)
    return statistics.median(times[3:])


def step_time(rows: int, ranks: Ranks | None, turns: int, contrast: str = "infonce") -> float:
    own, number = stepper(rows, ranks, contrast), dist.get_rank() if dist.is_initialized() else 0
    batches = [random_batch(rows, 100 * number + seed) for seed in range(8)]
    own.model.train()
    return seconds_of(lambda turn: own.step(batches[turn % len(batches)], turn + 1), turns)


def merge_rate(rows: int, size: int, turns: int) -> float:
    """Table rows a second that come from other ranks: merging them, and moving more rows."""
    own = stepper(rows, None)
    embedding, optimizer = own.model.backbone.embedding, own.optimizers[1]
    grads = []
    for seed in range(size):
        embedding(random_batch(rows, seed).ids).sum().backward()
        coalesce_gradient(embedding.weight)
        grads.append(embedding.weight.grad)
        embedding.weight.grad = None

    shape = embedding.weight.shape

    def move(count: int) -> float:
        def run(_: int) -> None:
            numbers, values = (torch.cat([part(g) for g in grads[:count]], axis) for part, axis in PARTS)
            embedding.weight.grad = torch.sparse_coo_tensor(numbers, values, shape, check_invariants=False)
            coalesce_gradient(embedding.weight)
            optimizer.step()

        return seconds_of(run, turns)

    return sum(g._nnz() for g in grads[1:]) / (move(size) - move(1))


PARTS = ((torch.Tensor._indices, 1), (torch.Tensor._values, 0))


def on_a_rank(rank: int, size: int, folder: str, turns: int) -> None:
    """Rates with ``size`` processes busy at once, and a step of theirs together."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size)
    rows, ranks = GLOBAL_BATCH // size, Ranks(dist.HashStore(), 60) if size > 1 else None
    plain, contrasting = (step_time(rows, None, turns, contrast) for contrast in ("none", "infonce"))
    work = Work(1, rows, distinct=distinct_share(rows), dense=dense_weights())
    rates = Rates(rows / plain, work.contrast_flops() / (contrasting - plain), math.inf, math.inf, 0.0)
    if ranks is not None:
        number, block = torch.ones(1), torch.ones(1 << 20)  # 4 MiB
        latency = seconds_of(lambda _: dist.all_reduce(number), 10 * turns)
        gather = seconds_of(lambda _: gather_rows(block, [len(block)] * size, ranks.group), turns)
        link = (size - 1) * 4 * len(block) / gather
        rates = replace(rates, merge=merge_rate(rows, size, turns), link=link, latency=latency)
    work = replace(work, ranks=size)
    parts = step_seconds(work, rates)
    case = {
        "ranks": size,
        "measured ms": round(1e3 * (step_time(rows, ranks, turns) if ranks else contrasting), 1),
        "calculated ms": round(1e3 * sum(parts.values()), 1),
        "of it": {name: round(1e3 * value, 2) for name, value in parts.items()},
        "received bytes": {name: round(value) for name, value in work.received.items()},
        "rates": {name: float(f"{value:.3g}") for name, value in asdict(rates).items() if value < math.inf},
    }
    if rank == 0:
        Path(folder, "result").write_text(json.dumps(case))
    dist.barrier()
    dist.destroy_process_group()


def dense_weights() -> int:
    return sum(p.numel() for p in stepper(1, None).model.parameters()) - FIELDS * IDS * 8


def measured(size: int, turns: int) -> dict[str, Any]:
    """A step of ``size`` processes on this machine, measured and calculated."""
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.start_processes(on_a_rank, (size, folder, turns), size, start_method="spawn")
        return json.loads(Path(folder, "result").read_text())


def distinct_share(rows: int) -> float:
    ids = random_batch(rows, 0).ids.numpy()
    return sum(len(np.unique(column)) for column in ids.T) / ids.size


# Planning ------------------------------------------------------------------------------------------------------------

# All assumed, for a GPU of the H100's kind; the link is the one within a machine.
GPU = Rates(rows=2e6, contrast_flops=200e12, merge=2e9, link=300e9, latency=20e-6)
BETWEEN = 40e9  # bytes/s a GPU receives from other machines, 400 Gbit/s each at 80 %
IMPRESSIONS, BIG = 700_000_000, Work(1, 8192, fields=100, distinct=0.5, table_rows=10**9, dense=250_000)


def plan() -> str:
    lines = [
        "| GPUs | rows a step | ms a step | of it contrast | candidates | table rows | epoch, min | "
        "GB of tables a rank: replicas / sharded | table traffic sharded, ms |",
        "|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    row = "| {} | {:,} | {:.1f} | {:.2f} | {:.2f} | {:.1f} | {:.1f} | {:.0f} / {:.1f} | {:.2f} |"
    for ranks in (1, 8, 64):
        work = replace(BIG, ranks=ranks)
        rates = GPU if ranks <= 8 else replace(GPU, link=BETWEEN)
        parts = step_seconds(work, rates, products=4)
        total, tables = sum(parts.values()), work.memory["tables"] / 1e9
        epoch = IMPRESSIONS / (ranks * work.rows) * total / 60
        shown = [parts[name] * 1e3 if name in parts else 0 for name in ("contrast", "candidates", "table rows")]
        memory = (tables, tables / ranks)
        rest = (epoch, *memory, 1e3 * work.sharded() / rates.link)
        lines.append(row.format(ranks, ranks * work.rows, 1e3 * total, *shown, *rest))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=30)
    parser.add_argument("--plan", action="store_true")
    arguments = parser.parse_args()
    if arguments.plan:
        print(plan())
        return
    cases = [measured(size, arguments.turns) for size in (1, 2, 4)]
    for case in cases:
        print(case)
    print(write("scaling", cases))


if __name__ == "__main__":
    main()
