"""Bags of FusedEmbedding: multi-valued fields, against nn.functional.embedding_bag."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from adaftr_fast import FusedEmbedding, optim

SIZES = [5, 1, 40]


def batch(size: int = 16) -> torch.Tensor:
    return torch.stack([torch.randint(0, n, (size,)) for n in SIZES], 1)


def twin_bags(emb, values, bags, weights):
    """The same by nn.functional.embedding_bag."""
    field = (torch.arange(len(bags) - 1) % 3).repeat_interleave(bags.diff())
    table = emb.weight.detach().clone().requires_grad_()
    out = nn.functional.embedding_bag(
        values + emb.offsets[field], table, bags, mode=emb.pooling, per_sample_weights=weights, include_last_offset=True
    )
    return out.reshape(-1, emb.out_features), table


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    pooling=st.sampled_from(["mean", "sum"]),
    weighted=st.booleans(),
    width=st.sampled_from([1, 3, 8, 16, 19]),
    counts=st.lists(st.integers(0, 12), min_size=3, max_size=30),
    dtype=st.sampled_from([torch.int32, torch.int64]),
    deferred=st.booleans(),
)
def test_bags_equal_embedding_bag(pooling, weighted, width, counts, dtype, deferred):
    emb = FusedEmbedding(SIZES, width, pooling=pooling)
    if deferred:
        optimizer = optim.Adam(emb, lr=0.01)
        for _ in range(3):
            emb(batch(4)).sum().backward()
            optimizer.step()
        emb.weight.grad = None
    counts = torch.tensor(counts[: len(counts) // 3 * 3])
    bags = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
    field = (torch.arange(len(counts)) % 3).repeat_interleave(counts)
    values = (torch.rand(len(field)) * torch.tensor(SIZES)[field]).to(dtype)
    weights = torch.rand(len(values)) if weighted and pooling == "sum" else None
    out = emb(values, bags, weights)
    emb.flush()
    expected, table = twin_bags(emb, values, bags, weights)
    torch.testing.assert_close(out, expected)
    grad = torch.randn_like(out)
    out.backward(grad)
    expected.backward(grad)
    assert emb.weight.grad.is_coalesced()
    # A hundred terms and more of size 1 in another order: 1e-7 times each partial sum.
    torch.testing.assert_close(emb.weight.grad.to_dense(), table.grad, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("pooling", ["mean", "sum"])
def test_the_thread_count_changes_no_bag(pooling):
    torch.manual_seed(0)
    counts = torch.tensor([100, 1, 0]).repeat(60)  # one large bag among small ones
    bags = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
    field = (torch.arange(180) % 3).repeat_interleave(counts)
    values = (torch.rand(len(field)) ** 3 * torch.tensor(SIZES)[field]).long()
    emb = FusedEmbedding(SIZES, 8, pooling=pooling)
    threads = torch.get_num_threads()
    runs = []
    grad = torch.randn(60, 24)
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            emb.weight.grad = None
            out = emb(values, bags)
            out.backward(grad)
            runs.append((out.detach(), emb.weight.grad._indices(), emb.weight.grad._values()))
    finally:
        torch.set_num_threads(threads)
    for other in runs[1:]:
        assert all(map(torch.equal, runs[0], other))


def test_bad_bags_are_named():
    emb = FusedEmbedding(SIZES, 8)
    with pytest.raises(IndexError, match=r"values\[4\] = 9 \(row 0\) is out of range for field 0"):
        emb(torch.tensor([0, 1, 2, 3, 9, 0]), torch.tensor([0, 5, 5, 6]))
    with pytest.raises(ValueError, match="offsets must rise from 0 to the number of values, 2"):
        emb(torch.tensor([0, 0]), torch.tensor([0, 1, 1, 1]))
    with pytest.raises(ValueError, match=r"per_sample_weights must be \[1\], as the ids, got \[2\]"):
        emb(torch.tensor([0]), torch.tensor([0, 1, 1, 1]), torch.ones(2))


@pytest.mark.parametrize("widths", [4, [4, 2, 4]], ids=["one width", "mixed"])
def test_per_sample_weights_may_be_named(widths):
    emb, factors = FusedEmbedding(SIZES, widths, pooling="sum"), torch.rand(4)
    values, bags = torch.tensor([0, 3, 0, 30]), torch.tensor([0, 2, 3, 4])
    out = emb(values, bags, per_sample_weights=factors)
    assert torch.equal(emb(values, bags, factors), out)
    assert not torch.equal(emb(values, bags), out)


def test_bags_opcheck_and_compile():
    emb = FusedEmbedding(SIZES, 8)
    values, bags = torch.tensor([0, 1, 0, 30, 30]), torch.tensor([0, 2, 3, 5, 5, 5, 5])
    arguments = (emb.weight.detach(), values, bags, None, emb.offsets, True, [])
    torch.library.opcheck(torch.ops.adaftr_fast.embedding_bags, arguments)
    compiled = torch.compile(emb, fullgraph=True, backend="aot_eager")
    compiled(values, bags).sum().backward()
    assert emb.weight.grad.is_coalesced()
