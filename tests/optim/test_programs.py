"""Programs that read and write a parameter themselves while exact Adam defers the steps of its
rows, beside torch.
"""

import copy
import io
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils import parameters_to_vector, parametrize, vector_to_parameters
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from adaftr_fast import FusedEmbedding, optim
from adaftr_fast.optim.adam import DeferredAdam
from tests.distributed.ranks import on_ranks
from tests.tolerances import assert_same_bits

SIZES = [6, 9]
WIDTH = 3


class Dense(nn.Module):
    """What a FusedEmbedding computes, by a dense gradient."""

    def __init__(self, weight):
        super().__init__()
        self.weight = nn.Parameter(weight.detach().clone())
        self.register_buffer("first", torch.tensor([0, SIZES[0]]), persistent=False)

    def forward(self, ids):
        return F.embedding(ids + self.first, self.weight).flatten(1)


def both():
    """Returns a FusedEmbedding and its dense twin, each with exact Adam."""
    torch.manual_seed(0)
    table = FusedEmbedding(SIZES, WIDTH, dtype=torch.float64)
    pairs = ((table, optim.Adam), (Dense(table.weight), torch.optim.Adam))
    return [(each, kind(each.parameters(), lr=0.1)) for each, kind in pairs]


def step(table, optimizer, number, extra=None):
    """Takes a step on one row of each field; all other rows miss it."""
    ids = torch.tensor([[number % 4, number % 7]])
    optimizer.zero_grad()
    loss = table(ids).sin().sum()
    (loss if extra is None else loss + extra(table)).backward()
    optimizer.step()


def train(table, optimizer, first=0, count=5, extra=None):
    for number in range(first, first + count):
        step(table, optimizer, number, extra)


def look_up(table):
    return table(torch.stack([torch.arange(9) % 6, torch.arange(9)], 1)).detach().clone()


def writes(table, optimizer):
    """A row, all of them, and the best weights."""
    best = [p.detach().clone() for p in table.parameters()]
    train(table, optimizer)
    seen = []
    for write in (
        lambda p: p.zero_(),
        lambda p: p.__setitem__(1, 0.5),
        lambda p: p.copy_(best[0]),
    ):
        with torch.no_grad():
            write(*table.parameters())
        seen.append(look_up(table))
        train(table, optimizer, 5)
    return torch.cat(seen)


def calls_it_with_other_weights(table, optimizer):
    train(table, optimizer)
    every = torch.stack([torch.arange(6), torch.arange(6)], 1)
    own = dict(table.named_parameters())
    detached = {name: p.detach() for name, p in table.named_parameters()}
    zeros = {"weight": torch.zeros(15, WIDTH, dtype=torch.float64)}
    return torch.cat(
        [torch.func.functional_call(table, weights, every) for weights in (zeros, own, detached)]
    )


def ties_weights(table, optimizer):
    other = copy.deepcopy(table)
    other.weight = table.weight
    train(table, optimizer)
    seen = look_up(other)
    train(other, optimizer, 5)
    read = F.embedding(torch.arange(15), other.weight)
    return torch.cat([seen.flatten(), look_up(other).flatten(), read.flatten()]).detach()


def swaps_a_moving_average(table, optimizer):
    """As Lightning does: the average is evaluated in place of the weights, which return
    afterwards.
    """
    averaged = AveragedModel(table, multi_avg_fn=get_ema_multi_avg_fn(0.8))
    seen = []
    for number in range(6):
        step(table, optimizer, number)
        averaged.update_parameters(table)
        if number % 2:
            for _ in range(2):
                for p, q in zip(table.parameters(), averaged.module.parameters(), strict=True):
                    kept = p.data.clone()
                    p.data.copy_(q.data)
                    q.data.copy_(kept)
                seen.append(look_up(table))
    return torch.cat(seen)


def penalizes_all_rows(table, optimizer):
    train(
        table, optimizer, extra=lambda each: 0.1 * sum(p.square().sum() for p in each.parameters())
    )


def holds_the_parameters(table, optimizer):
    """A list of before the first step, as that of torch_ema, and the optimizer's own."""
    held = list(table.parameters())
    train(table, optimizer)
    seen = [p.data.clone() for p in held]
    train(table, optimizer, 5)
    for group in optimizer.param_groups:
        vector_to_parameters(0.9 * parameters_to_vector(group["params"]), group["params"])
    return torch.cat([*seen, *held]).detach()


def copies(table, optimizer):
    train(table, optimizer)
    pickled = io.BytesIO()
    torch.save(table.weight, pickled)
    pickled.seek(0)
    twins = [copy.deepcopy(table), pickle.loads(pickle.dumps(table)), copy.deepcopy(table)]
    twins[2].weight = torch.load(pickled)
    assert {type(twin.weight) for twin in twins} == {nn.Parameter}
    return torch.cat([look_up(twin) for twin in twins])


def steps_with_two_optimizers(table, optimizer):
    """The second one of torch, as a schedule of two phases has."""
    other = torch.optim.SGD(table.parameters(), lr=0.1)
    train(table, optimizer)
    table.weight.grad = torch.ones(15, WIDTH, dtype=torch.float64)
    other.step()


class Halved(nn.Module):
    def forward(self, weight):
        return weight / 2


def parametrizes(table, optimizer):
    train(table, optimizer)
    parametrize.register_parametrization(table, "weight", Halved())
    seen = look_up(table)
    parametrize.remove_parametrizations(table, "weight", leave_parametrized=False)
    return seen


def sets_other_memory(table, optimizer):
    train(table, optimizer)
    before = table.weight.as_subclass(torch.Tensor).detach().clone()
    train(table, optimizer, 5)
    with torch.no_grad():
        table.weight.set_(torch.full((15, WIDTH), 0.5, dtype=torch.float64))
    return before


