"""Several targets and margins with the Triton kernels under the interpreter; no GPU needed."""

import pytest
import torch

import adaftr_fast as af
from tests.ops.infonce.inputs import inputs
from tests.ops.infonce.targets import CASES, assert_matches, options_of

pytest.importorskip("triton")
config = pytest.importorskip("adaftr_fast.kernels.infonce.config")
pytestmark = pytest.mark.skipif(not config.INTERPRETED, reason="needs TRITON_INTERPRET=1")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", CASES)
def test_matches_pytorch(case, dtype):
    assert_matches(inputs(70, 100, 16), dtype, backend="triton", **options_of(case, 70, 100))


@pytest.mark.parametrize("gap", [3, 30])
def test_a_margin_against_a_probability_near_one(gap):
    a = torch.eye(32, dtype=torch.float64) * gap + inputs(32, 32, 32, scale=0.1)[0]
    tensors = (a, torch.eye(32, dtype=torch.float64), torch.ones(32, dtype=torch.float64))
    for margin in (gap / 2, gap, gap + 20):
        if gap == 3:
            assert_matches(tensors, torch.float64, backend="triton", margin=margin)
        if margin != gap:  # where the gradient in tau is the difference of two equal ones
            assert_matches(tensors, torch.float32, backend="triton", margin=margin)


def test_a_margin_without_negatives():
    a, b, tau = (x.requires_grad_() for x in inputs(6, 6, 4))
    loss = af.adaptive_infonce(a, b, tau, row_group=torch.zeros(6, dtype=torch.int64), margin=0.3, backend="triton")
    loss.backward()
    assert loss == 0
    assert not any(x.grad.any() for x in (a, b, tau))


@pytest.mark.parametrize("case", ["margin, smoothing", "positives"])
def test_second_derivatives(case):
    tensors = [t.requires_grad_() for t in inputs(5, 6, 3)]
    options = options_of(case, 5, 6)
    assert torch.autograd.gradgradcheck(
        lambda *x: af.adaptive_infonce(*x, backend="triton", **options), tensors, fast_mode=True
    )


def test_no_statistics_with_a_margin():
    a, b, tau = inputs(5, 5, 4)
    with pytest.raises(NotImplementedError, match="no statistics with a margin"):
        af.adaptive_infonce(a, b, tau, margin=0.1, return_stats=True, backend="triton")
