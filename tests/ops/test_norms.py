"""The squared norm of many tensors, against its definition."""

import pytest
import torch

from adaftr_fast._extension import is_built
from adaftr_fast.ops.norms import squared_norm
from tests.ops.marks import needs_extension, on_threads


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


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_large_and_strided_tensors_on_any_number_of_threads(dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(shape, generator=generator).to(dtype) for shape in [(300, 101), (1,), (0,), (77, 500)]]
    tensors = [tensors[0].T, tensors[1].expand(40), *tensors[2:]]
    scales = [0.5, 2.0, 3.0, 1.0]
    truth = sum(scale * each.double().square().sum() for scale, each in zip(scales, tensors))
    results = []
    for count in (1, 2, 3):
        leaves = [each.detach().requires_grad_() for each in tensors]
        with on_threads(count):
            norm = squared_norm(leaves, scales)
            norm.backward()
        results.append([norm.detach(), *(leaf.grad for leaf in leaves)])
    torch.testing.assert_close(results[0][0].double(), truth, rtol={torch.bfloat16: 1e-2}.get(dtype, 1e-6), atol=0)
    for scale, each, grad in zip(scales, tensors, results[0][1:], strict=True):
        assert torch.equal(grad, (2 * scale * each.double()).to(dtype))
    if is_built():
        assert all(torch.equal(x, y) for other in results[1:] for x, y in zip(results[0], other, strict=True))


def test_is_an_op_that_compiles() -> None:
    tensors = [torch.randn(30, 4, requires_grad=True), torch.randn(5, requires_grad=True)]
    checks = ("test_schema", "test_faketensor", "test_autograd_registration", "test_aot_dispatch_static")
    torch.library.opcheck(torch.ops.adaftr_fast.squared_norm.default, (tensors, [0.5, 2.0]), test_utils=checks)
    scaled = torch.ops.adaftr_fast.scaled.default
    torch.library.opcheck(scaled, (torch.tensor(3.0), [torch.randn(4, 30).T, torch.randn(5)], [0.5, 2.0]))


def test_mixed_dtypes() -> None:
    with pytest.raises(ValueError, match="tensors must share a dtype and a device, got"):
        squared_norm([torch.zeros(2), torch.zeros(2, dtype=torch.float64)])


@pytest.mark.parametrize("scales", [[1.0, 1.0], [1.0, -0.5]])
def test_op_scaled(scales) -> None:
    tensors = [torch.randn(70, 90, dtype=torch.float64), torch.randn(3, dtype=torch.float64)]
    scaled = torch.ops.adaftr_fast.scaled(torch.tensor(3.0, dtype=torch.float64), tensors, scales)
    torch.testing.assert_close(scaled, [3 * scale * each for scale, each in zip(scales, tensors, strict=True)])
    assert torch.ops.adaftr_fast.scaled(torch.tensor(3.0), [], []) == []


def test_frozen_tensors_have_no_gradient() -> None:
    tensors = [torch.randn(3, requires_grad=True), torch.randn(4), torch.randn(2, requires_grad=True)]
    squared_norm(tensors, [1.0, 2.0, 3.0]).backward()
    assert tensors[1].grad is None
    torch.testing.assert_close(tensors[2].grad, 6 * tensors[2].detach())


@needs_extension
def test_ops_check_their_arguments() -> None:
    ones = torch.ones(3)
    with pytest.raises(RuntimeError, match="at least one tensor"):
        torch.ops.adaftr_fast.squared_norm([], [])
    with pytest.raises(ValueError, match="squared_norm: expected a scale for each of 2 tensors, got 1"):
        torch.ops.adaftr_fast.squared_norm([ones, ones], [1.0])
    with pytest.raises(ValueError, match="scaled: factor must be 0-dim, got \\[3\\]"):
        torch.ops.adaftr_fast.scaled(ones, [ones], [1.0])
    with pytest.raises(ValueError, match="scaled: tensors must be on the CPU and share a dtype, got cpu Double"):
        torch.ops.adaftr_fast.scaled(ones[0], [ones, ones.double()], [1.0, 1.0])
