"""sigmoid_contrast on CPU, for every instruction set, against float64 by the tolerance rule."""

import math

import pytest
import torch
import torch.nn.functional as F

import adaftr_fast as af
from adaftr_fast.ops.infonce import sigmoid
from tests.ops.infonce.sigmoid.agreement import DTYPES, assert_matches, inputs, literal, loss_and_gradients, positives
from tests.ops.marks import needs_extension, on_threads

SIZES = [(1, 1, 1), (1, 5, 8), (2, 2, 31), (63, 63, 64), (100, 129, 8), (257, 700, 100), (1030, 1024, 40)]


@needs_extension
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "columns", "d"), SIZES)
def test_matches_the_stored_logits(rows, columns, d, dtype, instruction_set):
    options = {"positive_index": positives(rows, columns)} if columns < rows else {}
    assert_matches(inputs(rows, columns, d), dtype, **options)


@pytest.mark.parametrize("block", [1, 500, 1 << 22])
def test_the_reference_in_blocks(block, monkeypatch):
    monkeypatch.setattr(sigmoid, "BLOCK_ELEMENTS", block)
    assert_matches(inputs(40, 50, 9), torch.float64, "reference", positive_index=positives(40, 50))
    assert_matches(inputs(40, 50, 9), torch.float64, "reference")


@needs_extension
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_positives_anywhere_or_nowhere(dtype, reduction, instruction_set):
    tensors = inputs(90, 130, 24)
    for positive in (positives(90, 130), torch.arange(90) + 40, torch.full((90,), -100), torch.zeros(90).long()):
        assert_matches(tensors, dtype, positive_index=positive, reduction=reduction)


@needs_extension
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("scale", [1e-30, 1e-3, 100.0, 1e4, 1e30])
@pytest.mark.parametrize("bias", [-1e4, -10.0, 0.0, 50.0])
def test_extreme_scales_and_biases(scale, bias, dtype, instruction_set):
    a, b, *terms = inputs(40, 60, 16, scale, bias)
    # The similarities are exact: a large scale would magnify their rounding errors.
    assert_matches((a.sign() / 2, b.sign() / 2, *terms), dtype)


@needs_extension
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("bias", [-80.0, -30.0, -15.0])
def test_small_losses_keep_their_digits(bias, dtype, instruction_set):
    """Every pair is classified right with a margin: the terms are e^bias, far below the rounding of 1."""
    a, b, scale, bias = inputs(40, 60, 16, 1.0, bias)
    loss, *gradients = loss_and_gradients(
        af.sigmoid_contrast, (a, b, scale, bias), dtype, positive_index=torch.full((40,), -100), backend="cpu"
    )
    truth = loss_and_gradients(literal, (a, b, scale, bias), torch.float64, positive_index=torch.full((40,), -100))
    for x, t in zip((loss, *gradients), truth):
        assert (x - t).abs().max() <= (1e-12 if dtype == torch.float64 else 2e-5) * t.abs().max()


@needs_extension
@pytest.mark.parametrize(("a_scale", "b_scale"), [(1e12, 1e12), (1e-20, 1e30), (1e30, 1e-20)])
def test_operands_of_any_magnitude(a_scale, b_scale, instruction_set):
    a, b, scale, bias = inputs(40, 60, 16)
    assert_matches((a * a_scale, b * b_scale, scale / (a_scale * b_scale), bias), torch.float32)


@needs_extension
@pytest.mark.parametrize("frozen", [(0,), (1,), (0, 1), (2, 3), (0, 1, 2), (0, 1, 2, 3)])
def test_frozen_inputs(frozen, instruction_set):
    results = []
    for fixed in ((), frozen):
        leaves = [t.requires_grad_(i not in fixed) for i, t in enumerate(inputs(90, 110, 20))]
        loss = af.sigmoid_contrast(*leaves, backend="cpu")
        if loss.requires_grad:
            loss.backward()
        results.append([loss.detach(), *(leaf.grad for leaf in leaves)])
    for i, (whole, partial) in enumerate(zip(*results), -1):
        if i in frozen:
            assert partial is None
        else:
            torch.testing.assert_close(partial, whole, rtol=1e-12, atol=1e-14)


@needs_extension
@pytest.mark.parametrize("threads", [1, 3])
def test_strides_types_and_threads(threads, instruction_set):
    a, b, scale, bias = inputs(40, 40, 10)
    plain = af.sigmoid_contrast(a, b, scale, bias)
    padded = torch.zeros(41, 23, dtype=torch.float64)
    padded[1:, 3:13] = a
    with on_threads(threads):
        assert torch.equal(plain, af.sigmoid_contrast(padded[1:, 3:13], b.T.contiguous().T, 3.0, -2))
    mixed = af.sigmoid_contrast(a.bfloat16(), b.float(), scale, bias)
    assert torch.equal(mixed, af.sigmoid_contrast(a.bfloat16().float(), b.float(), scale.float(), bias.float()))


