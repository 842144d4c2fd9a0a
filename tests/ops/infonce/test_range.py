"""adaptive_infonce on CPU at the ends of float32's range, for every instruction set.

Where the scores a_r . b_j, the logits and the gradients are in range, no intermediate result may overflow or underflow
by itself. Where a logit is out of range, its row alone is affected.
"""

import pytest
import torch

import adaftr_fast as af
from tests.ops.infonce.inputs import assert_matches, inputs, loss_and_gradients, types_of
from tests.ops.marks import needs_extension, on_kernels


def scaled(rows, columns, d, a_scale, b_scale, seed=0):
    """Returns inputs of these magnitudes whose logits are moderate; float64."""
    a, b, tau = inputs(rows, columns, d, seed=seed)
    return a * a_scale, b * b_scale, tau * (a_scale * b_scale)


@needs_extension
@pytest.mark.parametrize("instruction_set", ["avx512_bf16", "amx"], indirect=True)
def test_operands_of_any_magnitude_beyond_the_stored_columns(instruction_set):
    for a_scale, b_scale in ((1e12, 1e12), (1e-20, 1e30), (1e30, 1e-20)):
        assert_matches(scaled(33, 33_000, 24, a_scale, b_scale), torch.bfloat16)


@needs_extension
@on_kernels("infonce", torch.float32, torch.bfloat16)
def test_gradients_of_large_operands_do_not_depend_on_frozen_inputs(dtype, instruction_set):
    tensors = scaled(40, 500, 24, 1e-20, 1e30)
    whole = loss_and_gradients(af.adaptive_infonce, tensors, dtype)
    for frozen in ((0,), (1,)):
        for x, y in zip(whole, loss_and_gradients(af.adaptive_infonce, tensors, dtype, frozen=frozen), strict=True):
            if y is not None:
                assert y.isfinite().all()
                rtol = 2e-2 if dtype == torch.bfloat16 else 1e-4
                torch.testing.assert_close(y, x, rtol=rtol, atol=0.01 * x.abs().max().item())


@needs_extension
@on_kernels("infonce", torch.float32, torch.bfloat16)
def test_large_logits(dtype, instruction_set):
    for logit in (1e20, 1e37):
        a, b, _ = inputs(40, 500, 24)
        a, b = a * (logit**0.5 / 10), b * (logit**0.5 / 10)
        assert_matches((a, b, torch.ones(40, dtype=torch.float64)), dtype)
        if logit < 1e30:  # else the gradient of tau overflows
            assert_matches((a * 1e-12, b, torch.full((40,), 1e-12, dtype=torch.float64)), dtype)


@needs_extension
@on_kernels("infonce", torch.float16)
def test_float16_operands_whose_quotient_with_tau_overflows(dtype, instruction_set):
    """h_ctr / tau is beyond float16, whose largest number is 65504; the logits reach 1e6."""
    a, b, tau = inputs(40, 60, 24)
    assert_matches((a * 4096, b * 16, tau / 4), dtype)


@needs_extension
@on_kernels("infonce", torch.float32, torch.bfloat16)
def test_a_margin_that_overflows_only_times_log2_e(dtype, instruction_set):
    a, b = torch.tensor([[1.5e19], [1.0]]).to(dtype), torch.tensor([[-1e19], [1e19]]).to(dtype)
    tau = torch.tensor([1.0, 1e19])
    own, theirs = (af.adaptive_infonce(a, b, tau, reduction="none", backend=name) for name in ("cpu", "reference"))
    assert own[0] > 2.9e38, "the margin is 3e38"
    torch.testing.assert_close(own, theirs, rtol=1e-6, atol=0)


@needs_extension
@on_kernels("infonce", torch.float32, torch.bfloat16)
def test_a_weight_over_tau_beyond_float32(dtype, instruction_set):
    """scale / tau is about 1e-40 or 1e40, the gradients are in range."""
    for tau in (1e-28, 1e28):
        a, b, temperature = inputs(40, 500, 24)
        options = {"reduction": "sum", "row_weight": torch.full((40,), 1e-12 if tau > 1 else 1e12)}
        tensors = [a * tau**0.5, b * tau**0.5, temperature * tau]
        rounded = [x.to(kind).double() for x, kind in zip(tensors, types_of(tensors, dtype))]
        truth = loss_and_gradients(af.adaptive_infonce, rounded, torch.float64, backend="reference", **options)
        own = loss_and_gradients(af.adaptive_infonce, tensors, dtype, backend="cpu", **options)
        for x, t in zip(own[:3], truth[:3]):
            assert (x - t).abs().max() <= (1e-4 if dtype == torch.float32 else 2e-2) * t.abs().max()


@needs_extension
@on_kernels("infonce", torch.float32)
def test_a_large_gradient_of_an_unlikely_negative(dtype, instruction_set):
    """scale / tau times the anchor is 1e45, but the negatives' probability is about 1e-13."""
    a = torch.eye(8, dtype=torch.float64) * 1e25
    tensors = (a, torch.eye(8, dtype=torch.float64) * 30e-20, torch.full((8,), 1e5, dtype=torch.float64))
    assert_matches(tensors, dtype)
    tiny = (a * 1e5, torch.eye(8, dtype=torch.float64) * 30e-45 * 1e15, torch.full((8,), 1.0, dtype=torch.float64))
    weights = torch.full((8,), 1e12)
    assert_matches(tiny, dtype, row_weight=weights, reduction="sum")


@needs_extension
@on_kernels("infonce", torch.float32, torch.bfloat16)
def test_an_overflowing_row_leaves_the_others(dtype, instruction_set):
    for through in ("score", "tau"):
        a, b, tau = inputs(40, 500, 24)
        if through == "score":
            a[7] = 3e38
        else:
            a[7], tau[7] = a[7] * 1e30, 1e-20
        (own, d_own, *_), (theirs, d_theirs, *_) = (
            loss_and_gradients(
                af.adaptive_infonce, (a, b, tau), dtype, torch.ones(40), reduction="none", backend=backend
            )
            for backend in ("cpu", "reference")
        )
        others = torch.arange(40) != 7
        assert own[others].isfinite().all()
        torch.testing.assert_close(own[others], theirs[others], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(d_own[others], d_theirs[others], rtol=2e-2, atol=1e-2)
        assert not own[7].isfinite()
        assert not theirs[7].isfinite()
