"""The squared norm of many tensors, against its definition."""

import pytest
import torch

from adaftr_fast.nn.norms import squared_norm


def test_value_and_gradients() -> None:
    torch.manual_seed(0)
    shapes = [(3, 4), (5,), (), (2, 0), (7, 1)]
    tensors = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    norm = squared_norm(tensors)
    torch.testing.assert_close(norm, sum(each.square().sum() for each in tensors))
    (3 * norm).backward()
    for each in tensors:
        torch.testing.assert_close(each.grad, 6 * each.detach())


def test_scaled() -> None:
    torch.manual_seed(0)
    tensors = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in [(3, 4), (5,)]]
    norm = squared_norm(tensors, [2.0, 0.5])
    torch.testing.assert_close(norm, 2 * tensors[0].square().sum() + tensors[1].square().sum() / 2)
    norm.backward()
    torch.testing.assert_close([each.grad for each in tensors], [4 * tensors[0].detach(), tensors[1].detach()])
    with pytest.raises(ValueError, match="scales must be 2 numbers, one per tensor, got 1"):
        squared_norm(tensors, [1.0])


def test_double_backward() -> None:
    torch.manual_seed(0)
    tensors = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in [(3, 4), (5,)]]
    assert torch.autograd.gradgradcheck(lambda *each: squared_norm(each), tensors)


def test_gradient_at_zero() -> None:
    zeros = torch.zeros(4, requires_grad=True)
    squared_norm([zeros]).backward()
    assert torch.equal(zeros.grad, torch.zeros(4))


def test_no_tensors() -> None:
    with pytest.raises(ValueError, match="squared_norm: tensors"):
        squared_norm([])
