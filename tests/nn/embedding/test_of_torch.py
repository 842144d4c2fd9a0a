"""The cases of PyTorch's test/nn/test_embedding.py that apply to FusedEmbedding, written anew under their names there.

What does not apply, and why:

- ``max_norm`` (6 cases) and ``scale_grad_by_freq``: FusedEmbedding has neither. ``mode="max"``: it has no such pooling.
- ``test_embedding_sparse_empty_tensor`` with 0 rows or width 0: both must be at least 1.
- ``test_embedding_from_pretrained`` of integers: tables are floating point.
- ``test_embedding_bag_non_contiguous_weight`` and ``test_embedding_scalar_weight_error``: the module makes its tables
  itself, contiguous and of two dimensions.
- ``test_embedding_functional`` and ``test_embedding_bag_functional``: there is no functional form beside the ops, which
  tests/ops/embedding covers.
- ``test_embedding_backward``, which expects a row per look-up: here the rows of a sparse gradient are merged.
- ``offsets`` without the end, and ``include_last_offset=True`` with ids behind the end
  (``test_embeddingbag_include_last_offset``): ``offsets`` must end with the number of ids.
- ``test_EmbeddingBag_per_sample_weights_failures`` for another dtype, which is converted, and for the mean, which
  takes factors.
- Forward-mode AD (``test_embedding_max_norm_fwd_AD``): gradients of the tables are sparse, and have no tangent.
- ``test_large_tensors``, and what is for CUDA alone: tests/cuda has such cases.
"""

from itertools import product

import pytest
import torch
from torch import nn

from adaftr_fast import FusedEmbedding

INTEGERS = (torch.int32, torch.int64)
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
TOLERANCE = {torch.float16: 1e-2, torch.bfloat16: 1e-1, torch.float32: 1e-5, torch.float64: 1e-10}
EVERY_DTYPE = pytest.mark.parametrize(
    ("ids", "offsets", "rows"),  # each pair of them occurs
    [(ids, INTEGERS[(i + j) % 2], rows) for i, ids in enumerate(INTEGERS) for j, rows in enumerate(FLOATS)],
    ids=lambda dtype: str(dtype).split(".")[1],
)


