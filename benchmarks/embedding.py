"""The embeddings that are compared, each with its optimizer, and the float64 arithmetic that they must follow.

B batch, F fields of V rows each, E width. A contestant looks up ids [B, F] and returns [B, F * E].
"""

import importlib.util
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from adaftr_fast import FusedEmbedding, build_info, optim
from adaftr_fast._extension import has_cuda_kernels

LR, BETAS = 1e-2, (0.9, 0.999)
EPS = 1e-10  # so small that it does not matter where an implementation adds it
AGREES = 1e-3  # of the largest change; float32 rounds a sum of many gradients by far less
MOST_LISTED = 10_000  # rows of a field up to which a table for each field is compared
BATCHES = 16  # different batches, so that no cache holds the rows of the next
# Of each of our optimizers: that of torch, and that of FBGEMM, whose Adam is lazy and needs CUDA.
PEERS = {
    "SGD": ("SGD", "EXACT_SGD"),
    "Adagrad": ("Adagrad", "EXACT_ADAGRAD"),
    "RowwiseAdagrad": (None, "EXACT_ROWWISE_ADAGRAD"),
    "LazyAdam": ("SparseAdam", "ADAM" if torch.cuda.is_available() else None),
    "Adam": ("dense fused Adam", None),
}
STATES = {"SGD": 0, "Adagrad": 1, "RowwiseAdagrad": 1, "LazyAdam": 2, "Adam": 2}
TORCH = {
    "SGD": partial(torch.optim.SGD, lr=LR),
    "Adagrad": partial(torch.optim.Adagrad, lr=LR, eps=EPS),
    "SparseAdam": partial(torch.optim.SparseAdam, lr=LR, eps=EPS),
    "dense fused Adam": partial(torch.optim.Adam, lr=LR, eps=EPS, fused=True),
}
LAZY = "concatenated + SparseAdam (lazy)"  # beside exact Adam for its speed: it does other arithmetic
HAS_FBGEMM = importlib.util.find_spec("fbgemm_gpu") is not None

Run = Callable[[], object]


@dataclass(frozen=True)
class Work:
    """Fields, rows of each, width, batch, the distribution of ids, and the device.

    With ``spread`` > 1 only each ``spread``-th row occurs: batches as those of a table that much smaller.
    """

    fields: int
    batch: int
    rows: int
    width: int = 8  # of the paper's Table 3
    ids: str = "zipf"
    device: str = "cpu"
    spread: int = 1

    def __str__(self) -> str:
        return f"F={self.fields} B={self.batch} V={self.rows}"

    def batches(self) -> list[Tensor]:
        """Returns ``BATCHES`` tensors of ids, int64 [B, F]: uniform, or Zipf(1.05) with popular rows scattered."""
        g = torch.Generator(self.device).manual_seed(0)
        rows, shape = self.rows // self.spread, (self.batch, self.fields)
        if self.ids == "uniform":
            return [torch.randint(0, rows, shape, generator=g, device=self.device) for _ in range(BATCHES)]
        share = torch.arange(1, rows + 1, dtype=torch.float64, device=self.device).pow(-1.05).cumsum(0)
        shift = torch.arange(self.fields, device=self.device) * 7919
        drawn = (torch.rand(shape, generator=g, dtype=torch.float64, device=self.device) for _ in range(BATCHES))
        ranks = (torch.searchsorted(share, each * share[-1]).clamp_(max=rows - 1) for each in drawn)
        return [(rank * 48271 + shift) % rows * self.spread for rank in ranks]

    def start(self) -> Tensor:
        """Returns the values that every table [F * V, E] begins with."""
        g = torch.Generator(self.device).manual_seed(2)
        return torch.randn(self.fields * self.rows, self.width, generator=g, device=self.device) * 0.01

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


Make = Callable[[Work], Table]


def _stepping(look_up: Callable[[Tensor], Tensor], update: torch.optim.Optimizer) -> Callable[[Tensor, Tensor], None]:
    def step(ids: Tensor, grad: Tensor) -> None:
        update.zero_grad()
        look_up(ids).backward(grad)
        update.step()

    return step


