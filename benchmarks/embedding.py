"""The embeddings that are compared, each with its optimizer, the float64 arithmetic that they must
follow, and the memory traffic that none of them can avoid.

B batch, F fields of V rows each, E width. A contestant looks up ids [B, F] and returns [B, F * E].
"""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import adaftr_fast as af
from adaftr_fast import build_info
from adaftr_fast._extension import has_cuda_kernels
from benchmarks.measure import side_by_side

OURS = "ours"
LR = 1e-2
BETAS = (0.9, 0.999)
EPS = 1e-10  # so small that it does not matter where an implementation adds it
AGREES = 1e-3  # of the largest change; float32 rounds a sum of many gradients by far less
BATCHES = 16  # different batches, so that no cache holds the rows of the next
# steps of exact Adam before it is timed: in the first few hundred it replays missed steps one by
# one
STEADY = 350
LINE = 64  # bytes: memory moves in cache lines
# Numbers of float32 that a row has beside its E weights, in tables of their own, as (times E, plus).
# Exact Adam also keeps the step a row is current to.
STATES = {
    "SGD": [],
    "Adagrad": [(1, 0)],
    "RowwiseAdagrad": [(0, 1)],
    "LazyAdam": [(2, 0)],
    "Adam": [(2, 0), (0, 1)],
}
# torch's optimizer of the same arithmetic, its name in tables, and its options; there is none for
# RowwiseAdagrad
PEERS = {
    "SGD": (torch.optim.SGD, "SGD", {}),
    "Adagrad": (torch.optim.Adagrad, "Adagrad", {"eps": EPS}),
    "LazyAdam": (torch.optim.SparseAdam, "SparseAdam", {"eps": EPS}),
    "Adam": (torch.optim.Adam, "dense fused Adam", {"eps": EPS, "fused": True}),
}
FBGEMM = {
    "SGD": "EXACT_SGD",
    "Adagrad": "EXACT_ADAGRAD",
    "RowwiseAdagrad": "EXACT_ROWWISE_ADAGRAD",
}
BAGS = (OURS, "nn.EmbeddingBag, sparse and coalesced", "nn.EmbeddingBag, dense gradient")
Run = Callable[[], object]


@dataclass(frozen=True)
class Work:
    """B rows of one id for each of F fields with V rows of width E.

    With ``spread`` > 1 only each ``spread``-th row occurs: batches as those of a table that much
    smaller.
    """

    fields: int
    batch: int
    rows: int
    width: int = 8
    ids: str = "zipf"
    device: str = "cpu"
    spread: int = 1

    def __str__(self) -> str:
        return f"F={self.fields} B={self.batch} V={self.rows}"

    def batches(self) -> list[Tensor]:
        """Returns tensors of ids, int64 [B, F]: uniform, or Zipf(1.05), where popular ids do not
        stand side by side.
        """
        g = torch.Generator(self.device).manual_seed(0)
        rows = self.rows // self.spread
        ranks = torch.arange(1, rows + 1, dtype=torch.float64, device=self.device)
        share = (ranks**-1.05 if self.ids == "zipf" else torch.ones_like(ranks)).cumsum(0)
        found = []
        for _ in range(BATCHES):
            drawn = torch.rand(
                self.batch, self.fields, generator=g, dtype=torch.float64, device=self.device
            )
            rank = torch.searchsorted(share, drawn * share[-1]).clamp_(max=rows - 1)
            shift = torch.arange(self.fields, device=self.device) * 7919
            found.append((rank * 48271 + shift) % rows * self.spread)
        return found

    def start(self) -> Tensor:
        """Returns the values that every table [F * V, E] begins with."""
        return self._normal(2, self.fields * self.rows, self.width) * 0.01

    def grad(self) -> Tensor:
        """Returns the gradient of the output [B, F * E]."""
        return self._normal(1, self.batch, self.fields * self.width)

    def first(self) -> Tensor:
        """Returns the first row of each field in the table of all, [F]."""
        return torch.arange(self.fields, device=self.device) * self.rows

    def _normal(self, seed: int, *shape: int) -> Tensor:
        g = torch.Generator(self.device).manual_seed(seed)
        return torch.randn(shape, generator=g, device=self.device)


@dataclass(frozen=True)
class Table:
    """A table: what looks up, what takes a step, and its values [F * V, E] at present."""

    look_up: Callable[[Tensor], Tensor]
    step: Callable[[Tensor, Tensor], None]
    weights: Callable[[], Tensor]