def close(ours, theirs, dtype):
    torch.testing.assert_close(ours, theirs, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


def known(dtype, **options):
    """The table [[1, 2], [3, 4], ...] of PyTorch's known example."""
    return FusedEmbedding.from_pretrained(torch.arange(1, 11).view(5, 2).to(dtype), freeze=False, **options)


def test_embedding_sparse_basic():
    emb = FusedEmbedding([10] * 4, 20)
    emb(torch.tensor([[0, 2, 4, 5], [4, 3, 0, 9]])).sum().backward()
    assert emb.weight.grad.is_sparse
    assert emb.weight.grad.shape == emb.weight.shape


def test_embedding_sparse_empty_tensor():
    emb = FusedEmbedding([10], 4)
    emb(torch.zeros(0, 1, dtype=torch.int64)).sum().backward()
    assert emb.weight.grad.is_sparse
    assert emb.weight.grad.shape == emb.weight.shape
    assert not emb.weight.grad.to_dense().any()


def test_move_sparse_half_embedding():
    emb = FusedEmbedding([10], 3)
    assert emb.weight.dtype == torch.get_default_dtype()
    emb.to(torch.float16)
    assert emb.weight.dtype == torch.float16
    assert (emb.embedding_dim, emb.num_embeddings) == (3, [10])
    emb(torch.tensor([[1]])).sum().backward()
    assert emb.weight.grad.dtype == torch.float16


def test_embedding_dense_grad():
    """First and second derivatives; gradcheck does not take sparse gradients, so they are compared with torch's."""
    emb = FusedEmbedding([20], 20, dtype=torch.float64)
    table = emb.weight.detach().clone().requires_grad_()
    ids = torch.tensor([[0], [1], [1], [2], [3], [5], [7], [11]])
    derivatives = []
    for rows, out in ((emb.weight, emb(ids)), (table, nn.functional.embedding(ids[:, 0], table))):
        first = torch.autograd.grad(out.sin().sum(), rows, create_graph=True)[0].to_dense()
        second = torch.autograd.grad(first.square().sum(), rows)[0].to_dense()
        derivatives.append((first.detach(), second))
    torch.testing.assert_close(*derivatives)


@pytest.mark.parametrize("dtype", FLOATS)
def test_embedding_padding_idx(dtype):
    for padding, ids in ((0, [[0, 2, 4, 5], [4, 3, 0, 9]]), (-2, [[8, 2, 8, 5], [4, 8, 0, 9]])):
        emb = FusedEmbedding([10], 20, padding_idx=padding).to(dtype)
        out = emb(torch.tensor(ids).reshape(-1, 1))
        held = torch.tensor(ids).flatten() == padding % 10
        assert not out[held].any()
        assert out[~held].any(1).all()
    emb = FusedEmbedding([10], 20, padding_idx=2).to(dtype)
    with torch.no_grad():
        emb.weight[2] = 1
    assert torch.equal(emb(torch.tensor([[0], [2]]))[1], torch.ones(20, dtype=dtype))
    for padding in (25, -25):
        with pytest.raises(ValueError, match="padding_idx must be"):
            FusedEmbedding([10], 20, padding_idx=padding)


@pytest.mark.parametrize("others", [[], [1, 3], [2]])
@pytest.mark.parametrize("number", [1, 2, 1000])
def test_embedding_padding_idx_gradient(number, others):
    emb = FusedEmbedding([5], 2, padding_idx=0)
    ids = torch.tensor([*others, *[0] * number])[:, None]
    emb(ids).sum().backward()
    assert not emb.weight.grad.to_dense()[0].any()
    emb.zero_grad()
    total = emb(ids).sum()
    (gradient,) = torch.autograd.grad(total, [*emb.parameters()], retain_graph=True)
    (gradient.to_dense().sum() + total).backward()
    assert not emb.weight.grad.to_dense()[0].any()
    assert emb.weight.grad.to_dense()[1:].any() == bool(others)


def test_embedding_from_pretrained():
    rows = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    emb = FusedEmbedding.from_pretrained(rows)
    assert torch.equal(emb.weight, rows)
    assert torch.equal(emb(torch.tensor([[0], [1]])), rows)
    assert torch.equal(emb(torch.tensor([0, 1]), torch.arange(3)), rows)
    assert torch.equal(emb(torch.tensor([[0, 1]])), rows.mean(0, keepdim=True))


def test_embedding_from_pretrained_padding_idx():
    rows = torch.rand(4, 3, requires_grad=True)
    with torch.no_grad():
        rows[2] = 7
    assert torch.equal(FusedEmbedding.from_pretrained(rows, padding_idx=2).weight, rows)


def test_embedding_bag_padding_idx_error():
    for padding in range(-6, 6):
        if -4 <= padding < 4:
            assert FusedEmbedding([4], 3, padding_idx=padding).padding_idx == [padding % 4]
        else:
            with pytest.raises(ValueError, match="padding_idx must be -4 to 3 in a field of 4 rows"):
                FusedEmbedding([4], 3, padding_idx=padding)


@pytest.mark.parametrize("all_padding", [False, True])
@pytest.mark.parametrize("mode", ["mean", "sum"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_embedding_bag_1D_padding_idx(dtype, mode, all_padding):
    """Bags of several lengths equal bags of one length that padding fills."""
    torch.manual_seed(0)
    counts = torch.tensor([3, 0, 10, 1, 7])
    ids = torch.full((21,), 1) if all_padding else torch.randint(0, 20, (21,))
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
    filled = torch.full((5, 10), 1)
    filled[torch.arange(10) < counts[:, None]] = ids
    one, two = (FusedEmbedding([20], 3, pooling=mode, padding_idx=1, dtype=dtype) for _ in range(2))
    two.load_state_dict(one.state_dict())
    left, right = one(ids, offsets), two(filled)
    close(left, right, dtype)
    left.sum().backward()
    right.sum().backward()
    close(one.weight.grad.to_dense(), two.weight.grad.to_dense(), dtype)


@pytest.mark.parametrize("all_padding", [False, True])
@pytest.mark.parametrize("mode", ["mean", "sum"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_embedding_bag_2D_padding_idx(dtype, mode, all_padding):
    """Bags equal nn.Embedding followed by the sum, or the mean over the ids that are no padding."""
    torch.manual_seed(0)
    ids = torch.full((10, 10), 1) if all_padding else torch.randint(0, 10, (10, 10))
    ids[3] = ids[3, 0]
    for padding in ids.unique().tolist():
        emb = FusedEmbedding([10], 3, pooling=mode, padding_idx=padding, dtype=dtype)
        table = nn.Embedding.from_pretrained(emb.weight.detach().clone(), freeze=False, padding_idx=padding)
        counts = ids.ne(padding)[..., None]
        expected = (table(ids) * counts).sum(1)
        if mode == "mean":
            expected = expected / counts.sum(1).clamp(min=1)
        out = emb(ids)
        close(out, expected, dtype)
        out.sum().backward()
        expected.sum().backward()
        close(emb.weight.grad.to_dense(), table.weight.grad, dtype)


@pytest.mark.parametrize(("ids", "offsets"), list(product(INTEGERS, INTEGERS)))
def test_embedding_bag_empty_input(ids, offsets):
    emb, empty = FusedEmbedding([4], 3), torch.tensor([], dtype=ids)
    assert emb(empty, torch.tensor([0], dtype=offsets)).shape == (0, 3)
    assert torch.equal(emb(empty, torch.tensor([0, 0, 0], dtype=offsets)), torch.zeros(2, 3))


@pytest.mark.parametrize("padding", [None, 0])
@pytest.mark.parametrize("mode", ["mean", "sum"])
@pytest.mark.parametrize("ids", INTEGERS)
def test_embedding_bag_out_of_bounds_idx(ids, mode, padding):
    emb = FusedEmbedding([10], 2, pooling=mode, padding_idx=padding)
    for wrong, factors in product(([[-1, 1]], [[11, 8]]), (None, torch.rand(1, 2))):
        with pytest.raises(IndexError, match="is out of range for field 0, whose ids are 0 to 9"):
            emb(torch.tensor(wrong, dtype=ids), None, factors)


def test_embedding_bag_dimension_errors():
    emb = FusedEmbedding([3], 2)
    with pytest.raises(ValueError, match=r"ids must be \[B, 1\]"):
        emb(torch.zeros(2, 2, 2, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"offsets must be int64 \[B \* 1 \+ 1\]"):
        emb(torch.zeros(2, dtype=torch.int64), torch.zeros(2, 2, dtype=torch.int64))
    ones, starts = torch.ones(3, 4, dtype=torch.int64), torch.arange(3)
    with pytest.raises(ValueError, match=r"values must be \[N\]"):
        emb(ones, starts)
    with pytest.raises(ValueError, match=r"ids must be \[B, 1\]"):
        emb(ones.flatten())
    for wrong in ([1, 1, 12], [0, 1, 100]):
        with pytest.raises(ValueError, match="offsets must rise from 0 to the number of values, 12"):
            emb(ones.flatten(), torch.tensor(wrong))


def test_EmbeddingBag_per_sample_weights_failures():
    emb = FusedEmbedding([5], 2, pooling="sum")
    with pytest.raises(ValueError, match=r"per_sample_weights must be \[6\]"):
        emb(torch.tensor([3, 1, 1, 1, 4, 0]), torch.tensor([0, 0, 3, 3, 6]), torch.randn(5))
    with pytest.raises(ValueError, match=r"per_sample_weights must be \[7, 3\]"):
        emb(torch.randint(5, (7, 3)), None, torch.randn(21))


@pytest.mark.parametrize("learned", [False, True])
@EVERY_DTYPE
def test_EmbeddingBag_empty_per_sample_weights_and_offsets(ids, offsets, rows, learned):
    emb = known(rows, pooling="sum")
    factors = torch.tensor([], dtype=rows, requires_grad=learned)
    out = emb(torch.tensor([], dtype=ids), torch.zeros(6, dtype=offsets), factors)
    assert torch.equal(out, torch.zeros(5, 2, dtype=rows))
    out.backward(torch.randn(5, 2).to(rows))
    assert not emb.weight.grad.to_dense().any()
    assert not learned or factors.grad.shape == (0,)


@pytest.mark.parametrize("learned", [False, True])
@EVERY_DTYPE
def test_EmbeddingBag_per_sample_weights_and_offsets(ids, offsets, rows, learned):
    emb = known(rows, pooling="sum")
    table = emb.weight.detach().clone().requires_grad_()
    ours = torch.randn(6).to(rows).requires_grad_(learned)
    theirs = ours.detach().clone().requires_grad_(learned)
    values = [3, 1, 1, 1, 4, 0]
    out = emb(torch.tensor(values, dtype=ids), torch.tensor([0, 0, 3, 3, 6, 6], dtype=offsets), ours)
    terms, nothing = table[values] * theirs[:, None], torch.zeros(2, dtype=rows)
    expected = torch.stack([nothing, terms[:3].sum(0), nothing, terms[3:].sum(0), nothing])
    close(out, expected, rows)
    grad = torch.randn(5, 2).to(rows)
    out.backward(grad)
    expected.backward(grad)
    close(emb.weight.grad.to_dense(), table.grad, rows)
    if learned:
        assert ours.grad.dtype == rows
        close(ours.grad, theirs.grad, rows)


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize(("ids", "rows"), list(product(INTEGERS, (torch.float32, torch.float64))))
def test_EmbeddingBag_per_sample_weights_and_no_offsets(ids, rows, learned):
    torch.manual_seed(0)
    for number, width, batch, length in ((2, 3, 5, 7), (2, 5, 53, 23), (101, 5, 3, 7), (2, 101, 3, 7)):
        emb = FusedEmbedding([number], width, pooling="sum", dtype=rows)
        table = nn.Embedding.from_pretrained(emb.weight.detach().clone(), freeze=False)
        values = torch.randint(number, (batch, length), dtype=ids)
        ours = torch.randn(batch, length).softmax(1).to(rows).requires_grad_(learned)
        theirs = ours.detach().clone().requires_grad_(learned)
        out, expected = emb(values, None, ours), (table(values) * theirs[..., None]).sum(1)
        close(out, expected, rows)
        grad = torch.rand(batch, width).to(rows)
        out.backward(grad)
        expected.backward(grad)
        close(emb.weight.grad.to_dense(), table.weight.grad, rows)
        if learned:
            close(ours.grad, theirs.grad, rows)


@pytest.mark.parametrize("mode", ["mean", "sum"])
@EVERY_DTYPE
def test_embedding_bag_device(ids, offsets, rows, mode):
    """The known example; it covers test_embedding_bag_bfloat16 and test_embedding_bag_half too."""
    emb, share = known(rows, pooling=mode), 1 if mode == "sum" else 3
    values = torch.tensor([3, 1, 1, 1, 4, 0], dtype=ids)
    grad = torch.tensor([[1, 2], [3, 4]]).to(rows)
    expected = torch.tensor([[3, 4], [5, 8], [0, 0], [1, 2], [3, 4]]).to(rows) / share
    out = emb(values, torch.tensor([0, 0, 3, 3, 6, 6], dtype=offsets))
    close(out, torch.tensor([[0, 0], [13, 16], [0, 0], [13, 16], [0, 0]]).to(rows) / share, rows)
    among_empty = torch.full((5, 2), 99).to(rows)
    among_empty[[1, 3]] = grad
    out.backward(among_empty)
    close(emb.weight.grad.to_dense(), expected, rows)
    emb.zero_grad()
    out = emb(values.view(2, 3))
    close(out, torch.tensor([[13, 16], [13, 16]]).to(rows) / share, rows)
    out.backward(grad)
    close(emb.weight.grad.to_dense(), expected, rows)
    emb.zero_grad()
    emb(values[:0], torch.zeros(5, dtype=offsets)).sum().backward()
    assert not emb.weight.grad.to_dense().any()


@pytest.mark.parametrize(("table", "factors"), list(product([True, False], repeat=2)))
def test_embedding_bag_per_sample_weights_grad(table, factors):
    emb = FusedEmbedding([256], 256, pooling="sum").requires_grad_(table)
    weights = torch.rand(3, 4, requires_grad=factors)
    out = emb(torch.arange(1, 5).expand(3, -1), None, weights.softmax(1))
    assert out.requires_grad == (table or factors)
    if table or factors:
        out.sum().backward()
    assert (emb.weight.grad is not None) == table
    assert (weights.grad is not None) == factors
