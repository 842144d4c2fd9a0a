"""The Triton kernel of the sigmoid loss under the interpreter, against the float64 reference; no GPU needed."""

import math

import pytest
import torch

import adaftr_fast as af
from tests.ops.infonce.sigmoid.agreement import DTYPES, assert_matches, inputs, literal, loss_and_gradients, positives
from tests.tolerances import assert_as_accurate

pytest.importorskip("triton")
config = pytest.importorskip("adaftr_fast.kernels.infonce.config")
pytestmark = pytest.mark.skipif(not config.INTERPRETED, reason="needs TRITON_INTERPRET=1")

# Around the blocks' edges, with one split and with several (operands.py assumes 2 processors under the interpreter).
SIZES = [(1, 1, 1), (1, 5, 8), (2, 5, 31), (63, 63, 64), (100, 130, 31), (130, 140, 16)]
LARGE = [(257, 300, 100, torch.bfloat16), (257, 300, 64, torch.float16), (40, 400, 256, torch.bfloat16)]
NOWHERE = -100


def triton(*tensors, **options):
    return af.sigmoid_contrast(*tensors, backend="triton", **options)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "columns", "d"), SIZES)
def test_matches_the_stored_logits(rows, columns, d, dtype):
    assert_matches(inputs(rows, columns, d), dtype, "triton")


@pytest.mark.parametrize(("rows", "columns", "d", "dtype"), LARGE)
def test_matches_beyond_one_block(rows, columns, d, dtype):
    assert_matches(inputs(rows, columns, d), dtype, "triton")
    assert_matches(inputs(columns, rows, d), dtype, "triton", positive_index=positives(columns, rows))


def test_widths_beyond_the_whole_blocks():
    assert_matches(inputs(20, 70, 530), torch.bfloat16, "triton")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_positives_anywhere_or_nowhere(dtype, reduction):
    tensors = inputs(90, 130, 24)
    for positive in (positives(90, 130), torch.arange(90) + 40, torch.full((90,), NOWHERE), torch.zeros(90).long()):
        assert_matches(tensors, dtype, "triton", positive_index=positive, reduction=reduction)


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_tf32_block_sizes(precision):
    """The interpreter multiplies in full float32, so this tests the block sizes only."""
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision(precision)
        assert_matches(inputs(70, 150, 64), torch.float32, "triton")
        assert_matches(inputs(70, 150, 200), torch.float32, "triton", positive_index=positives(70, 150))
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("scale", "bias"), [(1e-30, -10.0), (1e-30, 50.0), (100.0, 0.0), (1e4, -1e4), (1e30, -1e4), (1e30, 50.0)]
)
def test_extreme_scales_and_biases(scale, bias, dtype):
    if dtype == torch.float16 and scale == 1e30:
        pytest.skip("the gradients of h_ctr and h_cvr overflow float16")
    a, b, *terms = inputs(40, 60, 16, scale, bias)
    # The similarities are exact: a large scale would magnify their rounding errors.
    assert_matches((a.sign() / 2, b.sign() / 2, *terms), dtype, "triton")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [-80.0, -30.0, -15.0, -10.0])
def test_small_losses_keep_their_digits(bias, dtype):
    """Every pair is classified right with a margin: the terms are e^bias, far below the rounding of 1."""
    a, b, *terms = inputs(40, 60, 16, 1.0, bias)
    if dtype == torch.float16 and bias < -15:
        pytest.skip("float16 rounds sigmoids below 2^-28 to subnormal numbers")
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
@pytest.mark.parametrize(("a_scale", "b_scale"), [(1e12, 1e12), (1e-20, 1e30), (1e30, 1e-20)])
def test_operands_of_any_magnitude(a_scale, b_scale, dtype):
    a, b, scale, bias = inputs(40, 60, 16)
    assert_matches((a * a_scale, b * b_scale, scale / (a_scale * b_scale), bias), dtype, "triton")


@pytest.mark.parametrize("need", range(4))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_unneeded_outputs_are_empty(need, dtype):
    tensors = [x.to(dtype if i < 2 else torch.float32) for i, x in enumerate(inputs(9, 12, 4))]
    arguments = (*tensors, None, bool(need & 1), bool(need & 2))
    own = torch.ops.adaftr_fast.sigmoid_contrast_triton(*arguments)
    theirs = torch.ops.adaftr_fast.sigmoid_contrast_reference(*arguments)
    for x, t in zip(own, theirs):
        assert x.shape == t.shape
        assert x.dtype == t.dtype
        assert_as_accurate(x, t, t, dtype)


