"""Measures a step on several processes of this machine, and the rates from which it is calculated.

Every time is that of the slowest rank: a turn lasts from a barrier until the last rank is done. A collective is
measured as it runs in a step, after each rank has computed for some milliseconds: its threads sleep by then, and its
buffers are in no cache.
"""

import gc
import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from adaftr_fast.config import OptimizerConfig, TrainingConfig
from adaftr_fast.data.dataset.batch import Batch
from adaftr_fast.distributed.gather import gather_rows
from adaftr_fast.distributed.ranks import Ranks
from adaftr_fast.models import ModelConfig, build_model
from adaftr_fast.ops.embedding.lookup import coalesce_gradient
from adaftr_fast.training.stepper import Stepper
from benchmarks.scaling.formula import CALLS, FIELDS, IDS, Collective, Rates, Work, step_seconds

TASKS = ["click", "conversion"]
GLOBAL_BATCH = 4096
WARM = 3  # turns that do not count
SHARES = (0.0, 0.25, 0.5, 1.0)  # sizes of messages, relative to the largest of a step
PARTS = ((Tensor._indices, 1), (Tensor._values, 0))
Turn = Callable[[int], object]
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor  # renamed in torch 2.13


def random_batch(rows: int, seed: int) -> Batch:
    random = np.random.default_rng(seed)
    ids = (float(IDS) ** random.random((rows, FIELDS), np.float32)).astype(np.int32) % IDS
    labels = (random.random((rows, 2)) < (0.3, 0.1)).astype(np.float32)
    return Batch(torch.from_numpy(ids), torch.from_numpy(labels))


def stepper(rows: int, ranks: Ranks | None, contrast: str = "infonce") -> Stepper:
    torch.manual_seed(0)
    model = build_model(ModelConfig(contrast=contrast), [IDS] * FIELDS, TASKS)
    return Stepper(model, OptimizerConfig(), TrainingConfig(batch_size=rows, progress=False), ranks)


def seconds_of(run: Turn, turns: int, before: Turn | None = None) -> float:
    """Median over ``turns`` of the slowest rank's time.

    Args:
        run: called with the number of the turn, after a barrier.
        turns: the turns, after some that do not count.
        before: called before the barrier of each turn, outside of the time.
    """
    times = []
    for turn in range(turns + WARM):
        if before is not None:
            before(turn)
        if dist.is_initialized():
            dist.barrier()
        start = time.perf_counter()
        run(turn)
        times.append(time.perf_counter() - start)
        if dist.is_initialized():
            dist.barrier()  # a rank that is done early must not take the core for the next turn
    return statistics.median(slowest(times[WARM:]))


def slowest(seconds: list[float]) -> list[float]:
    """Returns the maximum over ranks of each time."""
    times = torch.tensor(seconds, dtype=torch.float64)
    if dist.is_initialized():
        dist.all_reduce(times, dist.ReduceOp.MAX)
    return times.tolist()


def steps(rows: int, ranks: Ranks | None, contrast: str = "infonce") -> Turn:
    """Returns a function that takes a training step."""
    own, number = stepper(rows, ranks, contrast), dist.get_rank() if dist.is_initialized() else 0
    batches = [random_batch(rows, 100 * number + seed) for seed in range(8)]
    own.model.train()
    return lambda turn: own.step(batches[turn % len(batches)], turn + 1)


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

    more = move(size) - move(1)
    return sum(g._nnz() for g in grads[1:]) / more if more > 0 else math.inf


