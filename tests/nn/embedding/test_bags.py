"""Bags of FusedEmbedding, their factors, and padding ids, against torch.nn.

The cases of PyTorch's test/nn/test_embedding.py that apply are among these tests and those of
test_embedding.py. What does not apply: ``max_norm`` and ``scale_grad_by_freq``, tables without rows
or width or of integers, a functional form beside the ops, and forward-mode AD, as gradients are
sparse.
"""

import copy
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from adaftr_fast import FusedEmbedding, optim
from tests.ops.marks import on_threads
from tests.tolerances import assert_same_bits

SIZES = [5, 3, 40]
PADDING = [2, None, -1]  # the last row of field 2
# A hundred terms and more of size 1 in another order: float32 errs by 1e-7 times each partial sum.
TOLERANCES = {
    torch.float64: {"rtol": 1e-7, "atol": 1e-7},
    torch.float32: {"rtol": 1e-5, "atol": 1e-4},
    torch.bfloat16: {"rtol": 5e-2, "atol": 5e-2},
    torch.float16: {"rtol": 1e-2, "atol": 1e-2},
}
WIDTHS = pytest.mark.parametrize("widths", [4, [4, 2, 4]], ids=["one width", "mixed"])


def batch(size=16):
    return torch.stack([torch.randint(0, n, (size,)) for n in SIZES], 1)


def bags_of(counts):
    """Returns ids for bags of these sizes, field by field in turn, and their offsets."""
    counts = torch.as_tensor(counts)
    field = (torch.arange(len(counts)) % 3).repeat_interleave(counts)
    values = (torch.rand(len(field)) ** 3 * torch.tensor(SIZES)[field]).long()
    return values, torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])


def twins(emb, kind, options):
    """The same fields as torch.nn modules in float64, with options for each."""
    made = []
    for f in range(3):
        padding = None if emb.padding_idx is None else emb.padding_idx[f]
        weight = emb.field_weight(f).double()
        made.append(kind.from_pretrained(weight, freeze=False, padding_idx=padding, **options[f]))
    return made


def by_twins(tables, values, bags, factors):
    """The bags by nn.EmbeddingBag of each field."""
    field = (torch.arange(len(bags) - 1) % 3).repeat_interleave(bags.diff())
    parts = []
    for f, table in enumerate(tables):
        own = field == f
        sizes = bags.diff()[f::3]
        parts.append(
            table(
                values[own].long(),
                sizes.cumsum(0) - sizes,
                None if factors is None else factors[own],
            )
        )
    return torch.cat(parts, 1)


def check_gradients(emb, tables, **tolerance):
    for owned, weight in zip(emb.by_width, emb.table_weights(), strict=True):
        assert weight.grad.is_coalesced()
        for f, rows in zip(
            owned.fields, weight.grad.to_dense().split(owned.num_embeddings), strict=True
        ):
            torch.testing.assert_close(rows, tables[f].weight.grad, **tolerance)


