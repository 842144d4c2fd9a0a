"""The look-up with the sum of squares of its result, beside its accuracy (tests/ops/test_cases.py)."""

import pytest
import torch

import adaftr_fast as af
from adaftr_fast.ops.embedding.lookup import embedding_and_squares
from tests.ops.embedding.test_lookup import field_offsets_of, random_ids


class Densify(torch.autograd.Function):
    """The identity with a dense gradient, as gradcheck requires."""

    @staticmethod
    def forward(ctx, weight):
        return weight.view_as(weight)

    @staticmethod
    def backward(ctx, grad):
        return grad.to_dense()


def test_double_backward():
    weight = torch.randn(7, 2, dtype=torch.float64, requires_grad=True)
    field_offsets = field_offsets_of([4, 3])
    ids = random_ids([4, 3], 5, torch.int64)

    def both(weight):
        return embedding_and_squares(Densify.apply(weight), ids, field_offsets, [])

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