def waiting_share(rows: int, turns: int) -> float:
    """Share that the computing of a step takes longer because its collectives make all ranks wait for the slowest.

    The same work, as many small steps as a step has collectives, once with a barrier between them and once without. The
    time of the barriers does not count.
    """
    count = sum(CALLS.values())
    small = steps(max(rows // count, 1), None)

    def apart(turn: int) -> None:
        for each in range(count):
            small(count * turn + each)

    free, parts = seconds_of(apart, turns), []
    for turn in range(count * (turns + WARM)):
        dist.barrier()
        start = time.perf_counter()
        small(turn)
        parts.append(time.perf_counter() - start)
    together = np.array(slowest(parts)).reshape(-1, count).sum(1)[WARM:]
    return max(float(np.median(together)) / free - 1, 0.0)


def collective(kind: str, largest: float, compute: Turn, ranks: Ranks, turns: int) -> Collective:
    """Fits ``latency + bytes / link`` to the times of messages of several sizes.

    Args:
        kind: a name of ``CALLS``.
        largest: the bytes that the largest message receives.
        compute: what a rank does before each message.
        ranks: the ranks.
        turns: the turns of each size.
    """
    received, seconds = [], []
    for share in SHARES:
        run, size = message(kind, share * largest, ranks)
        received.append(size)
        seconds.append(seconds_of(run, turns, before=compute))
    slope, latency = np.polyfit(received, seconds, 1)
    return Collective(max(float(latency), 0.0), 1 / float(slope) if slope > 0 else math.inf)


def message(kind: str, received: float, ranks: Ranks) -> tuple[Turn, float]:
    """Returns a function that runs a collective through which a rank receives ``received`` bytes, and the exact number.

    The message is as small as it can be for 0. Its buffers are new each time, as in a step.
    """
    group, others = ranks.group, ranks.size - 1
    share = 2 * others / ranks.size if kind == "all_reduce" else others
    rows = max(round(received / share / 64), 1)  # of 16 float32
    sizes = [rows] * ranks.size

    def gather(_: int) -> None:
        gather_rows(torch.ones(rows, 16), sizes, group)

    def reduce_scatter(_: int) -> None:
        _reduce_scatter(torch.empty(rows, 16), torch.ones(ranks.size * rows, 16), group=group)

    def all_reduce(_: int) -> None:
        dist.all_reduce(torch.ones(rows, 16), group=group)

    return {"gather": gather, "reduce_scatter": reduce_scatter, "all_reduce": all_reduce}[kind], share * rows * 64


def on_a_rank(rank: int, size: int, folder: str, turns: int) -> None:
    """Measures rates with ``size`` processes busy at once, and a step of theirs together."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size)
    case = case_of(size, turns)
    if rank == 0:
        Path(folder, "result").write_text(json.dumps(case))
    dist.barrier()
    dist.destroy_process_group()
    gc.collect()  # the group's threads end with its last reference, and must end before the interpreter does


def case_of(size: int, turns: int) -> dict[str, Any]:
    rows, ranks = GLOBAL_BATCH // size, Ranks(dist.HashStore(), 60) if size > 1 else None
    work = Work(size, rows, distinct=distinct_share(rows), dense=dense_weights())
    rates, whole = measured_rates(work, ranks, turns)
    if ranks is not None:
        whole = seconds_of(steps(rows, ranks), turns)
    return described(work, rates, whole)


def measured_rates(work: Work, ranks: Ranks | None, turns: int) -> tuple[Rates, float]:
    """Returns the rates of a rank, and the seconds of a step that exchanges nothing."""
    plain, alone = (seconds_of(steps(work.rows, None, contrast), turns) for contrast in ("none", "infonce"))
    flops = replace(work, ranks=1).contrast_flops()
    rates = Rates(work.rows / plain, flops / max(alone - plain, 1e-9), math.inf, 0.0, {})
    if ranks is None:
        return rates, alone
    compute = steps(work.rows, None, "none")
    largest = {kind: max(sizes.get(kind, 0.0) for sizes in work.received.values()) for kind in CALLS}
    return replace(
        rates,
        merge=merge_rate(work.rows, work.ranks, turns),
        waiting=waiting_share(work.rows, turns),
        collectives={kind: collective(kind, size, compute, ranks, turns) for kind, size in largest.items()},
    ), alone


def described(work: Work, rates: Rates, measured: float) -> dict[str, Any]:
    """Returns the case of the results file for a step that took ``measured`` seconds."""
    parts = step_seconds(work, rates)
    calculated = sum(parts.values())
    numbers = asdict(rates)
    by_kind = {
        f"{kind}, {name}": value for kind, both in numbers.pop("collectives").items() for name, value in both.items()
    }
    return {
        "ranks": work.ranks,
        "measured ms": round(1e3 * measured, 1),
        "calculated ms": round(1e3 * calculated, 1),
        "of it": {name: round(1e3 * value, 2) for name, value in parts.items()},
        "received bytes": {name: round(sum(sizes.values())) for name, sizes in work.received.items()},
        "rates": {n: float(f"{value:.3g}") for n, value in (numbers | by_kind).items() if value < math.inf},
    }


def dense_weights() -> int:
    return sum(p.numel() for p in stepper(1, None).model.parameters()) - FIELDS * IDS * 8


def distinct_share(rows: int) -> float:
    ids = random_batch(rows, 0).ids.numpy()
    return sum(len(np.unique(column)) for column in ids.T) / ids.size


def measured(size: int, turns: int) -> dict[str, Any]:
    """Returns the case of a step of ``size`` processes on this machine, measured and calculated."""
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.start_processes(on_a_rank, (size, folder, turns), size, start_method="spawn")
        return json.loads(Path(folder, "result").read_text())