def train(emb, steps=3):
    optimizer = optim.Adam(emb, lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        emb(batch(4)).sin().sum().backward()
        optimizer.step()
    emb.zero_grad()


POOLINGS = ["mean", "sum", "max", ["mean", "sum", "mean"], ["max", "mean", "sum"]]


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    kind=st.sampled_from(["ids", "bags", "weighted"]),
    pooling=st.sampled_from(POOLINGS),
    widths=st.sampled_from([1, 3, 8, 16, 19, [8, 3, 8]]),
    counts=st.lists(st.integers(0, 12), max_size=30),
    id_type=st.sampled_from([torch.int32, torch.int64]),
    dtype=st.sampled_from(list(TOLERANCES)),
    padded=st.booleans(),
    deferred=st.booleans(),
)
def test_look_ups_equal_those_of_torch(
    kind, pooling, widths, counts, id_type, dtype, padded, deferred
):
    """With the gradients of rows and factors."""
    close = partial(torch.testing.assert_close, **TOLERANCES[dtype])
    padding = PADDING if padded else None
    pooling = "sum" if kind == "weighted" else pooling
    # Of equal rows, the gradient of a maximum is shared; torch gives it to the first.
    distinct = "max" in pooling and dtype.itemsize == 2

    def made():
        torch.manual_seed(0)
        emb = FusedEmbedding(SIZES, widths, pooling=pooling, padding_idx=padding, dtype=dtype)
        if distinct:
            for weight in emb.parameters():
                weight.data = torch.rand(weight.shape).argsort(0).to(dtype)
        elif deferred:
            train(emb)
        return emb

    emb = made()
    flushed = made()  # not emb itself: a backward reads the weights of its look-up
    flushed.flush()
    counts = torch.tensor(counts[: len(counts) // 3 * 3], dtype=torch.int64)
    values, bags = bags_of(counts.clamp(1, 1) if kind == "ids" else counts)
    ours = torch.rand(len(values)).to(dtype).requires_grad_() if kind == "weighted" else None
    theirs = None if ours is None else ours.detach().double().requires_grad_()
    given = (values.view(-1, 3),) if kind == "ids" else (values, bags, ours)
    out = emb(given[0].to(id_type), *given[1:])
    if kind == "ids":
        tables = twins(flushed, nn.Embedding, [{}] * 3)
        expected = torch.cat([table(given[0][:, f]) for f, table in enumerate(tables)], 1)
    else:
        modes = [pooling] * 3 if isinstance(pooling, str) else pooling
        tables = twins(flushed, nn.EmbeddingBag, [{"mode": mode} for mode in modes])
        expected = by_twins(tables, values, bags, theirs)
    close(out.double(), expected)
    grad = torch.randn_like(out)
    out.backward(grad)
    expected.backward(grad.double())
    check_gradients(emb, tables, check_dtype=False, **TOLERANCES[dtype])
    if ours is not None:
        assert ours.grad.dtype == dtype
        close(ours.grad.double(), theirs.grad)


@WIDTHS
@pytest.mark.parametrize("pooling", [POOLINGS[0], POOLINGS[-1]], ids=str)
def test_offsets_without_the_last_one_and_ids_out_of_range(pooling, widths):
    emb = FusedEmbedding(SIZES, widths, pooling=pooling)
    values, bags = bags_of([3, 0, 5, 1, 4, 0, 2, 2, 30, 0, 1, 6])
    other = FusedEmbedding(SIZES, widths, include_last_offset=False, pooling=pooling)
    other.load_state_dict(emb.state_dict())
    assert torch.equal(other(values, bags[:-1]), emb(values, bags))
    assert torch.equal(other(values.int(), bags[:-1].int()), emb(values, bags))
    values[9] = 7
    with pytest.raises(IndexError, match=r"values\[9\] = 7 \(row 1\) is out of range for field 1"):
        emb(values, bags)


@pytest.mark.parametrize("kinds", ["max", ["max", "mean", "sum"]])
def test_derivatives_of_a_pooling_per_field(kinds):
    values, bags = bags_of([3, 2, 4, 1, 0, 2])
    emb = FusedEmbedding(SIZES, 2, pooling=kinds, padding_idx=PADDING, dtype=torch.float64)

    def pooled(weight):
        return torch.func.functional_call(emb, {"weight": weight}, (values, bags))

    weight = torch.randn_like(emb.weight)
    found = torch.func.jacrev(pooled)(weight)
    step = 1e-6
    for place in ((0, 1), (6, 0), (20, 1)):
        moved = torch.zeros_like(weight)
        moved[place] = step
        difference = (pooled(weight + moved) - pooled(weight - moved)) / (2 * step)
        torch.testing.assert_close(found[(..., *place)], difference, rtol=1e-6, atol=1e-6)


def test_poolings_that_are_refused():
    with pytest.raises(ValueError, match=r"pooling must be 'mean', 'sum' or 'max', got 'first'"):
        FusedEmbedding(SIZES, 2, pooling="first")
    with pytest.raises(ValueError, match=r"pooling must be one for all fields, or 3 \(one per"):
        FusedEmbedding(SIZES, 2, pooling=["mean", "max"])
    values, bags = bags_of([1, 1, 1])
    with pytest.raises(ValueError, match="per_sample_weights must be None where a field has pool"):
        FusedEmbedding(SIZES, 2, pooling="max")(values, bags, torch.ones(3))


@pytest.mark.parametrize("pooling", ["mean", "sum"])
def test_the_thread_count_changes_no_bag(pooling):
    torch.manual_seed(0)
    values, bags = bags_of([100, 1, 0] * 60)  # one large bag among small ones
    emb = FusedEmbedding(SIZES, 8, pooling=pooling)
    runs = []
    grad = torch.randn(60, 24)
    for count in (1, 2, 3):
        with on_threads(count):
            emb.weight.grad = None
            out = emb(values, bags)
            out.backward(grad)
        runs.append((out.detach(), emb.weight.grad._indices(), emb.weight.grad._values()))
    for other in runs[1:]:
        assert_same_bits(runs[0], other)


@WIDTHS
def test_padding_rows_start_as_zeros(widths):
    emb = FusedEmbedding(SIZES, widths, padding_idx=PADDING)
    assert emb.padding_idx == [2, None, 39]
    assert not emb.field_weight(0)[2].any()
    assert not emb.field_weight(2)[39].any()
    assert emb.field_weight(1).all()


@WIDTHS
def test_bags_of_one_length(widths):
    emb = FusedEmbedding(SIZES, widths, pooling="sum", padding_idx=PADDING)
    ids = torch.stack([torch.randint(0, n, (16, 6)) for n in SIZES], 1)  # [B, F, L]
    factors = torch.rand(ids.shape)
    offsets = torch.arange(0, ids.numel() + 1, 6).int()
    expected = emb(ids.flatten(), offsets, factors.flatten())
    assert torch.equal(emb(ids, None, factors), expected)
    assert torch.equal(emb(ids.int(), None, factors), expected)


@pytest.mark.parametrize("table", [True, False])
@pytest.mark.parametrize("factors", [True, False])
def test_gradients_are_those_that_are_required(table, factors):
    emb = FusedEmbedding([6], 3, pooling="sum").requires_grad_(table)
    weights = torch.rand(3, 4, requires_grad=factors)
    out = emb(torch.arange(1, 5).expand(3, -1), None, weights.softmax(1))
    assert out.requires_grad == (table or factors)
    if table or factors:
        out.sum().backward()
    assert (emb.weight.grad is not None) == table
    assert (weights.grad is not None) == factors


def test_a_weighted_mean_divides_by_the_number_of_ids():
    emb = FusedEmbedding([5], 2, dtype=torch.float64, padding_idx=0)
    ids = torch.tensor([[1, 2, 0], [0, 0, 0], [3, 3, 4]])
    factors = torch.rand(3, 3, dtype=torch.float64)
    table = emb.field_weight(0)
    weighted = torch.stack(
        [(table[i] * w[:, None])[i != 0].sum(0) for i, w in zip(ids, factors, strict=True)]
    )
    torch.testing.assert_close(
        emb(ids, None, factors).detach(), weighted / torch.tensor([[2.0], [1.0], [3.0]])
    )


@pytest.mark.parametrize(("pooling", "padding"), [("mean", 1), ("sum", None)])
def test_gradients_of_rows_and_factors_by_gradcheck(pooling, padding):
    torch.manual_seed(0)
    emb = FusedEmbedding([5, 3], 2, pooling=pooling, padding_idx=padding, dtype=torch.float64)
    ids = torch.tensor([0, 1, 1, 4, 2, 2, 0])
    offsets = torch.tensor([0, 4, 4, 5, 7])
    ids[5:] = 1 if padding else 0

    def run(rows, factors):
        dense = torch.func.functional_call(emb, {"weight": rows}, (ids, offsets, factors))
        return dense.sin()

    factors = torch.rand(7, dtype=torch.float64, requires_grad=True)
    run(emb.weight, factors).sum().backward()
    assert torch.autograd.gradcheck(lambda each: run(emb.weight, each), factors)
    assert torch.autograd.gradgradcheck(lambda each: run(emb.weight.detach(), each), factors)
    step = torch.randn_like(emb.weight)
    if padding is not None:
        step[1] = step[6] = 0
    with torch.no_grad():
        moved = [run(emb.weight + sign * 1e-6 * step, factors).sum() for sign in (1, -1)]
    torch.testing.assert_close(
        (emb.weight.grad.to_dense() * step).sum(), (moved[0] - moved[1]) / 2e-6
    )


def test_one_field_takes_bags_of_one_length():
    emb = FusedEmbedding([9], 3)
    ids = torch.randint(0, 9, (4, 5))
    torch.testing.assert_close(emb(ids), emb.field_weight(0)[ids].mean(1))
    assert emb(ids[:, :0]).eq(0).all()
    assert emb(ids[:0]).shape == (0, 3)
    assert emb(ids.flatten()[:0], torch.tensor([0])).shape == (0, 3)
    with pytest.raises(ValueError, match=r"ids must be \[B, 1\] or \[B, 1, L\], got \[4, 2, 5\]"):
        emb(torch.zeros(4, 2, 5, dtype=torch.int64))
    with pytest.raises(
        ValueError, match=r"per_sample_weights must be \[4, 5\], as the ids, got \[4, 4\]"
    ):
        emb(ids, None, torch.ones(4, 4))


@pytest.mark.parametrize("padding", [5, [0, 3, 0], [0, 1]])
def test_a_padding_idx_out_of_range_is_named(padding):
    with pytest.raises(ValueError, match="FusedEmbedding: padding_idx must be "):
        FusedEmbedding(SIZES, 2, padding_idx=padding)


def test_ids_out_of_range_beside_padding_are_named():
    emb = FusedEmbedding([5, 3], 2, padding_idx=[0, None])
    for factors in (None, torch.rand(1, 2)):
        with pytest.raises(IndexError, match=r"ids\[0, 1\] = -1 is out of range|values\[1\] = -1"):
            emb(torch.tensor([[0, -1]]), None, factors)
    with pytest.raises(IndexError, match=r"values\[1\] = -1"):
        emb(torch.tensor([0, -1]), torch.tensor([0, 1, 2]))
    with pytest.raises(ValueError, match="offsets must rise from 0"):
        emb(torch.tensor([0, 1]), torch.tensor([0, 3, 2]))


def test_a_frozen_module_can_be_copied_and_thawed():
    emb = copy.deepcopy(FusedEmbedding([5], 2).requires_grad_(False)).requires_grad_()
    emb(torch.tensor([[1], [1]])).sum().backward()
    assert emb.weight.grad.is_coalesced()


def test_weight_decay_reaches_a_padding_row_that_is_looked_up():
    for row, expected in ((0, 0.95), (1, 1.0)):
        emb = FusedEmbedding.from_pretrained(torch.ones(3, 2), freeze=False, padding_idx=0)
        emb(torch.tensor([[row]])).sum().backward()
        optim.SGD(emb, lr=0.1, weight_decay=0.5).step()
        assert emb.weight[0].tolist() == pytest.approx([expected] * 2)
