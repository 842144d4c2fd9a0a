"""The embedding benchmark's workloads and contestants, and the memory traffic that none of them can
avoid.

A contestant is made anew for each workload.
"""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from adaftr_fast import FusedEmbedding, optim
from benchmarks.measure import side_by_side

E = 8  # the width of the paper's Table 3
LR = 1e-3
EPS = 1e-8
# steps of exact Adam before it is timed: in the first few hundred it replays missed steps one by
# one
STEADY = 350
LINE = 64  # bytes: memory moves in cache lines
ROW = 4 * E  # bytes of a row of float32
# Bytes of optimizer state a row has; exact Adam also keeps the step a row is current to, in a table
# of its own.
STATE = {
    "SGD": [],
    "RowwiseAdagrad": [4],
    "Adagrad": [ROW],
    "LazyAdam": [2 * ROW],
    "Adam": [2 * ROW, 4],
}
HAS_FBGEMM = importlib.util.find_spec("fbgemm_gpu") is not None

Run = Callable[[], object]


@dataclass(frozen=True)
class Workload:
    """B rows of one id for each of F fields with V rows, Zipf(1.05) distributed.

    With ``spread`` > 1 only each ``spread``-th row occurs: batches as those of a table that much
    smaller.
    """

    fields: int
    batch: int
    rows: int
    spread: int = 1

    def __str__(self) -> str:
        return f"F={self.fields} B={self.batch} V={self.rows}"

    def ids(self, batches: int = 16) -> list[Tensor]:
        """Different batches, so that no cache holds the rows of the next."""
        generator = torch.Generator().manual_seed(0)
        rows = self.rows // self.spread
        share = torch.arange(1, rows + 1, dtype=torch.float64).pow(-1.05).cumsum(0)
        drawn = (
            torch.rand(batches, self.fields, self.batch, generator=generator, dtype=torch.float64)
            * share[-1]
        )
        rank = torch.searchsorted(share, drawn).clamp_(max=rows - 1)
        shift = torch.arange(self.fields)[:, None] * 7919
        # popular ids do not stand side by side
        scattered = (rank * 48271 + shift) % rows * self.spread
        return list(scattered.transpose(1, 2).contiguous())

    def grad(self) -> Tensor:
        return (
            torch.randn(self.batch, self.fields * E, generator=torch.Generator().manual_seed(1))
            * 1e-3
        )

    @torch.no_grad()
    def start(self, weight: Tensor) -> None:
        """Give a table [F * V, E] the values every contestant begins with."""
        weight.normal_(0.0, 0.01, generator=torch.Generator().manual_seed(2))


@dataclass(frozen=True)
class Contestant:
    """A step of forward, backward and update, and the table [R, E] it has trained so far."""

    step: Run
    weights: Callable[[], Tensor]


def fused(work: Workload, optimizer: str) -> Contestant:
    """Ours."""
    table = FusedEmbedding([work.rows] * work.fields, E)
    work.start(table.weight)
    options = {} if optimizer == "SGD" else {"eps": EPS}
    update = getattr(optim, optimizer)(table, lr=LR, **options)
    batches, grad = itertools.cycle(work.ids()), work.grad()

    def step() -> None:
        update.zero_grad()
        table(next(batches)).backward(grad)
        update.step()

    def weights() -> Tensor:
        table.flush()
        return table.weight.detach()

    return Contestant(step, weights)


def concatenated(work: Workload, optimizer: type, sparse: bool, **options) -> Contestant:
    """One nn.Embedding that holds all fields."""
    table = nn.Embedding(work.fields * work.rows, E, sparse=sparse)
    work.start(table.weight)
    first = torch.arange(work.fields) * work.rows
    update = optimizer(table.parameters(), lr=LR, **options)
    batches, grad = itertools.cycle(work.ids()), work.grad()

    def step() -> None:
        update.zero_grad()
        table(next(batches) + first).flatten(1).backward(grad)
        update.step()

    return Contestant(step, lambda: table.weight.detach())


def listed(work: Workload, optimizer: type, **options) -> Contestant:
    """An nn.Embedding a field, as models are usually written."""
    tables = nn.ModuleList(nn.Embedding(work.rows, E, sparse=True) for _ in range(work.fields))
    whole = torch.empty(work.fields * work.rows, E)
    work.start(whole)
    with torch.no_grad():
        for table, rows in zip(tables, whole.split(work.rows), strict=True):
            table.weight.copy_(rows)
    update = optimizer(tables.parameters(), lr=LR, **options)
    batches, grad = itertools.cycle(work.ids()), work.grad()

    def step() -> None:
        update.zero_grad()
        torch.cat(
            [table(ids) for table, ids in zip(tables, next(batches).unbind(1), strict=True)], 1
        ).backward(grad)
        update.step()

    return Contestant(step, lambda: torch.cat([table.weight.detach() for table in tables]))


