"""Padding ids, factors of bags and their gradient, and bags of one length, against torch.nn."""

import copy

import pytest
import torch
from torch import nn

from adaftr_fast import FusedEmbedding, optim
from adaftr_fast.nn.deferred import missed_steps

SIZES = [5, 3, 40]
PADDING = [2, None, -1]  # the last row of field 2


def batch(size: int = 16) -> torch.Tensor:
    return torch.stack([torch.randint(0, n, (size,)) for n in SIZES], 1)


def twins(emb, kind, **options):
    """The same fields as torch.nn modules."""
    made = []
    for f in range(3):
        padding = None if emb.padding_idx is None else emb.padding_idx[f]
        made.append(kind.from_pretrained(emb.field_weight(f).clone(), freeze=False, padding_idx=padding, **options))
    return made


def check_tables(emb, tables):
    gradients = [weight.grad.to_dense() for weight in emb.table_weights()]
    for f, table in enumerate(tables):
        _, owned, place = emb._locate(f)
        rows = gradients[emb.by_width.index(owned)].split(owned.num_embeddings)[place]
        torch.testing.assert_close(rows, table.weight.grad)


@pytest.mark.parametrize("widths", [4, [4, 2, 4]], ids=["one width", "mixed"])
def test_look_ups_hold_the_padding_row(widths):
    torch.manual_seed(0)
    emb = FusedEmbedding(SIZES, widths, padding_idx=PADDING)
    assert emb.padding_idx == [2, None, 39]
    assert not emb.field_weight(0)[2].any()
    assert not emb.field_weight(2)[39].any()
    assert emb.field_weight(1).all()
    emb.field_weight(0)[2] = 7.0  # it may have another value, which is read
    ids = batch()
    ids[:4, 0], ids[2:6, 2] = 2, 39
    tables = twins(emb, nn.Embedding)
    out, expected = emb(ids), torch.cat([table(ids[:, f]) for f, table in enumerate(tables)], 1)
    assert torch.equal(out, expected)
    out.sin().sum().backward()
    expected.sin().sum().backward()
    check_tables(emb, tables)


