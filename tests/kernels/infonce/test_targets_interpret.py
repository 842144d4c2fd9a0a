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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("positives", [1, 10, 100, 200])
def test_many_positives(positives, dtype):
    a, b, _ = inputs(200, 200, 16, scale=0.1)  # with greater logits, a rounded 1 - p is no great part of the gradient
    label = torch.arange(200) % (200 // positives)
    tensors = (a, b, torch.ones(200, dtype=torch.float64))
    assert_matches(tensors, dtype, backend="triton", positive_group=(label, label))


@pytest.mark.parametrize("frozen", [(0,), (1,), (2,), (0, 1), (1, 2)])
@pytest.mark.parametrize("case", ["smoothing, positives, groups", "margin, smoothing", "margin"])
def test_frozen_inputs(case, frozen):
    options, gradients = options_of(case, 40, 50) | {"backend": "triton"}, []
    for fixed in ((), frozen):
        leaves = [t.requires_grad_(i not in fixed) for i, t in enumerate(inputs(40, 50, 9))]
        af.adaptive_infonce(*leaves, **options).backward()
        gradients.append([leaf.grad for leaf in leaves])
    for i, (whole, partial) in enumerate(zip(*gradients)):
        if i in frozen:
            assert partial is None
        else:
            torch.testing.assert_close(partial, whole, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("tau", [1e-3, 1e-2, 1e3])
def test_a_margin_at_extreme_temperatures(tau):
    a, b, _ = inputs(70, 100, 16)
    tensors = (a, b, torch.full((70,), tau, dtype=torch.float64))
    assert_matches(tensors, torch.float32, backend="triton", margin=0.35)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("case", ["margin", "margin, groups", "margin, smoothing"])
def test_statistics_with_a_margin(case, dtype):
    a, b, tau = inputs(70, 100, 16)
    options = options_of(case, 70, 100) | {"margin": 1.0, "return_stats": True}
    index = options.get("positive_index", torch.arange(70)).clamp(min=0)
    a[::2] += b[index[::2]]
    a, b, tau = (x.to(dtype) for x in (a, b, tau))
    found, true = (af.adaptive_infonce(a, b, tau, backend=each, **options)[1] for each in ("triton", "reference"))
    assert 0 < true.top1.sum() < 70
    torch.testing.assert_close(found, true)


def test_a_margin_leaves_ignore_above_as_it_is():
    """Similarities are small integers, so many tie with the bound; these remain negatives."""
    g = torch.Generator().manual_seed(0)
    a, b = (torch.randint(-1, 2, (n, 8), generator=g).float() for n in (40, 50))
    results = []
    for backend in ("triton", "reference"):
        leaves = [x.clone().requires_grad_() for x in (a, b, torch.full((40,), 0.7))]
        loss = af.adaptive_infonce(*leaves, ignore_above=1.0, margin=0.3, reduction="none", backend=backend)
        results.append((loss.detach(), *torch.autograd.grad(loss.sum(), leaves)))
    torch.testing.assert_close(*results)