PROGRAMS = [
    writes,
    calls_it_with_other_weights,
    ties_weights,
    swaps_a_moving_average,
    penalizes_all_rows,
    holds_the_parameters,
    copies,
    steps_with_two_optimizers,
    parametrizes,
    sets_other_memory,
]


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)
def test_a_program_computes_what_it_does_on_a_dense_table(program):
    results = []
    for each, optimizer in both():
        first = program(each, optimizer)
        seen = look_up(each)
        train(each, optimizer, 11)
        results.append(
            [seen, look_up(each), each.weight.detach().clone(), *([] if first is None else [first])]
        )
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-12)


def built_after_steps(rank):
    found = []
    for table, optimizer in both():
        train(table, optimizer, first=rank)
        nn.parallel.DistributedDataParallel(table)  # which gives all ranks the rows of rank 0
        found.append(look_up(table))
    return found


def test_ddp_built_after_steps_broadcasts_present_rows():
    for ours, dense in on_ranks(built_after_steps, 2):
        torch.testing.assert_close(ours, dense, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "noticed_by", ["look-up", "step", "flush", "parameter", "state_dict", "optimizer"]
)
def test_a_write_that_cannot_be_honoured_raises(noticed_by):
    (table, optimizer), _ = both()
    view = table.field_weight(0)
    view[1] = 0.5  # every row is current
    train(table, optimizer)
    view[2] = 0.5
    looks = {
        "look-up": lambda: look_up(table),
        "step": optimizer.step,
        "flush": table.flush,
        "parameter": lambda: table.weight.sum(),
        "state_dict": table.state_dict,
        "optimizer": optimizer.state_dict,
    }
    with pytest.raises(
        RuntimeError, match=r"a table \[15, 3\] was written through a view .* call flush\(\)"
    ):
        looks[noticed_by]()


def test_functions_of_no_rows_read_none(monkeypatch):
    (table, optimizer), _ = both()
    train(table, optimizer)
    passes = []
    monkeypatch.setattr(DeferredAdam, "apply", lambda self, weight: passes.append(weight))
    weight = table.weight
    names = (
        "stride storage_offset get_device is_pinned is_shared is_inference retain_grad numel "
        "is_floating_point"
    )
    for name in names.split():
        getattr(weight, name)()
    names = (
        "nbytes itemsize is_nested is_quantized is_sparse_csr _version _backward_hooks grad_dtype "
        "device requires_grad shape grad"
    )
    for name in names.split():
        getattr(weight, name)
    for function in (torch.numel, torch.is_floating_point, torch.empty_like, torch.zeros_like):
        function(weight)
    assert torch.result_type(weight, 1) == torch.float64
    assert weight.new_empty(2).shape == (2,)
    loss = table(torch.tensor([[1, 2]])).sum()
    (grad,) = torch.autograd.grad(loss, weight, retain_graph=True)
    optimizer.zero_grad()
    table.zero_grad()
    loss.backward(inputs=[weight])
    assert_same_bits(weight.grad, grad)
    optim.clip_grad_norm_(table.parameters(), 1.0)
    optimizer.step()
    assert passes == []
    assert table.weight.sum().isfinite()
    assert passes == [weight]


def test_a_mode_that_takes_ops_does_not_take_missed_steps():
    (table, optimizer), (dense, other) = both()
    train(table, optimizer)
    train(dense, other)
    with FakeTensorMode() as mode:
        assert mode.from_tensor(table.weight).shape == (15, WIDTH)
    torch.testing.assert_close(look_up(table), look_up(dense), rtol=1e-9, atol=1e-12)


class Penalized(nn.Module):
    def __init__(self, table):
        super().__init__()
        self.table = table

    def forward(self, ids):
        return self.table(ids).sin().sum() + 0.1 * self.table.weight.square().sum()


def test_a_compiled_program_reads_present_rows():
    torch.compiler.reset()
    weights = []
    for table, optimizer in both():
        loss = torch.compile(Penalized(table), backend="aot_eager")
        for number in range(6):
            step(table, optimizer, number)
            optimizer.zero_grad()
            loss(torch.tensor([[number % 4, number % 7]])).backward()
            optimizer.step()
        weights.append(table.weight.detach())
    torch.testing.assert_close(*weights, rtol=1e-9, atol=1e-12)


def test_a_compiled_step_over_missed_steps_is_named():
    torch.compiler.reset()
    (table, optimizer), _ = both()
    other = torch.optim.SGD(table.parameters(), lr=0.1)
    train(table, optimizer)
    table.weight.grad = torch.ones(15, WIDTH, dtype=torch.float64)

    def steps_and_reads():
        torch.compile(other.step, backend="aot_eager")()
        look_up(table)

    with pytest.raises(RuntimeError, match=r"by a program of torch.compile, .* or call flush\(\)"):
        steps_and_reads()


@pytest.mark.parametrize(
    "make",
    [
        nn.Parameter,
        nn.Embedding.from_pretrained,
        lambda weight: nn.Embedding(15, WIDTH, _weight=weight),
        lambda weight: torch.utils.dlpack.from_dlpack(torch.utils.dlpack.to_dlpack(weight)),
        lambda weight: torch.sparse_coo_tensor(torch.arange(15)[None], weight).to_dense(),
    ],
)
def test_what_runs_below_python_takes_present_rows_after_a_flush(make):
    (table, optimizer), (dense, other) = both()
    train(table, optimizer)
    train(dense, other)
    table.flush()
    made = make(table.weight)
    found = made.weight if isinstance(made, nn.Embedding) else made
    torch.testing.assert_close(found.detach(), dense.weight.detach(), rtol=1e-9, atol=1e-12)
