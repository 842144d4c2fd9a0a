"""Accuracy of adaptive_infonce on CPU against the float64 reference, for every instruction set."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import adaftr_fast as af
from adaftr_fast.ops.infonce.reference import infonce_rows
from tests.ops.infonce.inputs import assert_matches, inputs, loss_and_gradients, masks
from tests.ops.infonce.losses import literal
from tests.ops.marks import needs_extension, on_kernels


@needs_extension
@on_kernels("infonce", torch.float32, torch.bfloat16, torch.float16)
def test_large_sizes(dtype, instruction_set):
    for size in ((1024, 1024, 64), (300, 1024, 256)):
        assert_matches(inputs(*size), dtype, what=str(size))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    rows=st.integers(1, 40),
    extra=st.integers(0, 20),
    d=st.integers(1, 40),
    scale=st.floats(1e-3, 8),  # below about 1e-300 the kernel flushes denormals, as documented
    seed=st.integers(0, 2**16),
    masked=st.booleans(),
    dtype=st.sampled_from([torch.float64, torch.float32]),
)
@needs_extension
def test_any_shape_matches_reference(rows, extra, d, scale, seed, masked, dtype):
    options = masks(rows, rows + extra, seed) if masked else {}
    assert_matches(inputs(rows, rows + extra, d, scale, seed), dtype, **options)


@needs_extension
def test_agrees_with_cross_entropy_to_1e_5():
    tensors = inputs(1000, 1000, 64)
    truth = loss_and_gradients(literal, tensors, torch.float64)
    own = loss_and_gradients(af.adaptive_infonce, tensors, torch.float32)
    for x, t in zip(own, truth):
        assert ((x - t).abs().max() / t.abs().max()).item() < 1e-5


@needs_extension
@on_kernels("infonce", torch.float32)
def test_temperatures_with_subnormal_inverse(dtype, instruction_set):
    a, b, _ = (t.to(dtype) for t in inputs(40, 70, 4))
    groups = {"row_group": torch.arange(40) % 4, "column_group": torch.arange(70) % 4}
    for tau in (1.3e38, 3e38):
        loss = af.adaptive_infonce(a, b, tau, backend="cpu", **groups)
        torch.testing.assert_close(loss, af.adaptive_infonce(a, b, tau, backend="reference", **groups))


@needs_extension
@on_kernels("infonce", torch.float64, torch.float32, torch.bfloat16)
def test_statistics_and_tau_gradient_when_the_row_maximum_jumps(dtype, instruction_set):
    """The sums for entropy and tau underflow together with l when a later block raises the maximum."""
    a, b, tau = inputs(300, 1300, 64, scale=40)
    b[1250] = 60 * a.mean(0)
    rounded = [a.to(dtype), b.to(dtype), tau.to(dtype if dtype == torch.float64 else torch.float32)]
    tau_alone = rounded[2].requires_grad_()
    loss, stats = af.adaptive_infonce(*rounded[:2], tau_alone, return_stats=True, backend="cpu")
    loss.backward()
    exact = [x.detach().double() for x in rounded]
    exact[2].requires_grad_()
    truth, known = af.adaptive_infonce(*exact, return_stats=True, backend="reference")
    truth.backward()
    torch.testing.assert_close(stats.entropy.double(), known.entropy, rtol=1e-4, atol=1e-3)
    assert torch.equal(stats.top1, known.top1)
    torch.testing.assert_close(tau_alone.grad.double(), exact[2].grad, rtol=1e-3, atol=1e-5 * exact[2].grad.abs().max())


@needs_extension
@on_kernels("infonce", torch.float32)
def test_logits_of_ten_thousand(dtype, instruction_set):
    for sign in (1, -1):  # the positive's logit is far above, or far below, all others
        a, b, _ = inputs(64, 64, 16)
        b += sign * a * 10
        assert_matches((a * 100, b, torch.full((64,), 0.1, dtype=torch.float64)), dtype)


@needs_extension
@on_kernels("infonce", torch.float32)
def test_identical_anchors_and_candidates(dtype, instruction_set):
    a = torch.ones(70, 9, dtype=torch.float64)
    tensors = (a, a.clone(), torch.full((70,), 0.3, dtype=torch.float64))
    loss, d_a, d_b, d_tau = loss_and_gradients(af.adaptive_infonce, tensors, dtype, backend="cpu")
    torch.testing.assert_close(loss.item(), math.log(70), rtol=1e-6, atol=0)
    summand = 1 / (70 * 0.3)  # the gradients are sums of such terms that cancel up to rounding
    assert max(d.abs().max() for d in (d_a, d_b, d_tau / 30)) < 1e-6 * summand
    stats = af.adaptive_infonce(a.float(), a.float(), 0.3, return_stats=True)[1]
    assert not stats.top1.any(), "a tie does not count as top-1"
    torch.testing.assert_close(stats.entropy, torch.full((70,), 70.0).log())


@needs_extension
@on_kernels("infonce", torch.float32)
def test_lse_far_above_the_positive_logit(dtype, instruction_set):
    a, b, _ = (t.to(dtype) for t in inputs(64, 64, 16))
    b -= a * 1000
    stats = af.adaptive_infonce(a, b, 0.5, return_stats=True, backend="cpu")[1]
    truth = infonce_rows(a.double(), b.double(), torch.full((64,), 0.5, dtype=torch.float64))
    torch.testing.assert_close(stats.lse.double(), truth.lse, rtol=1e-5, atol=1e-3)


@needs_extension
@on_kernels("infonce", torch.float32)
def test_tiny_and_zero_weights(dtype, instruction_set):
    for weight in (0.0, 1e-24, 1e-30):
        options = {"row_weight": torch.full((100,), weight, dtype=torch.float64), "reduction": "sum"}
        tensors = inputs(100, 100, 16, scale=5)
        found = loss_and_gradients(af.adaptive_infonce, tensors, dtype, backend="cpu", **options)
        truth = loss_and_gradients(af.adaptive_infonce, tensors, torch.float64, backend="reference", **options)
        for own, true in zip(found, truth, strict=True):
            torch.testing.assert_close(own.double(), true, rtol=1e-3, atol=1e-4 * true.abs().max().item())


@needs_extension
@pytest.mark.parametrize(("precision", "bound"), [("highest", 2e-6), ("high", 1e-4), ("medium", 2e-2)])
def test_matmul_precision_setting(precision, bound):
    tensors = inputs(300, 400, 96)
    truth = loss_and_gradients(af.adaptive_infonce, tensors, torch.float64)
    torch.set_float32_matmul_precision(precision)
    try:
        own = loss_and_gradients(af.adaptive_infonce, tensors, torch.float32)
    finally:
        torch.set_float32_matmul_precision("highest")
    errors = [((x - t).abs().max() / t.abs().max()).item() for x, t in zip(own, truth)]
    assert max(errors) < bound
    if precision in {"amx": ("high", "medium"), "avx512_bf16": ("medium",)}.get(af.cpu_capability(), ()):
        assert max(errors) > bound / 100, "the faster products were not used"


@pytest.fixture
def unset_precision():
    """No precision is set; those of before come back afterwards."""
    settings = [torch.backends.cuda.matmul, torch.backends.mkldnn.matmul, torch.backends]
    before = [each.fp32_precision for each in settings]
    for each in settings:
        each.fp32_precision = "none"
    yield
    torch.set_float32_matmul_precision("highest")  # what torch.get_float32_matmul_precision returns is kept apart
    for each, value in zip(settings, before):
        each.fp32_precision = value


@needs_extension
@pytest.mark.parametrize(("setting", "older"), [("ieee", "highest"), ("tf32", "high"), ("bf16", "medium")])
@pytest.mark.parametrize("place", ["backends", "matmul"])
def test_newer_precision_settings(place, setting, older, unset_precision):
    tensors = inputs(300, 400, 96)
    where = torch.backends if place == "backends" else torch.backends.mkldnn.matmul
    where.fp32_precision = setting
    own = loss_and_gradients(af.adaptive_infonce, tensors, torch.float32)
    where.fp32_precision = "none"
    torch.set_float32_matmul_precision(older)
    same = loss_and_gradients(af.adaptive_infonce, tensors, torch.float32)
    assert all(torch.equal(x, y) for x, y in zip(own, same))


@needs_extension
def test_cuda_matmul_setting_does_not_affect_cpu():
    tensors = [t.float() for t in inputs(50, 50, 8)]
    before, setting = af.adaptive_infonce(*tensors), torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    try:
        assert torch.equal(af.adaptive_infonce(*tensors), before)
    finally:
        torch.backends.cuda.matmul.fp32_precision = setting
