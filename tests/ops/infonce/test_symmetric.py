"""Both directions by one op, which forms the similarities once."""

from itertools import product

import pytest
import torch

import adaftr_fast as af
from adaftr_fast.ops.infonce.op import SYMMETRIC, two_sweeps
from tests.ops.infonce.inputs import assert_matches
from tests.ops.infonce.losses import both_directions, draw_both
from tests.ops.marks import needs_extension, on_kernels


def op_arguments(tensors, scale=None, groups=(None, None), needs=(True,) * 4):
    a = tensors[0]
    return (*tensors, *groups, torch.full((len(a),), 1 / len(a), dtype=a.dtype) if scale is None else scale, *needs)


@needs_extension
@on_kernels("symmetric", torch.float32)
def test_temperatures_and_weights_of_different_magnitudes(dtype, instruction_set):
    """From 2^40 on, one factor would not keep all weights of the gradients in the range of float32."""
    for ratio in (1e6, 1e20, 1e30):
        a, b, tau, tau_column = draw_both(130, 130, 24)
        far = torch.where(torch.arange(130) % 2 == 0, 1.0, ratio).double()
        spread = (a * far[:, None], b, tau * far, tau_column * ratio)
        assert_matches(spread, dtype, both_directions, what=f"{ratio}")
        assert_matches((a, b, tau, tau_column), dtype, both_directions, what=f"{ratio}", row_weight=1 / far)


@needs_extension
@on_kernels("symmetric", torch.float64)
def test_equals_two_calls_of_one_direction(dtype, instruction_set):
    tensors = draw_both(300, 300, 48)
    groups = (torch.arange(300) // 2, torch.arange(300) // 3)
    arguments = op_arguments(tensors, groups=groups)
    own = torch.ops.adaftr_fast.infonce_symmetric(*arguments)
    two = two_sweeps(torch.ops.adaftr_fast.infonce, **SYMMETRIC.named(arguments, {}))
    for x, y in zip(own, two):
        torch.testing.assert_close(x, y, rtol=1e-11, atol=1e-15)


@needs_extension
@on_kernels("symmetric", torch.float64)
def test_only_the_gradients_that_are_needed(dtype, instruction_set):
    tensors = draw_both(70, 70, 20)
    whole = torch.ops.adaftr_fast.infonce_symmetric(*op_arguments(tensors))
    for needs in product((False, True), repeat=4):
        part = torch.ops.adaftr_fast.infonce_symmetric(*op_arguments(tensors, needs=needs))
        for x, y, needed in zip(part, whole, [True, True, *needs]):
            torch.testing.assert_close(x, y if needed else y.new_empty(0), rtol=0, atol=0)


@needs_extension
@on_kernels("symmetric", torch.float32)
def test_an_overflowing_row_leaves_the_losses_of_others(dtype, instruction_set):
    """A score out of range is one of its column as well, so the losses in that column are lost too."""
    for through in ("score", "tau"):
        a, b, *taus = (x.to(dtype) for x in draw_both(40, 40, 8))
        if through == "score":
            a[7] = 3e38
        else:
            a[7], taus[0][7] = a[7] * 1e30, 1e-9
        loss = af.adaptive_infonce(a, b, tuple(taus), symmetric=True, reduction="none", backend="cpu")
        one = af.adaptive_infonce(a, b, taus[0], reduction="none", backend="cpu")
        two = af.adaptive_infonce(b, a, taus[1], reduction="none", backend="cpu")
        assert not loss[7].isfinite()
        torch.testing.assert_close(loss, (one + two) / 2, equal_nan=True)


@pytest.mark.parametrize("reference", [False, True])
@pytest.mark.parametrize("needs", [(True,) * 4, (True, False, False, False), (False, True, True, False)])
def test_opcheck(reference, needs):
    tensors = [t.requires_grad_(n) for t, n in zip(draw_both(9, 9, 4), needs)]
    name = "infonce_symmetric_reference" if reference else "infonce_symmetric"
    torch.library.opcheck(getattr(torch.ops.adaftr_fast, name).default, op_arguments(tensors, needs=needs))


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_derivatives_of_weights_and_both_temperatures(backend, reduction):
    leaves = [t.requires_grad_() for t in (*draw_both(4, 4, 2), torch.linspace(0.5, 2, 4).double())]

    def loss(a, b, tau, tau_column, weight):
        options = {"row_weight": weight, "reduction": reduction, "backend": backend}
        return af.adaptive_infonce(a, b, (tau, tau_column), symmetric=True, **options)

    assert torch.autograd.gradcheck(loss, leaves)
    assert torch.autograd.gradgradcheck(loss, leaves)


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_bad_temperature_names_the_side_and_the_row(backend):
    a, b, tau, bad = draw_both(4, 4, 3)
    bad[2] = 0
    with pytest.raises(RuntimeError, match=r"tau must be positive and finite, got tau\[2\]"):
        af.adaptive_infonce(a, b, (bad, tau), symmetric=True, backend=backend)
    with pytest.raises(RuntimeError, match=r"tau \(per column\) must be positive and finite, got tau\[2\]"):
        af.adaptive_infonce(a, b, (tau, bad), symmetric=True, backend=backend)


@needs_extension
@pytest.mark.parametrize(
    ("position", "value", "message"),
    [
        (1, torch.zeros(4, 2), "anchors and candidates must both be"),
        (1, torch.zeros(3, 3), "must share a dtype"),
        (2, torch.ones(2), r"tau_row must be \[3\], got \[2\]"),
        (3, torch.ones(2), r"tau_column must be \[3\], got \[2\]"),
        (4, torch.zeros(3, dtype=torch.int64), "must be given together"),
        (6, torch.ones(2), r"scale must be \[3\], got \[2\]"),
    ],
)
def test_bad_arguments_of_the_op(position, value, message):
    arguments = list(op_arguments(draw_both(3, 3, 3)))
    arguments[position] = value
    with pytest.raises(RuntimeError, match=message):
        torch.ops.adaftr_fast.infonce_symmetric(*arguments)