def fbgemm(work: Workload, optimizer: str) -> Contestant:
    """FBGEMM's table-batched embedding, which updates within its backward; needs fbgemm-gpu-cpu."""
    from fbgemm_gpu.split_embedding_configs import EmbOptimType
    from fbgemm_gpu.split_table_batched_embeddings_ops_common import (
        ComputeDevice,
        EmbeddingLocation,
    )
    from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
        SplitTableBatchedEmbeddingBagsCodegen,
    )

    table = SplitTableBatchedEmbeddingBagsCodegen(
        [(work.rows, E, EmbeddingLocation.HOST, ComputeDevice.CPU)] * work.fields,
        optimizer=EmbOptimType[optimizer],
        learning_rate=LR,
        eps=EPS,
    )
    whole = torch.empty(work.fields * work.rows, E)
    work.start(whole)
    for mine, rows in zip(table.split_embedding_weights(), whole.split(work.rows), strict=True):
        mine.copy_(rows)
    offsets = torch.arange(work.fields * work.batch + 1)
    # FBGEMM wants field after field; the transposition is done before, to its advantage.
    batches = itertools.cycle([ids.t().contiguous().flatten() for ids in work.ids()])
    grad = work.grad()
    return Contestant(
        lambda: table(next(batches), offsets).backward(grad),
        lambda: torch.cat(table.split_embedding_weights()),
    )


# Peers of each of our optimizers. Those of "Adam" that are lazy do other arithmetic; they are there
# for their speed.
PEERS: dict[str, dict[str, Callable[[Workload], Contestant]]] = {
    "SGD": {
        "concatenated + SGD": lambda work: concatenated(work, torch.optim.SGD, sparse=True),
        "list + SGD": lambda work: listed(work, torch.optim.SGD),
        "FBGEMM SGD": lambda work: fbgemm(work, "EXACT_SGD"),
    },
    "Adagrad": {
        "concatenated + Adagrad": lambda work: concatenated(
            work, torch.optim.Adagrad, sparse=True, eps=EPS
        ),
        "list + Adagrad": lambda work: listed(work, torch.optim.Adagrad, eps=EPS),
        "FBGEMM Adagrad": lambda work: fbgemm(work, "EXACT_ADAGRAD"),
    },
    "RowwiseAdagrad": {"FBGEMM RowwiseAdagrad": lambda work: fbgemm(work, "EXACT_ROWWISE_ADAGRAD")},
    "LazyAdam": {
        "concatenated + SparseAdam": lambda work: concatenated(
            work, torch.optim.SparseAdam, sparse=True, eps=EPS
        ),
        "list + SparseAdam": lambda work: listed(work, torch.optim.SparseAdam, eps=EPS),
    },
    "Adam": {
        "concatenated + dense fused Adam": lambda work: concatenated(
            work, torch.optim.Adam, sparse=False, fused=True, eps=EPS
        ),
        "concatenated + SparseAdam (lazy)": lambda work: concatenated(
            work, torch.optim.SparseAdam, sparse=True, eps=EPS
        ),
    },
}


def contestants(work: Workload, optimizer: str) -> dict[str, Contestant]:
    """Ours first, then the peers that are installed. Lists of tables only where a table
    is small.
    """
    peers = {
        name: make
        for name, make in PEERS[optimizer].items()
        if HAS_FBGEMM or not name.startswith("FBGEMM")
    }
    if work.rows > 100_000:
        peers = {name: make for name, make in peers.items() if not name.startswith("list")}
    return {"ours": fused(work, optimizer)} | {name: make(work) for name, make in peers.items()}


def steps(work: Workload, optimizer: str) -> dict[str, Run]:
    """Whole steps, once the contestants have been seen to agree on a small workload."""
    check_steps(optimizer)
    runs = {name: contestant.step for name, contestant in contestants(work, optimizer).items()}
    for _ in range(STEADY if optimizer == "Adam" else 3):
        runs["ours"]()
    return runs


def growth(small: Workload, large: Workload) -> dict[str, Run]:
    """Adam's steps on two tables that differ in their size alone, once the contestants have been
    seen to agree.
    """
    check_steps("Adam")
    runs = {}
    for work in (small, large):
        ours = fused(work, "Adam").step
        for _ in range(STEADY):
            ours()
        runs[f"ours, V={work.rows}"] = ours
        runs[f"dense fused Adam, V={work.rows}"] = PEERS["Adam"]["concatenated + dense fused Adam"](
            work
        ).step
    return runs


