"""sigmoid_contrast on CPU, for every instruction set, against float64 by the tolerance rule."""

import math
from functools import partial
from itertools import product

import pytest
import torch

import adaftr_fast as af
from adaftr_fast.ops.infonce import sigmoid
from tests.ops.infonce.inputs import assert_matches, loss_and_gradients
from tests.ops.infonce.losses import draw_sigmoid, literal_sigmoid, positives
from tests.ops.marks import needs_extension, on_kernels, on_threads


@pytest.mark.parametrize("block", [1, 500, 1 << 22])
def test_the_reference_in_blocks(block, monkeypatch):
    monkeypatch.setattr(sigmoid, "BLOCK_ELEMENTS", block)
    tensors = draw_sigmoid(40, 50, 9)
    for options in ({"positive_index": positives(40, 50)}, {}):
        found = loss_and_gradients(af.sigmoid_contrast, tensors, torch.float64, backend="reference", **options)
        true = loss_and_gradients(literal_sigmoid, tensors, torch.float64, **options)
        torch.testing.assert_close(found, true)


def test_gradients_with_positives_and_without_candidates():
    for columns, positive in ((7, torch.tensor([3, -100, 0, 6, 3, -100])), (0, torch.full((6,), -100))):
        tensors = [x.requires_grad_() for x in draw_sigmoid(6, columns, 3)]
        loss = partial(af.sigmoid_contrast, positive_index=positive)
        assert torch.autograd.gradcheck(loss, tensors)
        assert torch.autograd.gradgradcheck(loss, tensors)


@needs_extension
@on_kernels("sigmoid", torch.float64, torch.float32)
def test_positives_anywhere_or_nowhere(dtype, instruction_set):
    for positive in (positives(90, 130), torch.arange(90) + 40, torch.full((90,), -100), torch.zeros(90).long()):
        assert_matches(draw_sigmoid(90, 130, 24), dtype, af.sigmoid_contrast, positive_index=positive)
    fewer = positives(130, 90)  # candidates than rows
    assert_matches(draw_sigmoid(130, 90, 24), dtype, af.sigmoid_contrast, positive_index=fewer, reduction="sum")


@needs_extension
@on_kernels("sigmoid", torch.float64, torch.float32)
def test_extreme_scales_and_biases(dtype, instruction_set):
    for scale, bias in product((1e-30, 1e-3, 100.0, 1e4, 1e30), (-1e4, -10.0, 0.0, 50.0)):
        a, b, *terms = draw_sigmoid(40, 60, 16, scale, bias)
        # The similarities are exact: a large scale would magnify their rounding errors.
        exact = (a.sign() / 2, b.sign() / 2, *terms)
        assert_matches(exact, dtype, af.sigmoid_contrast, what=f"scale {scale}, bias {bias}")


@needs_extension
@on_kernels("sigmoid", torch.float64, torch.float32)
def test_small_losses_keep_their_digits(dtype, instruction_set):
    """Every pair is classified right with a margin: the terms are e^bias, far below the rounding of 1."""
    options = {"positive_index": torch.full((40,), -100)}
    for bias in (-80.0, -30.0, -15.0):
        tensors = draw_sigmoid(40, 60, 16, 1.0, bias)
        own = loss_and_gradients(af.sigmoid_contrast, tensors, dtype, backend="cpu", **options)
        truth = loss_and_gradients(literal_sigmoid, tensors, torch.float64, **options)
        for x, t in zip(own, truth, strict=True):
            assert (x - t).abs().max() <= (1e-12 if dtype == torch.float64 else 2e-5) * t.abs().max()


@needs_extension
@on_kernels("sigmoid", torch.float32)
def test_operands_of_any_magnitude(dtype, instruction_set):
    for a_scale, b_scale in ((1e12, 1e12), (1e-20, 1e30), (1e30, 1e-20)):
        a, b, scale, bias = draw_sigmoid(40, 60, 16)
        tensors = (a * a_scale, b * b_scale, scale / (a_scale * b_scale), bias)
        assert_matches(tensors, dtype, af.sigmoid_contrast, what=f"{a_scale}, {b_scale}")


@needs_extension
@on_kernels("sigmoid", torch.float64)
def test_threads_types_and_numbers(dtype, instruction_set):
    a, b, scale, bias = draw_sigmoid(40, 40, 10)
    plain = af.sigmoid_contrast(a, b, scale, bias)
    for threads in (1, 3):
        with on_threads(threads):
            assert torch.equal(plain, af.sigmoid_contrast(a, b, 3.0, -2))
    mixed = af.sigmoid_contrast(a.bfloat16(), b.float(), scale, bias)
    assert torch.equal(mixed, af.sigmoid_contrast(a.bfloat16().float(), b.float(), scale.float(), bias.float()))


def test_opcheck():
    for needs in ((True, True), (True, False), (False, True)):
        tensors = [t.requires_grad_(n) for t, n in zip(draw_sigmoid(9, 11, 4), (*needs, True, True))]
        for op in (torch.ops.adaftr_fast.sigmoid_contrast, torch.ops.adaftr_fast.sigmoid_contrast_reference):
            torch.library.opcheck(op.default, (*tensors, positives(9, 11), *needs))


A, B = torch.randn(4, 3), torch.randn(6, 3)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((A[0], B, 1, 0), {}, ValueError, "sigmoid_contrast: h_ctr must be a 2-dim tensor"),
        ((A, B[:, :2], 1, 0), {}, ValueError, "sigmoid_contrast: h_ctr and h_cvr must have the same width"),
        ((A, B[:2], 1, 0), {}, ValueError, r"sigmoid_contrast: h_cvr must have at least one row .*\(4\)"),
        ((A, B, "1", 0), {}, TypeError, "logit_scale must be a number or a 0-dim tensor, got str"),
        ((A, B, 1, torch.ones(2)), {}, ValueError, r"logit_bias must hold one number, got shape \(2,\)"),
        ((A, B, 1, torch.tensor(True)), {}, TypeError, "logit_bias must be a real number, got torch.bool"),
        ((A, B, 1, 0), {"positive_index": torch.zeros(4)}, TypeError, "positive_index must be int64"),
        ((A, B, 1, 0), {"reduction": "none"}, ValueError, "reduction must be 'mean' or 'sum', got 'none'"),
        ((A, B, 1, 0), {"backend": "cuda"}, ValueError, "backend must be auto, reference, cpu or triton, got 'cuda'"),
    ],
)
def test_bad_arguments(arguments, options, error, message):
    with pytest.raises(error, match=message):
        af.sigmoid_contrast(*arguments, **options)


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize(
    ("scale", "bias", "index", "message"),
    [
        (0.0, 0.0, 0, "logit_scale must be positive and finite, got 0"),
        (-1.0, 0.0, 0, "logit_scale must be positive and finite, got -1"),
        (math.nan, 0.0, 0, "logit_scale must be positive and finite, got nan"),
        (1.0, math.inf, 0, "logit_bias must be finite, got inf"),
        (1.0, 0.0, 6, r"positive_index must be in \[0, 6\) or -100, got positive_index\[1\] = 6"),
    ],
)
def test_bad_values(scale, bias, index, message, backend):
    with pytest.raises(RuntimeError, match=f"sigmoid_contrast: {message}"):
        af.sigmoid_contrast(A, B, scale, bias, positive_index=torch.tensor([0, index, 1, 2]), backend=backend)


def test_forward_mode_is_refused():
    with pytest.raises(NotImplementedError, match="sigmoid_contrast: has no forward-mode derivative"):
        torch.func.jvp(lambda a: af.sigmoid_contrast(a, B, 1.0, 0.0), (A,), (A,))
