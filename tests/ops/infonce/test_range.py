"""adaptive_infonce on CPU at the ends of float32's range, for every instruction set.

Where the scores a_r . b_j, the logits and the gradients are in range, no intermediate result may overflow or underflow
by itself. Where a logit is out of range, its row alone is affected.
"""

import math

import pytest
import torch

import adaftr_fast as af
from tests.ops.infonce.inputs import assert_matches, inputs, loss_and_gradients, masks
from tests.ops.marks import needs_extension

# Magnitudes of h_ctr and h_cvr; tau is of the magnitude of their product.
MAGNITUDES = [(1e12, 1e12), (1e-20, 1e30), (1e30, 1e-20)]
DTYPES = [torch.float32, torch.bfloat16]


def scaled(rows, columns, d, a_scale, b_scale, seed=0):
    """Returns inputs of these magnitudes whose logits are moderate; float64."""
    a, b, tau = inputs(rows, columns, d, seed=seed)
    return a * a_scale, b * b_scale, tau * (a_scale * b_scale)


@needs_extension
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("a_scale", "b_scale"), MAGNITUDES)
def test_operands_of_any_magnitude(a_scale, b_scale, dtype, instruction_set):
    tensors = scaled(40, 500, 24, a_scale, b_scale)
    assert_matches(tensors, dtype)
    options = masks(40, 500)
    options["row_weight"] = options["row_weight"].float()
    assert_matches(tensors, dtype, **options)


@needs_extension
@pytest.mark.parametrize(("a_scale", "b_scale"), MAGNITUDES)
def test_operands_of_any_magnitude_beyond_the_stored_columns(a_scale, b_scale, instruction_set):
    assert_matches(scaled(33, 33_000, 24, a_scale, b_scale), torch.bfloat16)


@needs_extension
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("frozen", [(0,), (1,)])
def test_gradients_of_large_operands_do_not_depend_on_frozen_inputs(frozen, dtype, instruction_set):
    tensors = [x.to(dtype if i < 2 else torch.float32) for i, x in enumerate(scaled(40, 500, 24, 1e-20, 1e30))]
    whole, partial = (
        [x.clone().requires_grad_(i not in fixed) for i, x in enumerate(tensors)] for fixed in ((), frozen)
    )
    for leaves in (whole, partial):
        af.adaptive_infonce(*leaves, backend="cpu").backward()
    for i, (x, y) in enumerate(zip(whole, partial)):
        if i not in frozen:
            assert y.grad.isfinite().all()
            torch.testing.assert_close(
                y.grad, x.grad, rtol=2e-2 if dtype == torch.bfloat16 else 1e-4, atol=0.01 * x.grad.abs().max()
            )


@needs_extension
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("logit", [1e20, 1e37])
def test_large_logits(logit, dtype, instruction_set):
    a, b, _ = inputs(40, 500, 24)
    a, b = a * (logit**0.5 / 10), b * (logit**0.5 / 10)
    assert_matches((a, b, torch.ones(40, dtype=torch.float64)), dtype)
    if logit < 1e30:  # else the gradient of tau overflows
        assert_matches((a * 1e-12, b, torch.full((40,), 1e-12, dtype=torch.float64)), dtype)


@needs_extension
def test_float16_operands_whose_quotient_with_tau_overflows(instruction_set):
    """h_ctr / tau is beyond float16, whose largest number is 65504; the logits reach 1e6."""
    a, b, tau = inputs(40, 60, 24)
    assert_matches((a * 4096, b * 16, tau / 4), torch.float16)


@needs_extension
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_margin_that_overflows_only_times_log2_e(dtype, instruction_set):
    a, b = torch.tensor([[1.5e19], [1.0]]).to(dtype), torch.tensor([[-1e19], [1e19]]).to(dtype)
    tau = torch.tensor([1.0, 1e19])
    own, theirs = (af.adaptive_infonce(a, b, tau, reduction="none", backend=name) for name in ("cpu", "reference"))
    assert own[0] > 2.9e38, "the margin is 3e38"
    torch.testing.assert_close(own, theirs, rtol=1e-6, atol=0)


@needs_extension
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tau", [1e-28, 1e28])
def test_a_weight_over_tau_beyond_float32(tau, dtype, instruction_set):
    """scale / tau is about 1e-40 or 1e40, the gradients are in range."""
    a, b, temperature = inputs(40, 500, 24)
    options = {"reduction": "sum", "row_weight": torch.full((40,), 1e-12 if tau > 1 else 1e12)}
    tensors = (a * tau**0.5, b * tau**0.5, temperature * tau)
    truth = loss_and_gradients(
        af.adaptive_infonce, rounded(tensors, dtype), torch.float64, backend="reference", **options
    )
    own = loss_and_gradients(af.adaptive_infonce, tensors, dtype, backend="cpu", **options)
    for x, t in zip(own[:3], truth[:3]):
        assert (x - t).abs().max() <= (1e-4 if dtype == torch.float32 else 2e-2) * t.abs().max()


def rounded(tensors, dtype):
    return [x.to(dtype if i < 2 else torch.float32).double() for i, x in enumerate(tensors)]


@needs_extension
def test_a_large_gradient_of_an_unlikely_negative(instruction_set):
    """scale / tau times the anchor is 1e45, but the negatives' probability is about 1e-13."""
    a = torch.eye(8, dtype=torch.float64) * 1e25
    tensors = (a, torch.eye(8, dtype=torch.float64) * 30e-20, torch.full((8,), 1e5, dtype=torch.float64))
    assert_matches(tensors, torch.float32)
    tiny = (a * 1e5, torch.eye(8, dtype=torch.float64) * 30e-45 * 1e15, torch.full((8,), 1.0, dtype=torch.float64))
    weights = torch.full((8,), 1e12)
    assert_matches(tiny, torch.float32, row_weight=weights, reduction="sum")


@needs_extension
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("through", ["score", "tau"])
def test_an_overflowing_row_leaves_the_others(through, dtype, instruction_set):
    a, b, tau = (x.float() for x in inputs(40, 500, 24))
    if through == "score":
        a[7] = 3e38
    else:
        a[7], tau[7] = a[7] * 1e30, 1e-20
    results = []
    for backend in ("cpu", "reference"):
        leaf = a.to(dtype).requires_grad_()
        loss = af.adaptive_infonce(leaf, b.to(dtype), tau, reduction="none", backend=backend)
        loss.sum().backward()
        results.append((loss.detach(), leaf.grad))
    (own, d_own), (theirs, d_theirs) = results
    others = torch.arange(40) != 7
    assert math.isfinite(own[others].sum())
    torch.testing.assert_close(own[others], theirs[others], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(d_own[others], d_theirs[others], rtol=2e-2, atol=1e-2)
    assert not own[7].isfinite()
    assert not theirs[7].isfinite()