def check_steps(optimizer: str, work: Workload = Workload(fields=5, batch=64, rows=100)) -> None:
    """Raise unless every contestant that does the same arithmetic has our table after
    some steps.
    """
    start = torch.empty(work.fields * work.rows, E)
    work.start(start)
    moves = {}
    for name, contestant in contestants(work, optimizer).items():
        if "(lazy)" in name:
            continue
        for _ in range(5):
            contestant.step()
        moves[name] = contestant.weights() - start
    size = moves["ours"].abs().max().item()
    for name, move in moves.items():
        # Weights of 0.01 round by 1e-9, SGD moves them by a thousand times that.
        if not (move - moves["ours"]).abs().max() <= 2e-3 * size > 0:
            raise AssertionError(
                f"{optimizer}, {work}: {name} and ours have trained different tables"
            )


def forwards(work: Workload) -> dict[str, Run]:
    """Look-ups alone, once their results have been compared."""
    ours = FusedEmbedding([work.rows] * work.fields, E)
    theirs = nn.Embedding.from_pretrained(ours.weight.detach())
    each = [nn.Embedding.from_pretrained(ours.field_weight(f)) for f in range(work.fields)]
    first = torch.arange(work.fields) * work.rows
    a, b, c = (itertools.cycle(work.ids()) for _ in range(3))

    def one_by_one() -> Tensor:
        return torch.cat(
            [table(ids) for table, ids in zip(each, next(c).unbind(1), strict=True)], 1
        )

    runs: dict[str, Callable[[], Tensor]] = {
        "ours": lambda: ours(next(a)),
        "concatenated nn.Embedding": lambda: theirs(next(b) + first).flatten(1),
        "list of nn.Embedding": one_by_one,
    }
    runs = {name: torch.no_grad()(run) for name, run in runs.items()}
    results = [run() for run in runs.values()]
    if not all(torch.equal(result, results[0]) for result in results):
        raise AssertionError(f"forward, {work}: the contestants' results differ")
    return dict(runs)


def bags(batch: int = 1024, per_bag: int = 250, rows: int = 100_000) -> dict[str, Run]:
    """Forward and backward to a merged gradient of one multi-valued field, once gradients have been
    compared.
    """
    values = Workload(1, batch * per_bag, rows).ids(batches=1)[0].flatten()
    offsets = torch.arange(batch + 1) * per_bag
    ours = FusedEmbedding([rows], E)
    start = ours.weight.detach()
    options = {"mode": "mean", "include_last_offset": True, "freeze": False}
    theirs = nn.EmbeddingBag.from_pretrained(start.clone(), sparse=True, **options)
    dense = nn.EmbeddingBag.from_pretrained(start.clone(), **options)
    grad = torch.randn(batch, E, generator=torch.Generator().manual_seed(1))

    def run(table: nn.Module) -> Tensor:
        table.weight.grad = None
        table(values, offsets).backward(grad)
        return table.weight.grad

    def merged() -> Tensor:
        return run(theirs).coalesce()

    for found in (merged().to_dense(), run(dense)):
        torch.testing.assert_close(run(ours).to_dense(), found, rtol=1e-4, atol=1e-4)
    return {
        "ours": lambda: run(ours),
        "nn.EmbeddingBag, sparse and coalesced": merged,
        "nn.EmbeddingBag, dense gradient": lambda: run(dense),
    }


def lines(rows: Tensor, record: int) -> int:
    """Bytes of the cache lines that hold the records of ``rows``, ``record`` bytes each in one
    table.
    """
    return LINE * len(torch.unique(rows * record // LINE))


def floor_bytes(work: Workload, case: str) -> float:
    """The least that must move: each line once to look up, and once each way to update; a mean over
    the batches.

    Look-up: ids, rows, output. A step: the ids again, the gradient, and rows and state there and
    back.
    """
    first = torch.arange(work.fields) * work.rows
    total = 0
    for ids in work.ids():
        rows, look_ups = torch.unique(ids + first), ids.numel()
        total += look_ups * (8 + ROW) + lines(rows, ROW)
        if case != "forward":
            total += look_ups * (8 + ROW) + 2 * sum(
                lines(rows, record) for record in [ROW, *STATE[case]]
            )
    return total / len(work.ids())


def table_bytes(work: Workload, case: str) -> int:
    """Bytes of the table and its optimizer state, which decide whether they stay in cache."""
    return work.fields * work.rows * (ROW + sum(STATE.get(case, [])))


def copy_rate(size: int) -> float:
    """Bytes a second, read and written, on all threads, where one half of ``size`` bytes is copied
    over the other.

    Tables that fit into a cache are copied from there, and larger ones from memory, as their rows
    are.
    """
    source = torch.ones(size // 2, dtype=torch.uint8)
    target = torch.empty_like(source)
    milliseconds = side_by_side({"copy": lambda: target.copy_(source)}, seconds=0.3)["copy"]
    return 2 * len(source) / (milliseconds / 1e3)
