"""The Triton kernel of the sigmoid loss under the interpreter, against the float64 reference; no GPU needed."""

import math
from itertools import product

import pytest
import torch

import adaftr_fast as af
from tests.ops.infonce import inputs
from tests.ops.infonce.inputs import DTYPES, loss_and_gradients
from tests.ops.infonce.losses import draw_sigmoid, positives
from tests.tolerances import assert_as_accurate

pytest.importorskip("triton")
config = pytest.importorskip("adaftr_fast.kernels.infonce.config")
pytestmark = pytest.mark.skipif(not config.INTERPRETED, reason="needs TRITON_INTERPRET=1")

NOWHERE = -100


def assert_matches(tensors, dtype, **options):
    inputs.assert_matches(tensors, dtype, af.sigmoid_contrast, backend="triton", **options)


def triton(*tensors, **options):
    return af.sigmoid_contrast(*tensors, backend="triton", **options)


@pytest.mark.parametrize("dtype", DTYPES)
def test_positives_anywhere_or_nowhere(dtype):
    for positive in (positives(70, 100), torch.arange(70) + 30, torch.full((70,), NOWHERE), torch.zeros(70).long()):
        assert_matches(draw_sigmoid(70, 100, 16), dtype, positive_index=positive)
    assert_matches(draw_sigmoid(100, 70, 16), dtype, positive_index=positives(100, 70), reduction="sum")


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_tf32_block_sizes(precision):
    """The interpreter multiplies in full float32, so this tests the block sizes only."""
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision(precision)
        assert_matches(draw_sigmoid(70, 150, 64), torch.float32)
        assert_matches(draw_sigmoid(70, 150, 200), torch.float32, positive_index=positives(70, 150))
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("dtype", DTYPES)
def test_extreme_scales_and_biases(dtype):
    for scale, bias in ((1e-30, -10.0), (1e-30, 50.0), (100.0, 0.0), (1e4, -1e4), (1e30, -1e4), (1e30, 50.0)):
        if dtype == torch.float16 and scale == 1e30:
            continue  # the gradients of h_ctr and h_cvr overflow float16
        a, b, *terms = draw_sigmoid(40, 60, 16, scale, bias)
        # The similarities are exact: a large scale would magnify their rounding errors.
        assert_matches((a.sign() / 2, b.sign() / 2, *terms), dtype, what=f"scale {scale}, bias {bias}")


@pytest.mark.parametrize("dtype", DTYPES)
def test_small_losses_keep_their_digits(dtype):
    """Every pair is classified right with a margin: the terms are e^bias, far below the rounding of 1."""
    for bias in (-80.0, -30.0, -15.0, -10.0)[2 * (dtype == torch.float16) :]:  # else its sigmoids are subnormal
        a, b, *terms = draw_sigmoid(40, 60, 16, 1.0, bias)
        a, b = a.to(dtype), b.to(dtype)
        rest = (*terms, torch.full((40,), NOWHERE), True, True)
        # The op: its gradients are of the accumulation type, in which a small one is no subnormal number.
        own = torch.ops.adaftr_fast.sigmoid_contrast_triton(a, b, *rest)
        truth = torch.ops.adaftr_fast.sigmoid_contrast_reference(a.double(), b.double(), *rest)
        exact = 1e-12 if dtype == torch.float64 else 2e-5
        rounded = {torch.bfloat16: 1e-2, torch.float16: 2e-3}.get(dtype, exact)  # the sigmoids, for d h_ctr and d h_cvr
        for i, (x, t) in enumerate(zip(own, truth)):
            assert (x - t).abs().max() <= (rounded if i in (1, 2) else exact) * t.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [70, 300])