def fused(work: Work, optimizer: str) -> Table:
    """FusedEmbedding with an optimizer of adaftr_fast.optim.

    Raises:
        RuntimeError: the CUDA kernels are not built, so that a GPU would run their references.
    """
    if work.device != "cpu" and not has_cuda_kernels():
        raise RuntimeError(f"the CUDA kernels are missing: {build_info()['CUDA kernels']}")
    table = FusedEmbedding([work.rows] * work.fields, work.width, device=work.device)
    with torch.no_grad():
        table.weight.copy_(work.start())
    options = {} if optimizer == "SGD" else {"eps": EPS}

    def weights() -> Tensor:
        table.flush()
        return table.weight.detach()

    return Table(table, _stepping(table, getattr(optim, optimizer)(table, lr=LR, **options)), weights)


def concatenated(work: Work, optimizer: str) -> Table:
    """One nn.Embedding that holds all fields."""
    table = nn.Embedding.from_pretrained(work.start(), freeze=False, sparse="dense" not in optimizer)
    first = work.first()

    def look_up(ids: Tensor) -> Tensor:
        return table(ids + first).flatten(1)

    return Table(look_up, _stepping(look_up, TORCH[optimizer](table.parameters())), table.weight.detach)


def listed(work: Work, optimizer: str) -> Table:
    """An nn.Embedding a field, as models are usually written."""
    rows = work.start().split(work.rows)
    tables = nn.ModuleList(nn.Embedding.from_pretrained(each.clone(), freeze=False, sparse=True) for each in rows)

    def look_up(ids: Tensor) -> Tensor:
        return torch.cat([table(each) for table, each in zip(tables, ids.unbind(1), strict=True)], 1)

    update = TORCH[optimizer](tables.parameters())
    return Table(look_up, _stepping(look_up, update), lambda: torch.cat([each.weight.detach() for each in tables]))


def fbgemm(work: Work, optimizer: str) -> Table:
    """FBGEMM's table-batched embedding, which updates within its backward."""
    from fbgemm_gpu.split_embedding_configs import EmbOptimType
    from fbgemm_gpu.split_table_batched_embeddings_ops_common import ComputeDevice, EmbeddingLocation
    from fbgemm_gpu.split_table_batched_embeddings_ops_training import SplitTableBatchedEmbeddingBagsCodegen

    place = (EmbeddingLocation.DEVICE, ComputeDevice.CUDA)
    if work.device == "cpu":
        place = (EmbeddingLocation.HOST, ComputeDevice.CPU)
    tables = [(work.rows, work.width, *place)] * work.fields
    table = SplitTableBatchedEmbeddingBagsCodegen(tables, optimizer=EmbOptimType[optimizer], learning_rate=LR, eps=EPS)
    for own, rows in zip(table.split_embedding_weights(), work.start().split(work.rows), strict=True):
        own.copy_(rows)
    offsets = torch.arange(work.fields * work.batch + 1, device=work.device)

    def look_up(ids: Tensor) -> Tensor:
        return table(ids.t().reshape(-1), offsets)  # field after field

    def step(ids: Tensor, grad: Tensor) -> None:
        look_up(ids).backward(grad)

    return Table(look_up, step, lambda: torch.cat([each.detach() for each in table.split_embedding_weights()]))


def contestants(optimizer: str, rows: int) -> dict[str, Make]:
    """Returns ours first, then the peers that are installed, for fields of ``rows`` rows."""
    of_torch, of_fbgemm = PEERS[optimizer]
    found: dict[str, Make] = {"ours": partial(fused, optimizer=optimizer)}
    if of_torch is not None:
        found[f"concatenated + {of_torch}"] = partial(concatenated, optimizer=of_torch)
    if optimizer == "Adam":
        found[LAZY] = partial(concatenated, optimizer="SparseAdam")
    elif of_torch is not None and rows <= MOST_LISTED:
        found[f"list + {of_torch}"] = partial(listed, optimizer=of_torch)
    if HAS_FBGEMM and of_fbgemm is not None:
        found[f"FBGEMM {optimizer}"] = partial(fbgemm, optimizer=of_fbgemm)
    return found


