"""The embeddings that are compared, each with its optimizer, and the float64 arithmetic that they
must follow.

B batch, F fields of V rows each, E width. A contestant looks up ids [B, F] and returns [B, F * E].
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import adaftr_fast as af
from adaftr_fast import build_info
from adaftr_fast._extension import has_cuda_kernels

LR, BETAS = 1e-2, (0.9, 0.999)
EPS = 1e-10  # so small that it does not matter where an implementation adds it
BATCHES = 8  # different batches, so that no cache holds the rows of the next
STATES = {"SGD": 0, "Adagrad": 1, "RowwiseAdagrad": 1, "LazyAdam": 2, "Adam": 2}


@dataclass(frozen=True)
class Work:
    """Fields, rows of each, width, batch, the distribution of ids, and the device."""

    fields: int
    rows: int
    width: int
    batch: int
    ids: str
    device: str

    def batches(self) -> list[Tensor]:
        """Returns ``BATCHES`` tensors of ids, int64 [B, F]: uniform, or Zipf(1.05) with popular
        rows scattered.
        """
        g = torch.Generator(self.device).manual_seed(0)
        shape = (self.batch, self.fields)
        if self.ids == "uniform":
            return [
                torch.randint(0, self.rows, shape, generator=g, device=self.device)
                for _ in range(BATCHES)
            ]
        share = (
            torch.arange(1, self.rows + 1, dtype=torch.float64, device=self.device)
            .pow(-1.05)
            .cumsum(0)
        )
        shift = torch.arange(self.fields, device=self.device) * 7919
        drawn = (
            torch.rand(shape, generator=g, dtype=torch.float64, device=self.device)
            for _ in range(BATCHES)
        )
        ranks = (
            torch.searchsorted(share, each * share[-1]).clamp_(max=self.rows - 1) for each in drawn
        )
        return [(rank * 48271 + shift) % self.rows for rank in ranks]

    def start(self) -> Tensor:
        """Returns the values that every table [F * V, E] begins with."""
        g = torch.Generator(self.device).manual_seed(2)
        return (
            torch.randn(self.fields * self.rows, self.width, generator=g, device=self.device) * 0.01
        )

    def grad(self) -> Tensor:
        """Returns the gradient of the output [B, F * E]."""
        g = torch.Generator(self.device).manual_seed(1)
        return torch.randn(self.batch, self.fields * self.width, generator=g, device=self.device)

    def first(self) -> Tensor:
        """Returns the first row of each field in the table of all, [F]."""
        return torch.arange(self.fields, device=self.device) * self.rows


@dataclass(frozen=True)
class Table:
    """A table: what looks up, what takes a step, and its values [F * V, E] at present."""

    look_up: Callable[[Tensor], Tensor]
    step: Callable[[Tensor, Tensor], None]
    weights: Callable[[], Tensor]


Make = Callable[[Work, str], Table]


def ours(work: Work, optimizer: str) -> Table:
    """FusedEmbedding with an optimizer of adaftr_fast.optim.

    Raises:
        RuntimeError: the CUDA kernels are not built, so that a GPU would run their references.
    """
    if work.device != "cpu" and not has_cuda_kernels():
        raise RuntimeError(f"the CUDA kernels are missing: {build_info()['CUDA kernels']}")
    table = af.FusedEmbedding([work.rows] * work.fields, work.width, device=work.device)
    with torch.no_grad():
        table.weight.copy_(work.start())
    options = {} if optimizer == "SGD" else {"eps": EPS}
    update = getattr(af.optim, optimizer)(table, lr=LR, **options)

    def step(ids: Tensor, grad: Tensor) -> None:
        update.zero_grad()
        table(ids).backward(grad)
        update.step()

    def weights() -> Tensor:
        table.flush()
        return table.weight.detach()

    return Table(table, step, weights)


def concatenated(work: Work, optimizer: str) -> Table:
    """One nn.Embedding that holds all fields, with torch.optim on its sparse gradient; for "Adam"
    on a dense one.
    """
    made = {
        "SGD": lambda weights: torch.optim.SGD(weights, lr=LR),
        "Adagrad": lambda weights: torch.optim.Adagrad(weights, lr=LR, eps=EPS),
        "LazyAdam": lambda weights: torch.optim.SparseAdam(weights, lr=LR, eps=EPS),
        "Adam": lambda weights: torch.optim.Adam(weights, lr=LR, eps=EPS, fused=True),
    }
    table = nn.Embedding.from_pretrained(work.start(), freeze=False, sparse=optimizer != "Adam")
    first, update = work.first(), made[optimizer](list(table.parameters()))

    def look_up(ids: Tensor) -> Tensor:
        return table(ids + first).flatten(1)

    def step(ids: Tensor, grad: Tensor) -> None:
        update.zero_grad()
        look_up(ids).backward(grad)
        update.step()

    return Table(look_up, step, lambda: table.weight.detach())


def fbgemm(work: Work, optimizer: str) -> Table:
    """FBGEMM's table-batched embedding, which updates within its backward."""
    from fbgemm_gpu.split_embedding_configs import EmbOptimType
    from fbgemm_gpu.split_table_batched_embeddings_ops_common import (
        ComputeDevice,
        EmbeddingLocation,
    )
    from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
        SplitTableBatchedEmbeddingBagsCodegen,
    )

    names = {
        "SGD": "EXACT_SGD",
        "Adagrad": "EXACT_ADAGRAD",
        "RowwiseAdagrad": "EXACT_ROWWISE_ADAGRAD",
    }
    place = (EmbeddingLocation.DEVICE, ComputeDevice.CUDA)
    if work.device == "cpu":
        place = (EmbeddingLocation.HOST, ComputeDevice.CPU)
    table = SplitTableBatchedEmbeddingBagsCodegen(
        [(work.rows, work.width, *place)] * work.fields,
        optimizer=EmbOptimType[names.get(optimizer, "ADAM")],
        learning_rate=LR,
        eps=EPS,
    )
    for mine, rows in zip(table.split_embedding_weights(), work.start().split(work.rows)):
        mine.copy_(rows)
    offsets = torch.arange(work.fields * work.batch + 1, device=work.device)

    def look_up(ids: Tensor) -> Tensor:
        return table(ids.t().reshape(-1), offsets)  # field after field

    def step(ids: Tensor, grad: Tensor) -> None:
        look_up(ids).backward(grad)

    return Table(
        look_up,
        step,
        lambda: torch.cat([each.detach() for each in table.split_embedding_weights()]),
    )