@pytest.mark.parametrize("name", ["SGD", "Adagrad", "RowwiseAdagrad", "LazyAdam", "Adam", "AdamW"])
def test_no_optimizer_moves_the_padding_row(name):
    emb = FusedEmbedding(SIZES, 4, padding_idx=0)
    optimizer = getattr(optim, name)(emb, lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        emb(batch()).sin().sum().backward()
        optimizer.step()
    for f in range(3):
        assert not emb.field_weight(f)[0].any()
        assert emb.field_weight(f)[1:].any()


@pytest.mark.parametrize("widths", [4, [4, 2, 4]], ids=["one width", "mixed"])
@pytest.mark.parametrize("padding", [None, PADDING], ids=["none", "padded"])
@pytest.mark.parametrize("kind", ["mean", "sum", "weighted"])
def test_bags_leave_padding_out_and_give_factors_a_gradient(kind, padding, widths):
    torch.manual_seed(0)
    pooling = "sum" if kind == "weighted" else kind
    emb = FusedEmbedding(SIZES, widths, pooling=pooling, padding_idx=padding, dtype=torch.float64)
    ids = torch.stack([torch.randint(0, n, (16, 6)) for n in SIZES], 1)  # [B, F, L]
    ids[:4, 0, :3], ids[2:6, 2], ids[0, 2, 0] = 2, 39, 39  # some bags are all padding
    ours = torch.rand(ids.shape, dtype=torch.float64, requires_grad=True) if kind == "weighted" else None
    theirs = None if ours is None else ours.detach().clone().requires_grad_()
    tables = twins(emb, nn.EmbeddingBag, mode=pooling)
    out = emb(ids, None, ours)
    parts = [table(ids[:, f], None, None if theirs is None else theirs[:, f]) for f, table in enumerate(tables)]
    expected = torch.cat(parts, 1)
    torch.testing.assert_close(out, expected)
    out.sin().sum().backward()
    expected.sin().sum().backward()
    check_tables(emb, tables)
    if ours is not None:
        torch.testing.assert_close(ours.grad, theirs.grad)
    flat = emb(
        ids.flatten(), torch.arange(0, ids.numel() + 1, 6, dtype=torch.int32), None if ours is None else ours.flatten()
    )
    assert torch.equal(flat, out)
    assert torch.equal(emb(ids.int(), None, ours), out)


def test_a_weighted_mean_divides_by_the_number_of_ids():
    emb = FusedEmbedding([5], 2, dtype=torch.float64, padding_idx=0)
    ids, factors = torch.tensor([[1, 2, 0], [0, 0, 0], [3, 3, 4]]), torch.rand(3, 3, dtype=torch.float64)
    table = emb.field_weight(0)
    weighted = torch.stack([(table[i] * w[:, None])[i != 0].sum(0) for i, w in zip(ids, factors, strict=True)])
    torch.testing.assert_close(emb(ids, None, factors).detach(), weighted / torch.tensor([[2.0], [1.0], [3.0]]))


@pytest.mark.parametrize("pooling", ["mean", "sum"])
@pytest.mark.parametrize("padding", [None, 1])
def test_gradients_of_rows_and_factors_by_gradcheck(pooling, padding):
    torch.manual_seed(0)
    emb = FusedEmbedding([5, 3], 2, pooling=pooling, padding_idx=padding, dtype=torch.float64)
    ids, offsets = torch.tensor([0, 1, 1, 4, 2, 2, 0]), torch.tensor([0, 4, 4, 5, 7])
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
    torch.testing.assert_close((emb.weight.grad.to_dense() * step).sum(), (moved[0] - moved[1]) / 2e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_factors_have_a_gradient_where_rows_missed_steps(dtype):
    torch.manual_seed(0)
    emb = FusedEmbedding(SIZES, 4, pooling="sum", dtype=dtype)
    optimizer = optim.Adam(emb, lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        emb(batch(4)).sin().sum().backward()
        optimizer.step()
    ids, factors = batch(), torch.rand(16, 3, requires_grad=True)
    emb(ids, None, factors).sum().backward()
    assert missed_steps(emb.weight)
    rows = torch.stack([emb.field_weight(f)[ids[:, f]].float().sum(1) for f in range(3)], 1)
    torch.testing.assert_close(
        factors.grad,
        rows,
        rtol=2e-2 if dtype == torch.bfloat16 else 1e-4,
        atol=1e-2 if dtype == torch.bfloat16 else 1e-5,
    )


def test_padding_compiles():
    torch.compiler.reset()
    emb = FusedEmbedding([5, 3], 4, padding_idx=1)
    compiled = torch.compile(emb, backend="aot_eager", fullgraph=True)
    for ids in (torch.tensor([[1, 2], [0, 1]]), torch.tensor([[[1, 0], [2, 1]]])):
        gradients = []
        for run in (emb, compiled):
            emb.zero_grad()
            run(ids).sin().sum().backward()
            gradients.append(emb.weight.grad.to_dense())
        torch.testing.assert_close(*gradients)


def test_one_field_takes_bags_of_one_length():
    emb = FusedEmbedding([9], 3)
    ids = torch.randint(0, 9, (4, 5))
    torch.testing.assert_close(emb(ids), emb.field_weight(0)[ids].mean(1))
    assert emb(ids[:, :0]).eq(0).all()
    assert emb(ids[:0]).shape == (0, 3)
    with pytest.raises(ValueError, match=r"ids must be \[B, 1\] or \[B, 1, L\], got \[4, 2, 5\]"):
        emb(torch.zeros(4, 2, 5, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"per_sample_weights must be \[4, 5\], as the ids, got \[4, 4\]"):
        emb(ids, None, torch.ones(4, 4))


@pytest.mark.parametrize("padding", [5, -6, [0, 3, 0], [0, 1]])
def test_a_padding_idx_out_of_range_is_named(padding):
    with pytest.raises(ValueError, match="FusedEmbedding: padding_idx must be "):
        FusedEmbedding(SIZES, 2, padding_idx=padding)


def test_ids_out_of_range_beside_padding_are_still_named():
    emb = FusedEmbedding([5, 3], 2, padding_idx=[0, None])
    with pytest.raises(IndexError, match=r"ids\[0, 1\] = -1 is out of range"):
        emb(torch.tensor([[0, -1]]))
    with pytest.raises(IndexError, match=r"values\[1\] = -1"):
        emb(torch.tensor([0, -1]), torch.tensor([0, 1, 2]))
    with pytest.raises(ValueError, match="offsets must rise from 0"):
        emb(torch.tensor([0, 1]), torch.tensor([0, 3, 2]))


def test_a_frozen_module_can_be_copied_and_thawed():
    emb = copy.deepcopy(FusedEmbedding([5], 2).requires_grad_(False)).requires_grad_()
    emb(torch.tensor([[1], [1]])).sum().backward()
    assert emb.weight.grad.is_coalesced()


@pytest.mark.parametrize("ids", [[[0]], [[1]]])
def test_weight_decay_reaches_a_padding_row_that_is_looked_up(ids):
    emb = FusedEmbedding.from_pretrained(torch.ones(3, 2), freeze=False, padding_idx=0)
    emb(torch.tensor(ids)).sum().backward()
    optim.SGD(emb, lr=0.1, weight_decay=0.5).step()
    assert emb.weight[0].tolist() == pytest.approx([0.95, 0.95] if ids == [[0]] else [1.0, 1.0])
