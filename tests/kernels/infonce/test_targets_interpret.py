"""Several targets and margins with the Triton kernels under the interpreter; no GPU needed."""

import pytest
import torch

import adaftr_fast as af
from tests.ops.infonce.inputs import assert_matches, inputs, winning
from tests.ops.infonce.losses import EVERY

pytest.importorskip("triton")
config = pytest.importorskip("adaftr_fast.kernels.infonce.config")
pytestmark = pytest.mark.skipif(not config.INTERPRETED, reason="needs TRITON_INTERPRET=1")


def test_a_margin_against_a_probability_near_one():
    for gap, dtype in ((3, torch.float64), (3, torch.float32), (30, torch.float32)):
        for margin in (gap / 2, gap, gap + 20):
            if margin != gap or dtype == torch.float64:  # else the gradient in tau is the difference of two equal ones
                assert_matches(winning(32, gap), dtype, backend="triton", margin=margin, what=f"{gap}, {margin}")


def test_a_margin_without_negatives():
    a, b, tau = (x.requires_grad_() for x in inputs(6, 6, 4))
    loss = af.adaptive_infonce(a, b, tau, row_group=torch.zeros(6, dtype=torch.int64), margin=0.3, backend="triton")
    loss.backward()
    assert loss == 0
    assert not any(x.grad.any() for x in (a, b, tau))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_many_positives(dtype):
    a, b, _ = inputs(200, 200, 16, scale=0.1)  # with greater logits, a rounded 1 - p is no great part of the gradient
    tensors = (a, b, torch.ones(200, dtype=torch.float64))
    for positives in (1, 25, 200):
        label = torch.arange(200) % (200 // positives)
        options = {"positive_group": (label, label), "what": f"{positives} positives"}
        assert_matches(tensors, dtype, backend="triton", **options)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("case", ["margin", "margin, groups", "margin, smoothing"])
def test_statistics_with_a_margin(case, dtype):
    (a, b, tau), options = EVERY[case].drawn(70, 100, 16)
    options |= {"margin": 1.0, "return_stats": True}
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