def expected(work: Work, optimizer: str, steps: list[Tensor], grad: Tensor) -> Tensor:
    """Returns the table after ``steps`` batches by the optimizers' definitions, in float64."""
    weight = work.start().double()
    state = [torch.zeros_like(weight) for _ in range(STATES[optimizer])]
    for number, ids in enumerate(steps, 1):
        rows = (ids + work.first()).flatten()
        total = torch.zeros_like(weight).index_add_(0, rows, grad.double().view(-1, work.width))
        touched = torch.zeros(len(weight), dtype=torch.bool, device=weight.device).index_fill_(0, rows, True)
        if optimizer == "Adam":
            touched.fill_(True)
        weight[touched] -= LR * _direction(optimizer, number, total[touched], state, touched)
    return weight


def _direction(optimizer: str, number: int, grad: Tensor, state: list[Tensor], touched: Tensor) -> Tensor:
    if optimizer == "SGD":
        return grad
    if optimizer in ("Adagrad", "RowwiseAdagrad"):
        square = grad**2 if optimizer == "Adagrad" else (grad**2).mean(1, keepdim=True).expand_as(grad)
        state[0][touched] += square
        return grad / (state[0][touched].sqrt() + EPS)
    beta1, beta2 = BETAS
    state[0][touched] = beta1 * state[0][touched] + (1 - beta1) * grad
    state[1][touched] = beta2 * state[1][touched] + (1 - beta2) * grad**2
    correction1, correction2 = 1 - beta1**number, (1 - beta2**number) ** 0.5
    root = state[1][touched].sqrt()
    return state[0][touched] / correction1 / (root / correction2 + EPS)


def disagreement(make: Make, work: Work, optimizer: str) -> float:
    """Returns the largest error of a table after some steps, in units of the largest change that training made."""
    steps = work.batches()[:4]
    grad = work.grad()
    table, true = make(work), expected(work, optimizer, steps, grad)
    for ids in steps:
        table.step(ids, grad)
    return ((table.weights().double() - true).abs().max() / (true - work.start().double()).abs().max()).item()


def forwards(work: Work) -> dict[str, Run]:
    """Look-ups alone, once their results have been compared."""
    makes = {"ours": fused, "concatenated nn.Embedding": concatenated, "list of nn.Embedding": listed}
    tables = {name: make(work, "SGD").look_up for name, make in makes.items()}
    batches = work.batches()
    results = [look_up(batches[0]) for look_up in tables.values()]
    if not all(torch.equal(result, results[0]) for result in results):
        raise RuntimeError(f"forward, {work}: the contestants' results differ")
    return {name: _looking_up(look_up, itertools.cycle(batches)) for name, look_up in tables.items()}


def _looking_up(look_up: Callable[[Tensor], Tensor], batches: itertools.cycle) -> Run:
    return torch.no_grad()(lambda: look_up(next(batches)))


def bags(work: Work, each: int) -> dict[str, Run]:
    """Forward and backward of bags of ``each`` ids of one field, mean, once gradients have been compared."""
    ids = [batch.flatten() for batch in Work(1, work.batch * each, work.rows, 1, work.ids, work.device).batches()]
    offsets = torch.arange(work.batch + 1, device=work.device) * each
    grad = work.grad()
    ours = FusedEmbedding([work.rows], work.width, device=work.device)
    options = {"mode": "mean", "include_last_offset": True, "freeze": False}
    make = partial(nn.EmbeddingBag.from_pretrained, ours.weight.detach(), **options)
    tables = {
        "ours": ours,
        "nn.EmbeddingBag, sparse and coalesced": make(sparse=True),
        "nn.EmbeddingBag, dense gradient": make(),
    }

    def run(table: nn.Module, values: Tensor) -> Tensor:
        table.weight.grad = None
        table(values, offsets).backward(grad)
        gradient = table.weight.grad
        return gradient.coalesce() if gradient.is_sparse else gradient

    true = torch.zeros(work.rows, work.width, dtype=torch.float64, device=work.device)
    true.index_add_(0, ids[0], grad.double().repeat_interleave(each, 0) / each)
    for name, table in tables.items():
        if not (run(table, ids[0]).to_dense() - true).abs().max() <= AGREES * true.abs().max():
            raise RuntimeError(f"bags, {work}: {name} has another gradient")
    return {name: partial(_next, partial(run, table), itertools.cycle(ids)) for name, table in tables.items()}


def _next(run: Callable[[Tensor], Tensor], ids: itertools.cycle) -> Tensor:
    return run(next(ids))