def test_logits_of_zero(rows, dtype):
    """Every factor of the products of 1 + e is 2, and they do not overflow."""
    tensors = (torch.zeros(rows, 16), torch.zeros(rows + 9, 16), torch.tensor(1.0), torch.tensor(0.0))
    loss, *gradients = loss_and_gradients(triton, tensors, dtype)
    torch.testing.assert_close(loss.item(), (rows + 9) * math.log(2), rtol=1e-6, atol=0)
    assert all(g.isfinite().all() for g in gradients)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_operands_of_any_magnitude(dtype):
    for a_scale, b_scale in ((1e12, 1e12), (1e-20, 1e30), (1e30, 1e-20)):
        a, b, scale, bias = draw_sigmoid(40, 60, 16)
        assert_matches((a * a_scale, b * b_scale, scale / (a_scale * b_scale), bias), dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_unneeded_outputs_are_empty(dtype):
    tensors = [x.to(dtype if i < 2 else torch.float32) for i, x in enumerate(draw_sigmoid(9, 12, 4))]
    for needs in product((False, True), repeat=2):
        own = torch.ops.adaftr_fast.sigmoid_contrast_triton(*tensors, None, *needs)
        theirs = torch.ops.adaftr_fast.sigmoid_contrast_reference(*tensors, None, *needs)
        for x, t in zip(own, theirs):
            assert x.shape == t.shape
            assert x.dtype == t.dtype
            assert_as_accurate(x, t, t, dtype)


def test_types_and_scalars():
    a, b, scale, bias = (x.float() for x in draw_sigmoid(33, 40, 24))
    assert torch.equal(triton(a, b, scale, bias), triton(a, b, 3.0, -2))
    positive = torch.arange(66)[::2]  # not contiguous
    found, own = (triton(a, torch.cat((b, b)), scale, bias, positive_index=i) for i in (positive, positive.clone()))
    assert torch.equal(found, own)
    mixed = triton(a.bfloat16(), b, scale.double(), bias)
    assert torch.equal(mixed, triton(a.bfloat16().float(), b, scale, bias))


@pytest.mark.parametrize("dtype", DTYPES)
def test_nothing_to_do(dtype):
    for rows, columns in ((0, 5), (0, 0), (3, 0)):
        a, b = torch.zeros(rows, 4, dtype=dtype), torch.zeros(columns, 4, dtype=dtype)
        arguments = (a, b, torch.tensor(1.0), torch.tensor(0.0), torch.full((rows,), NOWHERE), True, True)
        own = torch.ops.adaftr_fast.sigmoid_contrast_triton(*arguments)
        for x, t in zip(own, torch.ops.adaftr_fast.sigmoid_contrast_reference(*arguments)):
            assert (x.shape, x.dtype) == (t.shape, t.dtype)
            assert not x.any()


def test_a_bad_scale_or_bias_gives_nan():
    a, b, *_ = (x.float() for x in draw_sigmoid(10, 10, 4))
    assert all(triton(a, b, scale, 0.0).isnan() for scale in (0.0, -1.0, math.nan, math.inf))
    assert all(triton(a, b, 1.0, bias).isnan() for bias in (math.nan, math.inf, -math.inf))


def test_a_positive_out_of_range_gives_nan_in_its_row():
    for index in (-1, 10, 2**32, 2**33 + 4):
        a, b, scale, bias = (t.float().requires_grad_() for t in draw_sigmoid(10, 10, 4))
        positive = torch.arange(10)
        positive[4] = index
        loss = triton(a, b, scale, bias, positive_index=positive)
        loss.backward()
        assert loss.isnan()
        assert torch.equal(a.grad.isnan().any(1), torch.arange(10) == 4)
        assert b.grad.isnan().all()


def test_opcheck():
    for needs in ((True, True), (True, False), (False, True)):
        tensors = [t.requires_grad_(n) for t, n in zip(draw_sigmoid(9, 11, 4), (*needs, True, True))]
        op = torch.ops.adaftr_fast.sigmoid_contrast_triton.default
        torch.library.opcheck(op, (*tensors, positives(9, 11), *needs))


def test_without_the_interpreter_cpu_tensors_are_refused(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(ValueError, match="sigmoid_contrast: backend 'triton' accepts CPU tensors only under"):
        triton(torch.ones(2, 3), torch.ones(2, 3), 1.0, 0.0)
