"""The embedding benchmark's workloads and contestants, as data: each contestant is made anew for a workload."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from adaftr_fast import FusedEmbedding, optim

E = 8  # the width of the paper's Table 3
LR = 1e-3
STEADY = 350  # steps of exact Adam before it is timed: in the first few hundred it replays missed steps one by one


@dataclass(frozen=True)
class Workload:
    """B rows of one id for each of F fields with V rows, Zipf(1.05) distributed."""

    fields: int
    batch: int
    rows: int

    def __str__(self) -> str:
        return f"F={self.fields} B={self.batch} V={self.rows}"

    def ids(self, batches: int = 16) -> list[Tensor]:
        """Different batches, so that no cache holds the rows of the next."""
        generator = torch.Generator().manual_seed(0)
        share = torch.arange(1, self.rows + 1, dtype=torch.float64).pow(-1.05).cumsum(0)
        drawn = torch.rand(batches, self.fields, self.batch, generator=generator, dtype=torch.float64) * share[-1]
        rank = torch.searchsorted(share, drawn).clamp_(max=self.rows - 1)
        shift = torch.arange(self.fields)[:, None] * 7919
        scattered = (rank * 48271 + shift) % self.rows  # popular ids do not stand side by side
        return list(scattered.transpose(1, 2).contiguous())

    def grad(self) -> Tensor:
        return torch.randn(self.batch, self.fields * E, generator=torch.Generator().manual_seed(1)) * 1e-3


Run = Callable[[], object]


def fused(work: Workload, optimizer: type, warm: int = 3) -> Run:
    """A step of ours: forward, backward, update."""
    table = FusedEmbedding([work.rows] * work.fields, E)
    update, batches, grad = optimizer(table, lr=LR), itertools.cycle(work.ids()), work.grad()

    def step() -> None:
        update.zero_grad()
        table(next(batches)).backward(grad)
        update.step()

    for _ in range(warm):
        step()
    return step


def concatenated(work: Workload, optimizer: type, sparse: bool, **options) -> Run:
    """A step of one nn.Embedding that holds all fields."""
    table = nn.Embedding(work.fields * work.rows, E, sparse=sparse)
    first = torch.arange(work.fields) * work.rows
    update = optimizer(table.parameters(), lr=LR, **options)
    batches, grad = itertools.cycle(work.ids()), work.grad()

    def step() -> None:
        update.zero_grad()
        table(next(batches) + first).flatten(1).backward(grad)
        update.step()

    return step


def fbgemm(work: Workload, optimizer: str) -> Run:
    """A step of FBGEMM's table-batched embedding, which updates within its backward."""
    from fbgemm_gpu.split_embedding_configs import EmbOptimType
    from fbgemm_gpu.split_table_batched_embeddings_ops_common import ComputeDevice, EmbeddingLocation
    from fbgemm_gpu.split_table_batched_embeddings_ops_training import SplitTableBatchedEmbeddingBagsCodegen

    table = SplitTableBatchedEmbeddingBagsCodegen(
        [(work.rows, E, EmbeddingLocation.HOST, ComputeDevice.CPU)] * work.fields,
        optimizer=EmbOptimType[optimizer],
        learning_rate=LR,
    )
    offsets = torch.arange(work.fields * work.batch + 1)
    # FBGEMM wants field after field; the transposition is done before, to its advantage.
    batches = itertools.cycle([ids.t().contiguous().flatten() for ids in work.ids()])
    grad = work.grad()
    return lambda: table(next(batches), offsets).backward(grad)


def forwards(work: Workload) -> dict[str, Run]:
    """Look-ups alone."""
    ours = FusedEmbedding([work.rows] * work.fields, E)
    theirs = nn.Embedding(work.fields * work.rows, E)
    each = nn.ModuleList(nn.Embedding(work.rows, E) for _ in range(work.fields))
    first = torch.arange(work.fields) * work.rows
    a, b, c = (itertools.cycle(work.ids()) for _ in range(3))

    @torch.no_grad()
    def listed() -> Tensor:
        return torch.cat([table(ids) for table, ids in zip(each, next(c).unbind(1), strict=True)], 1)

    return {
        "ours": torch.no_grad()(lambda: ours(next(a))),
        "concatenated nn.Embedding": torch.no_grad()(lambda: theirs(next(b) + first).flatten(1)),
        "list of nn.Embedding": listed,
    }


def steps(work: Workload, dense: bool) -> dict[str, Run]:
    """Whole steps; ``dense`` adds dense Adam, which touches every row of the table."""
    runs = {name: fused(work, getattr(optim, name)) for name in ("SGD", "Adagrad", "RowwiseAdagrad", "LazyAdam")}
    runs["Adam"] = fused(work, optim.Adam, warm=STEADY)
    runs["concatenated + SGD"] = concatenated(work, torch.optim.SGD, sparse=True)
    runs["concatenated + Adagrad"] = concatenated(work, torch.optim.Adagrad, sparse=True)
    runs["concatenated + SparseAdam"] = concatenated(work, torch.optim.SparseAdam, sparse=True)
    if dense:
        runs["dense fused Adam"] = concatenated(work, torch.optim.Adam, sparse=False, fused=True)
    return runs


def fbgemm_steps(work: Workload) -> dict[str, Run]:
    """FBGEMM's optimizers on the CPU; needs fbgemm-gpu-cpu."""
    return {
        "FBGEMM SGD": fbgemm(work, "EXACT_SGD"),
        "FBGEMM Adagrad": fbgemm(work, "EXACT_ADAGRAD"),
        "FBGEMM RowwiseAdagrad": fbgemm(work, "EXACT_ROWWISE_ADAGRAD"),
    }


def bags(batch: int = 1024, per_bag: int = 250, rows: int = 100_000) -> dict[str, Run]:
    """Forward and backward to a merged gradient of one multi-valued field."""
    values = Workload(1, batch * per_bag, rows).ids(batches=1)[0].flatten()
    offsets = torch.arange(batch + 1) * per_bag
    ours = FusedEmbedding([rows], E)
    theirs = nn.EmbeddingBag(rows, E, mode="mean", sparse=True, include_last_offset=True)
    dense = nn.EmbeddingBag(rows, E, mode="mean", include_last_offset=True)
    grad = torch.randn(batch, E)

    def run(table: nn.Module) -> None:
        table.weight.grad = None
        table(values, offsets).backward(grad)

    def merged() -> None:
        run(theirs)
        theirs.weight.grad.coalesce()

    return {
        "ours": lambda: run(ours),
        "nn.EmbeddingBag, sparse and coalesced": merged,
        "nn.EmbeddingBag, dense gradient": lambda: run(dense),
    }