@needs_extension
@pytest.mark.parametrize("threads", [2, 3])
def test_rows_of_a_thread_apart(threads, instruction_set):
    for dtype, options in ((torch.float32, {}), (torch.float64, {"positive_index": positives(801, 900)})):
        with on_threads(threads):
            assert_matches(inputs(801, 900, 33), dtype, **options)


@needs_extension
def test_nan_propagates(instruction_set):
    a, b, scale, bias = (t.float() for t in inputs(40, 40, 4))
    b[17, 2] = math.nan
    assert af.sigmoid_contrast(a, b, scale, bias).isnan()


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_first_and_second_derivatives(backend):
    tensors = [t.requires_grad_() for t in inputs(5, 6, 3)]

    def function(*x):
        return af.sigmoid_contrast(*x, positive_index=torch.tensor([0, 3, -100, 5, 1]), backend=backend)

    assert torch.autograd.gradcheck(function, tensors)
    assert torch.autograd.gradgradcheck(function, tensors)


@pytest.mark.parametrize(
    "transform",
    [
        lambda f: torch.func.grad(f, argnums=(0, 1, 2, 3)),
        lambda f: torch.func.jacrev(f, argnums=(0, 1, 2, 3)),
        lambda f: torch.func.grad(lambda *x: torch.func.grad(f)(*x).square().sum(), argnums=(0, 1, 2, 3)),
        lambda f: lambda a, *x: torch.vmap(lambda a: torch.func.grad(f)(a, *x))(torch.stack((a, 2 * a))),
    ],
    ids=["grad", "jacrev", "grad of grad", "vmap of grad"],
)  # fmt: skip
def test_under_torch_func(transform):
    tensors = inputs(7, 7, 5)
    found, true = (transform(f)(*tensors) for f in (af.sigmoid_contrast, lambda *x: literal_diagonal(*x)))
    torch.testing.assert_close(found, true)


def literal_diagonal(a, b, scale, bias):
    labels = 2 * torch.eye(len(a), dtype=a.dtype) - 1
    return -F.logsigmoid(labels * (scale * (a @ b.T) + bias)).sum() / len(a)


def test_opcheck():
    for needs in ((True, True), (True, False), (False, True)):
        tensors = [t.requires_grad_(n) for t, n in zip(inputs(9, 11, 4), (*needs, True, True))]
        for op in (torch.ops.adaftr_fast.sigmoid_contrast, torch.ops.adaftr_fast.sigmoid_contrast_reference):
            torch.library.opcheck(op.default, (*tensors, positives(9, 11), *needs))


def test_compiles_to_one_graph():
    results = []
    for function in (af.sigmoid_contrast, torch.compile(af.sigmoid_contrast, fullgraph=True, backend="aot_eager")):
        leaves = [t.float().requires_grad_() for t in inputs(33, 40, 7)]
        loss = function(*leaves)
        loss.backward()
        results.append([loss.detach(), *(leaf.grad for leaf in leaves)])
    for x, y in zip(*results):
        torch.testing.assert_close(x, y)


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_empty(backend):
    a, b, scale, bias = (t.requires_grad_() for t in inputs(4, 6, 3))
    nothing = {"positive_index": torch.full((4,), -100), "backend": backend}
    for loss in (af.sigmoid_contrast(a[:0], b, scale, bias, backend=backend),
                 af.sigmoid_contrast(a, b[:0], scale, bias, **nothing)):  # fmt: skip
        loss.backward()
        assert loss.item() == 0
    assert not any(x.grad.any() for x in (a, b, scale, bias))


A, B = torch.randn(4, 3), torch.randn(6, 3)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((A[0], B, 1, 0), {}, ValueError, "sigmoid_contrast: h_ctr must be a 2-dim tensor"),
        ((A, B[:, :2], 1, 0), {}, ValueError, "sigmoid_contrast: h_ctr and h_cvr must have the same width"),
        ((A, B[:2], 1, 0), {}, ValueError, r"sigmoid_contrast: h_cvr must have at least one row .*\(4\)"),
        ((A, B, "1", 0), {}, TypeError, "logit_scale must be a number or a 0-dim tensor, got str"),
        ((A, B, 1, torch.ones(2)), {}, ValueError, r"logit_bias must hold one number, got shape \(2,\)"),
        ((A, B, 1, torch.tensor(1)), {}, TypeError, "logit_bias must be floating point, got torch.int64"),
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
