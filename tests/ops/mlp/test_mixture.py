"""The op for mixtures of experts, against its reference in float64."""

import pytest
import torch

import adaftr_fast as af
import adaftr_fast.ops.mlp.op  # defines the ops
from adaftr_fast.ops.mlp import reference
from tests.ops.marks import needs_extension, on_kernels
from tests.tolerances import assert_as_accurate

MIXTURE = torch.ops.adaftr_fast.mixture


def run(function, experts, logits, dtype, kept=None):
    """Returns the mixtures and the gradients, with an upstream gradient for the tasks in ``kept`` (default: all)."""
    leaves = [t.to(dtype).detach().requires_grad_() for t in (experts, logits)]
    outputs = function(*leaves)
    g = torch.Generator().manual_seed(2)
    upstream = [torch.randn(y.shape, generator=g, dtype=torch.float64).to(y.dtype) for y in outputs]
    kept = range(len(outputs)) if kept is None else kept
    grads = torch.autograd.grad([outputs[t] for t in kept], leaves, [upstream[t] for t in kept])
    return [*(y.detach() for y in outputs), *grads]


@on_kernels("mixture", torch.float64, torch.float32, torch.bfloat16)
def test_as_accurate_as_pytorch(dtype, instruction_set):
    for rows, tasks, experts, width in ((1, 1, 1, 1), (65, 2, 3, 64), (200, 5, 7, 37)):
        x, logits = torch.randn(rows, experts, width).double(), 5 * torch.randn(rows, tasks, experts).double()
        truth = run(reference.mixture, x, logits, torch.float64)
        own = run(reference.mixture, x, logits, dtype)
        for found, true, pytorch in zip(run(MIXTURE, x, logits, dtype), truth, own):
            assert_as_accurate(found, true, pytorch, dtype, f"{rows} rows")


def test_one_upstream_gradient_extreme_logits_and_empty_batch():
    x, logits = torch.randn(9, 3, 4).double(), torch.randn(9, 2, 3).double()
    logits[0] = torch.tensor([1e4, 1e4 - 1, -1e4])
    truth = run(reference.mixture, x, logits, torch.float64, [1])
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        for found, true in zip(run(MIXTURE, x, logits, dtype, [1]), truth, strict=True):
            torch.testing.assert_close(found.double(), true, rtol=tolerance, atol=tolerance)
    assert [tuple(y.shape) for y in MIXTURE(x[:0], logits[:0])] == [(0, 4)] * 2


def test_gradcheck_and_double_backward():
    experts, logits = (torch.randn(*size, dtype=torch.float64).requires_grad_() for size in ((4, 3, 5), (4, 2, 3)))
    assert torch.autograd.gradcheck(lambda *leaves: tuple(MIXTURE(*leaves)), (experts, logits))
    if af.cpu_capability() != "none":
        assert torch.autograd.gradgradcheck(lambda *leaves: tuple(MIXTURE(*leaves)), (experts, logits))


@needs_extension
def test_bad_arguments():
    with pytest.raises(ValueError, match=r"mixture: experts must be \[B, k, v\]"):
        MIXTURE(torch.randn(4, 3), torch.randn(4, 2, 3))
    with pytest.raises(ValueError, match=r"mixture: logits must be \[4, T, 3\]"):
        MIXTURE(torch.randn(4, 3, 5), torch.randn(4, 2, 2))
    with pytest.raises(ValueError, match=r"mixture: logits must be \[4, T, 3\] with T >= 1"):
        MIXTURE(torch.randn(4, 3, 5), torch.randn(4, 0, 3))
    with pytest.raises(TypeError, match="mixture: experts must be Float or BFloat16"):
        MIXTURE(torch.randn(4, 3, 5).half(), torch.randn(4, 2, 3))
