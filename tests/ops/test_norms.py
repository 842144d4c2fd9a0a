"""The squared norm of many tensors, against its definition."""

import pytest
import torch

from adaftr_fast.ops.norms import squared_norm
from tests.ops.marks import needs_extension, on_threads
from tests.tolerances import assert_same_bits


def drawn(*shapes):
    torch.manual_seed(0)
    return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]


def test_value_and_gradients():
    tensors = drawn((3, 4), (5,), (), (2, 0), (7, 1))
    for scales in (None, [2.0, 0.5, 1.0, 3.0, 0.0]):
        norm = squared_norm(tensors, scales)
        factors = [1.0] * 5 if scales is None else scales
        torch.testing.assert_close(
            norm, sum(s * each.square().sum() for s, each in zip(factors, tensors))
        )
        found = torch.autograd.grad(3 * norm, tensors)
        torch.testing.assert_close(
            list(found), [6 * s * each.detach() for s, each in zip(factors, tensors)]
        )
    assert torch.autograd.gradgradcheck(lambda *each: squared_norm(each), tensors[:2])


def test_no_gradient_of_frozen_tensors_and_none_at_zero():
    tensors = [
        torch.zeros(3, requires_grad=True),
        torch.randn(4),
        torch.randn(2, requires_grad=True),
    ]
    squared_norm(tensors, [1.0, 2.0, 3.0]).backward()
    assert torch.equal(tensors[0].grad, torch.zeros(3))
    assert tensors[1].grad is None
    torch.testing.assert_close(tensors[2].grad, 6 * tensors[2].detach())


@needs_extension
def test_the_same_bits_on_any_number_of_threads():
    tensors = drawn((300, 101), (77, 500))
    results = []
    for count in (1, 2, 3):
        with on_threads(count):
            norm = squared_norm(tensors)
            results.append([norm.detach(), *torch.autograd.grad(norm, tensors)])
    assert_same_bits(results[1:], results[:1] * 2)


@pytest.mark.parametrize(
    ("tensors", "scales", "message"),
    [
        ([], None, "squared_norm: tensors"),
        ([torch.zeros(2)] * 2, [1.0], "scales must be 2 numbers, one per tensor, got 1"),
        (
            [torch.zeros(2), torch.zeros(2).double()],
            None,
            "tensors must share a dtype and a device, got",
        ),
    ],
)
def test_bad_arguments(tensors, scales, message):
    with pytest.raises(ValueError, match=message):
        squared_norm(tensors, scales)
