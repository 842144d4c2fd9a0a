"""The look-up with the sum of squares of its result, against the look-up and PyTorch's norm as two
ops.
"""

from itertools import product

import pytest
import torch

import adaftr_fast as af
from adaftr_fast.ops.embedding.lookup import embedding_and_squares
from adaftr_fast.ops.embedding.reference import lookup as reference
from tests.ops.embedding.test_lookup import field_offsets_of, random_ids
from tests.ops.marks import on_kernels
from tests.tolerances import assert_as_accurate

MANY = [1, 7, 5000, 64, 65, 1, 9, 10, 11, 12]
FEW = [40, 3000]


def inputs(sizes: list[int], width: int, dtype: torch.dtype, batch: int = 130):
    torch.manual_seed(0)
    field_offsets = field_offsets_of(sizes)
    ids = random_ids(sizes, batch, torch.int64)
    weight = torch.randn(sum(sizes), width, dtype=dtype, requires_grad=True)
    return weight, ids, field_offsets, torch.randn(batch, len(sizes) * width, dtype=dtype)


class Densify(torch.autograd.Function):
    """The identity with a dense gradient, as gradcheck requires."""

    @staticmethod
    def forward(ctx, weight):
        return weight.view_as(weight)

    @staticmethod
    def backward(ctx, grad):
        return grad.to_dense()


def look_up(weight, ids, field_offsets):
    """The two results by the op that is tested."""
    return embedding_and_squares(weight, ids, field_offsets, [])


def written_out(weight, ids, field_offsets):
    looked_up = reference.fused_embedding(weight, ids, field_offsets)
    return looked_up, looked_up.square().sum()


def gradient(function, weight, ids, field_offsets, grad, *, of_output=True, of_squares=True):
    """The gradient of ``(grad * out).sum() + 3 * squares``, or of one term of it."""
    weight = weight.detach().requires_grad_()
    looked_up, squares = function(weight, ids, field_offsets)
    loss = (grad * looked_up).sum() if of_output else torch.zeros((), dtype=weight.dtype)
    (loss + 3 * squares if of_squares else loss).backward()
    return weight.grad


@on_kernels("embedding", torch.float32)
@pytest.mark.parametrize(("sizes", "batch"), [(MANY, 130), (FEW, 3000)], ids=["many", "few"])
def test_gradient(sizes, batch, dtype, instruction_set):
    for width, terms in product((8, 5), ({}, {"of_output": False}, {"of_squares": False})):
        weight, ids, field_offsets, grad = inputs(sizes, width, dtype, batch)
        found = gradient(look_up, weight, ids, field_offsets, grad, **terms)
        assert found.is_sparse
        expected = gradient(
            written_out, weight.double(), ids, field_offsets, grad.double(), **terms
        )
        pytorch = gradient(written_out, weight, ids, field_offsets, grad, **terms)
        assert_as_accurate(found.to_dense(), expected, pytorch, dtype, f"width {width}, {terms}")


def test_double_backward():
    weight, ids, field_offsets, _ = inputs([4, 3], 2, torch.float64, 5)

    def both(weight):
        return look_up(Densify.apply(weight), ids, field_offsets)

    assert torch.autograd.gradcheck(both, weight)
    assert torch.autograd.gradgradcheck(both, weight)


@pytest.mark.parametrize(
    ("widths", "options"),
    [(8, {}), (8, {"padding_idx": 0}), (8, {"on_bad_id": "oov"}), ([8, 4, 8], {})],
    ids=str,
)
def test_module(widths, options):
    torch.manual_seed(0)
    module = af.FusedEmbedding([50, 20, 9], widths, **options)
    optimizer = af.optim.Adam(module, lr=0.1)
    for step in range(4):  # after which rows have missed steps
        module(torch.randint(0, 9, (step + 1, 3))).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    ids = torch.randint(0, 9, (40, 3))
    looked_up, squares = module.with_squares(ids)
    grad = torch.randn_like(looked_up)
    ((grad * looked_up).sum() + 3 * squares).backward()
    found = [weight.grad.to_dense() for weight in module.table_weights()]
    module.zero_grad()
    again = module(ids)
    assert torch.equal(looked_up, again)
    torch.testing.assert_close(squares, again.square().sum())
    ((grad * again).sum() + 3 * again.square().sum()).backward()
    torch.testing.assert_close(found, [weight.grad.to_dense() for weight in module.table_weights()])


def test_a_bad_id_is_named_and_hooks_run():
    module = af.FusedEmbedding([50, 20], 8, field_names=["user", "item"])
    seen = []
    module.register_forward_hook(lambda *each: seen.append(each))
    module.with_squares(torch.tensor([[1, 1]]))
    assert len(seen) == 1
    with pytest.raises(IndexError, match="item"):
        module.with_squares(torch.tensor([[1, 20]]))
    with pytest.raises(TypeError, match="int32 or int64"):
        module.with_squares(torch.tensor([[1.0, 2.0]]))
