"""adaptive_infonce on CPU at the ends of its range, where the reference is no measure or single
results matter.

Where the scores a_r . b_j, the logits and the gradients are in range, no intermediate result may
overflow or underflow by itself. Where a logit is out of range, its row alone is affected.
extremes.py has what the tolerance rule judges.
"""

import math

import torch

import adaftr_fast as af
from tests.ops.infonce.inputs import inputs, loss_and_gradients, types_of
from tests.ops.infonce.losses import draw_both
from tests.ops.marks import needs_extension, on_kernels, on_threads


@needs_extension
@on_kernels("infonce", torch.float32)
def test_temperatures_with_subnormal_inverse(dtype, instruction_set):
    a, b, _ = (t.to(dtype) for t in inputs(40, 70, 4))
    groups = {"row_group": torch.arange(40) % 4, "column_group": torch.arange(70) % 4}
    for tau in (1.3e38, 3e38):
        loss = af.adaptive_infonce(a, b, tau, backend="cpu", **groups)
        torch.testing.assert_close(
            loss, af.adaptive_infonce(a, b, tau, backend="reference", **groups)
        )


@needs_extension
@on_kernels("infonce", torch.float64, torch.float32, torch.bfloat16)
def test_statistics_and_tau_gradient_when_the_row_maximum_jumps(dtype, instruction_set):
    """The sums for entropy and tau underflow together with l when a later block raises
    the maximum.
    """
    a, b, tau = inputs(100, 1300, 64, scale=40)
    b[1250] = 60 * a.mean(0)
    tensors = [x.to(kind).double() for x, kind in zip((a, b, tau), types_of((a, b, tau), dtype))]
    own, known = (
        loss_and_gradients(
            af.adaptive_infonce, tensors, kind, return_stats=True, frozen=(0, 1), backend=backend
        )
        for kind, backend in ((dtype, "cpu"), (torch.float64, "reference"))
    )
    torch.testing.assert_close(own[-1].double(), known[-1], rtol=1e-4, atol=1e-3)
    assert torch.equal(own[-2], known[-2])
    torch.testing.assert_close(
        own[3].double(), known[3], rtol=1e-3, atol=1e-5 * known[3].abs().max()
    )


@needs_extension
@on_kernels("infonce", torch.float32, torch.bfloat16)
def test_a_margin_that_overflows_only_times_log2_e(dtype, instruction_set):
    a = torch.tensor([[1.5e19], [1.0]]).to(dtype)
    b = torch.tensor([[-1e19], [1e19]]).to(dtype)
    tau = torch.tensor([1.0, 1e19])
    own, theirs = (
        af.adaptive_infonce(a, b, tau, reduction="none", backend=name)
        for name in ("cpu", "reference")
    )
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
        truth = loss_and_gradients(
            af.adaptive_infonce, rounded, torch.float64, backend="reference", **options
        )
        own = loss_and_gradients(af.adaptive_infonce, tensors, dtype, backend="cpu", **options)
        for x, t in zip(own[:3], truth[:3]):
            assert (x - t).abs().max() <= (1e-4 if dtype == torch.float32 else 2e-2) * t.abs().max()


@needs_extension
@on_kernels("symmetric", torch.float32)
def test_of_both_directions_an_overflowing_row_loses_its_column(dtype, instruction_set):
    """A score out of range is one of its column as well, so the losses in that column
    are lost too.
    """
    for through in ("score", "tau"):
        a, b, *taus = (x.to(dtype) for x in draw_both(40, 40, 8))
        if through == "score":
            a[7] = 3e38
        else:
            a[7], taus[0][7] = a[7] * 1e30, 1e-9
        loss = af.adaptive_infonce(
            a, b, tuple(taus), symmetric=True, reduction="none", backend="cpu"
        )
        one = af.adaptive_infonce(a, b, taus[0], reduction="none", backend="cpu")
        two = af.adaptive_infonce(b, a, taus[1], reduction="none", backend="cpu")
        assert not loss[7].isfinite()
        torch.testing.assert_close(loss, (one + two) / 2, equal_nan=True)


@needs_extension
@on_kernels("infonce", torch.float32)
def test_nan_in_a_row_of_a_thread_apart(dtype, instruction_set):
    a, b, tau = inputs(800, 800, 8)
    a[799, 3] = math.nan
    with on_threads(3):
        loss, d_a, d_b, d_tau = loss_and_gradients(af.adaptive_infonce, (a, b, tau), dtype)
    assert all(x.isnan().all() for x in (loss, d_a[799], d_b, d_tau[799]))
    assert all(x[:799].isfinite().all() for x in (d_a, d_tau))