def _trained(
    look_up: Callable[[Tensor], Tensor],
    update: torch.optim.Optimizer,
    weights: Callable[[], Tensor],
) -> Table:
    """A table whose step is forward, backward and update."""

    def step(ids: Tensor, grad: Tensor) -> None:
        update.zero_grad()
        look_up(ids).backward(grad)
        update.step()

    return Table(look_up, step, weights)


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

    def weights() -> Tensor:
        table.flush()
        return table.weight.detach()

    return _trained(table, getattr(af.optim, optimizer)(table, lr=LR, **options), weights)


def concatenated(work: Work, optimizer: str) -> Table:
    """One nn.Embedding that holds all fields, with torch.optim on its sparse gradient; for "Adam"
    on a dense one.
    """
    table = nn.Embedding.from_pretrained(work.start(), freeze=False, sparse=optimizer != "Adam")
    make, _, options = PEERS[optimizer]
    first = work.first()
    update = make(list(table.parameters()), lr=LR, **options)
    return _trained(
        lambda ids: table(ids + first).flatten(1), update, lambda: table.weight.detach()
    )


def listed(work: Work, optimizer: str) -> Table:
    """An nn.Embedding a field, as models are usually written."""
    tables = [
        nn.Embedding.from_pretrained(rows.clone(), freeze=False, sparse=True)
        for rows in work.start().split(work.rows)
    ]
    make, _, options = PEERS[optimizer]
    weights = [table.weight for table in tables]

    def look_up(ids: Tensor) -> Tensor:
        return torch.cat([table(each) for table, each in zip(tables, ids.unbind(1))], 1)

    return _trained(look_up, make(weights, lr=LR, **options), lambda: torch.cat(weights).detach())


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

    place = (EmbeddingLocation.DEVICE, ComputeDevice.CUDA)
    if work.device == "cpu":
        place = (EmbeddingLocation.HOST, ComputeDevice.CPU)
    table = SplitTableBatchedEmbeddingBagsCodegen(
        [(work.rows, work.width, *place)] * work.fields,
        optimizer=EmbOptimType[FBGEMM.get(optimizer, "ADAM")],
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

    return Table(look_up, step, lambda: torch.cat(table.split_embedding_weights()).detach())


def contestants(optimizer: str, device: str) -> dict[str, Callable[[Work, str], Table]]:
    """Returns those that have the optimizer and are installed, by name; ours first."""
    found = {OURS: ours}
    if optimizer in PEERS:
        peer = PEERS[optimizer][1]
        found[f"concatenated + {peer}"] = concatenated
        if device == "cpu" and optimizer != "Adam":
            found[f"list + {peer}"] = listed
    # FBGEMM's Adam needs CUDA
    if importlib.util.find_spec("fbgemm_gpu") and (optimizer in FBGEMM or device == "cuda"):
        found[f"FBGEMM {optimizer}"] = fbgemm
    return found


def expected(work: Work, optimizer: str, steps: list[Tensor], grad: Tensor) -> Tensor:
    """Returns the table after ``steps`` batches by the optimizers' definitions, in float64."""
    weight = work.start().double()
    state = [torch.zeros_like(weight) for _ in range(2)]
    for number, ids in enumerate(steps, 1):
        rows = (ids + work.first()).flatten()
        total = torch.zeros_like(weight).index_add_(0, rows, grad.double().view(-1, work.width))
        touched = rows.unique() if optimizer != "Adam" else slice(None)
        weight[touched] -= LR * _direction(optimizer, number, total[touched], state, touched)
    return weight


def _direction(
    optimizer: str, number: int, grad: Tensor, state: list[Tensor], touched: Tensor
) -> Tensor:
    if optimizer == "SGD":
        return grad
    square = grad**2
    if optimizer in ("Adagrad", "RowwiseAdagrad"):
        state[0][touched] += square if optimizer == "Adagrad" else square.mean(1, keepdim=True)
        return grad / (state[0][touched].sqrt() + EPS)
    means = []
    for each, beta, x in zip(state, BETAS, (grad, square)):
        each[touched] = beta * each[touched] + (1 - beta) * x
        means.append(each[touched] / (1 - beta**number))
    return means[0] / (means[1].sqrt() + EPS)


def disagreement(make: Callable[[Work, str], Table], work: Work, optimizer: str) -> float:
    """Returns the largest error of a table after some steps, in units of the largest change that
    training made.
    """
    steps = work.batches()[:4]
    grad = work.grad()
    table = make(work, optimizer)
    true = expected(work, optimizer, steps, grad)
    for ids in steps:
        table.step(ids, grad)
    change = (true - work.start().double()).abs().max()
    return ((table.weights().double() - true).abs().max() / change).item()


def settle(step: Run, more: Callable[[], bool] = lambda: True) -> int:
    """Takes steps until exact Adam is in its steady state, or ``more`` returns False. Returns their
    number.
    """
    for number in range(STEADY):
        if not more():
            return number
        step()
    return STEADY


def stepper(table: Table, work: Work) -> Run:
    """Returns a step that takes a batch after the other."""
    batches = itertools.cycle(work.batches())
    grad = work.grad()
    return lambda: table.step(next(batches), grad)


def mixed(work: Work, widths: Sequence[int]) -> Run:
    """Returns a step of exact Adam on a FusedEmbedding whose fields have ``widths`` in turns, once
    it has trained as FusedEmbedding does a field at a time.

    Raises:
        AssertionError: it has trained otherwise.
    """
    each = [width for _, width in zip(range(work.fields), itertools.cycle(widths))]
    table = af.FusedEmbedding([work.rows] * work.fields, each)
    alone = [af.FusedEmbedding([work.rows], width) for width in each]
    every = torch.arange(work.rows)[:, None]
    with torch.no_grad():
        starts = table(every.expand(-1, work.fields)).split(each, 1)
        for one, start in zip(alone, starts, strict=True):
            one.weight.copy_(start)
    grad = torch.randn(work.batch, sum(each), generator=torch.Generator().manual_seed(1))
    updates = [af.optim.Adam(one, lr=LR, eps=EPS) for one in (table, *alone)]
    batches = itertools.cycle(work.batches())

    def step(ids: Tensor) -> Tensor:
        updates[0].zero_grad()
        found = table(ids)
        found.backward(grad)
        updates[0].step()
        return found.detach()

    for _ in range(2):
        ids = next(batches)
        found = torch.cat([one(ids[:, f : f + 1]) for f, one in enumerate(alone)], 1)
        if not torch.equal(step(ids), found.detach()):
            raise AssertionError(
                f"mixed widths, {work}: the results differ from those of one field"
            )
        for update in updates[1:]:
            update.zero_grad()
        found.backward(grad)
        for update in updates[1:]:
            update.step()
    return lambda: step(next(batches))


def bag_step(name: str, work: Work, per_bag: int) -> tuple[Run, float]:
    """Returns forward and backward of one multi-valued field, mean over a bag, to a gradient of the
    table, and the error of that gradient in units of its largest value.
    """
    batches = itertools.cycle([ids.flatten() for ids in work.batches()])
    offsets = torch.arange(0, work.batch + 1, per_bag, device=work.device)
    grad = work.grad()[: len(offsets) - 1]
    if name == OURS:
        table = af.FusedEmbedding([work.rows], work.width, device=work.device)
    else:
        options = {"mode": "mean", "include_last_offset": True, "sparse": "sparse" in name}
        table = nn.EmbeddingBag(work.rows, work.width, device=work.device, **options)

    def run() -> Tensor:
        table.weight.grad = None
        table(next(batches), offsets).backward(grad)
        gradient = table.weight.grad
        return gradient.coalesce() if gradient.is_sparse else gradient

    found = run().to_dense()
    true = torch.zeros_like(found, dtype=torch.float64)
    ids = work.batches()[0].flatten()
    true.index_add_(0, ids, grad.double().repeat_interleave(per_bag, 0) / per_bag)
    return run, ((found - true).abs().max() / true.abs().max()).item()


def lines(rows: Tensor, record: int) -> int:
    """Bytes of the cache lines that hold the records of ``rows``, ``record`` bytes each in one
    table.
    """
    return LINE * len(torch.unique(rows * record // LINE))


def records(work: Work, case: str) -> list[int]:
    """Bytes of a row in the table and in each table of the optimizer's state."""
    return [4 * (times * work.width + plus) for times, plus in [(1, 0), *STATES.get(case, [])]]


def floor_bytes(work: Work, case: str) -> float:
    """The least that must move: each line once to look up, and once each way to update; a mean over
    the batches.

    Look-up: ids, rows, output. A step: the ids again, the gradient, and rows and state there and
    back.
    """
    total = 0
    row = 4 * work.width
    batches = work.batches()
    for ids in batches:
        rows = torch.unique(ids + work.first())
        look_ups = ids.numel()
        total += look_ups * (8 + row) + lines(rows, row)
        if case != "forward":
            moved = sum(lines(rows, record) for record in records(work, case))
            total += look_ups * (8 + row) + 2 * moved
    return total / len(batches)


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