@pytest.mark.parametrize("frozen", [(0,), (1,), (0, 1), (2, 3), (0, 1, 2)])
def test_frozen_inputs(frozen):
    leaves = [t.requires_grad_(i not in frozen) for i, t in enumerate(inputs(70, 110, 20))]
    loss = triton(*leaves)
    loss.backward()
    truth = loss_and_gradients(literal, leaves, torch.float64)
    for i, (own, t) in enumerate(zip((loss.detach(), *(leaf.grad for leaf in leaves)), truth), -1):
        assert own is None if i in frozen else torch.allclose(own, t, rtol=1e-11, atol=1e-13)


def test_strides_types_and_scalars():
    a, b, scale, bias = (x.float() for x in inputs(33, 40, 24))
    straight = triton(a, b, scale, bias)
    wide = torch.randn(41, 49)
    wide[1:, 1:25] = b
    assert torch.equal(straight, triton(a.T.contiguous().T, wide[1:, 1:25], 3.0, -2))
    positive = torch.arange(66)[::2]  # not contiguous
    found, own = (triton(a, torch.cat((b, b)), scale, bias, positive_index=i) for i in (positive, positive.clone()))
    assert torch.equal(found, own)
    mixed = triton(a.bfloat16(), b, scale.double(), bias)
    assert torch.equal(mixed, triton(a.bfloat16().float(), b, scale, bias))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "columns"), [(0, 5), (0, 0), (3, 0)])
def test_nothing_to_do(rows, columns, dtype):
    a, b = torch.zeros(rows, 4, dtype=dtype), torch.zeros(columns, 4, dtype=dtype)
    arguments = (a, b, torch.tensor(1.0), torch.tensor(0.0), torch.full((rows,), NOWHERE), True, True)
    own = torch.ops.adaftr_fast.sigmoid_contrast_triton(*arguments)
    for x, t in zip(own, torch.ops.adaftr_fast.sigmoid_contrast_reference(*arguments)):
        assert (x.shape, x.dtype) == (t.shape, t.dtype)
        assert not x.any()


@pytest.mark.parametrize(("scale", "bias"), [(0.0, 0.0), (-1.0, 0.0), (math.nan, 0.0), (math.inf, 0.0),
                                             (1.0, math.nan), (1.0, math.inf), (1.0, -math.inf)])  # fmt: skip
def test_a_bad_scale_or_bias_gives_nan(scale, bias):
    a, b, *_ = (x.float() for x in inputs(10, 10, 4))
    assert triton(a, b, scale, bias).isnan()


@pytest.mark.parametrize("index", [-1, 10, 2**32, 2**33 + 4])
def test_a_positive_out_of_range_gives_nan_in_its_row(index):
    a, b, scale, bias = (t.float().requires_grad_() for t in inputs(10, 10, 4))
    positive = torch.arange(10)
    positive[4] = index
    loss = triton(a, b, scale, bias, positive_index=positive)
    loss.backward()
    assert loss.isnan()
    assert torch.equal(a.grad.isnan().any(1), torch.arange(10) == 4)
    assert b.grad.isnan().all()


def test_a_bad_number_shows_in_the_loss():
    a, b, scale, bias = (t.float() for t in inputs(40, 40, 4))
    b[17, 2] = math.nan
    assert triton(a, b, scale, bias).isnan()


def test_first_and_second_derivatives():
    tensors = [t.requires_grad_() for t in inputs(3, 4, 2)]

    def function(*x):
        return triton(*x, positive_index=torch.tensor([3, NOWHERE, 1]))

    assert torch.autograd.gradcheck(function, tensors)
    assert torch.autograd.gradgradcheck(function, tensors)


def test_opcheck():
    for needs in ((True, True), (True, False), (False, True)):
        tensors = [t.requires_grad_(n) for t, n in zip(inputs(9, 11, 4), (*needs, True, True))]
        op = torch.ops.adaftr_fast.sigmoid_contrast_triton.default
        torch.library.opcheck(op, (*tensors, positives(9, 11), *needs))


def test_without_the_interpreter_cpu_tensors_are_refused(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(ValueError, match="sigmoid_contrast: backend 'triton' accepts CPU tensors only under"):
        triton(torch.ones(2, 3), torch.ones(2, 3), 1.0, 0.0)