def contestants(optimizer: str) -> dict[str, Make]:
    """Returns those that have the optimizer and are installed; ours first."""
    found: dict[str, Make] = {"adaftr_fast": ours}
    if optimizer != "RowwiseAdagrad":
        found["nn.Embedding + torch.optim"] = concatenated
    # FBGEMM's Adam needs CUDA.
    has_optimizer = optimizer != "Adam" and (optimizer != "LazyAdam" or torch.cuda.is_available())
    if importlib.util.find_spec("fbgemm_gpu") and has_optimizer:
        found["FBGEMM"] = fbgemm
    return found


def expected(work: Work, optimizer: str, steps: list[Tensor], grad: Tensor) -> Tensor:
    """Returns the table after ``steps`` batches by the optimizers' definitions, in float64."""
    weight = work.start().double()
    state = [torch.zeros_like(weight) for _ in range(STATES[optimizer])]
    for number, ids in enumerate(steps, 1):
        rows = (ids + work.first()).flatten()
        total = torch.zeros_like(weight).index_add_(0, rows, grad.double().view(-1, work.width))
        touched = torch.zeros(len(weight), dtype=torch.bool, device=weight.device).index_fill_(
            0, rows, True
        )
        if optimizer == "Adam":
            touched.fill_(True)
        weight[touched] -= LR * _direction(optimizer, number, total[touched], state, touched)
    return weight


def _direction(
    optimizer: str, number: int, grad: Tensor, state: list[Tensor], touched: Tensor
) -> Tensor:
    if optimizer == "SGD":
        return grad
    if optimizer in ("Adagrad", "RowwiseAdagrad"):
        square = (
            grad**2 if optimizer == "Adagrad" else (grad**2).mean(1, keepdim=True).expand_as(grad)
        )
        state[0][touched] += square
        return grad / (state[0][touched].sqrt() + EPS)
    beta1, beta2 = BETAS
    state[0][touched] = beta1 * state[0][touched] + (1 - beta1) * grad
    state[1][touched] = beta2 * state[1][touched] + (1 - beta2) * grad**2
    correction1, correction2 = 1 - beta1**number, (1 - beta2**number) ** 0.5
    root = state[1][touched].sqrt()
    return state[0][touched] / correction1 / (root / correction2 + EPS)


def disagreement(make: Make, work: Work, optimizer: str) -> float:
    """Returns the largest error of a table after some steps, in units of the largest change that
    training made.
    """
    steps = work.batches()[:4]
    grad = work.grad()
    start = work.start().double()
    table, true = make(work, optimizer), expected(work, optimizer, steps, grad)
    for ids in steps:
        table.step(ids, grad)
    return ((table.weights().double() - true).abs().max() / (true - start).abs().max()).item()
