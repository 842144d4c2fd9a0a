"""Both directions by one op, which forms the similarities once: accuracy, range, options and determinism."""

import math

import pytest
import torch

import adaftr_fast as af
from adaftr_fast.ops.infonce.op import SYMMETRIC, two_sweeps
from tests.ops.infonce.inputs import inputs
from tests.ops.marks import needs_extension
from tests.tolerances import assert_as_accurate

SIZES = [(1, 1), (2, 31), (5, 8), (63, 64), (97, 100), (257, 33), (600, 130), (1030, 16)]
NAMES = ("loss", "d h_ctr", "d h_cvr", "d tau", "d tau of the columns")


def drawn(rows, d, scale=1.0, seed=0):
    """Returns h_ctr, h_cvr and the temperatures of rows and columns; float64."""
    a, b, tau = inputs(rows, rows, d, scale, seed)
    return a, b, tau, tau.flip(0) * 2


def loss_and_gradients(tensors, dtype, upstream=None, **options):
    held = [t.to(dtype if i < 2 or dtype == torch.float64 else torch.float32) for i, t in enumerate(tensors)]
    h_ctr, h_cvr, *tau = [t.detach().requires_grad_() for t in held]
    loss = af.adaptive_infonce(h_ctr, h_cvr, tuple(tau), symmetric=True, **options)
    loss.backward(upstream)
    return [loss.detach(), *(t.grad for t in (h_ctr, h_cvr, *tau))]


def assert_matches(tensors, dtype, **options):
    rounded = [t.to(dtype).double() if i < 2 else t.to(torch.float32).double() for i, t in enumerate(tensors)]
    truth = loss_and_gradients(rounded, torch.float64, backend="reference", **options)
    own = loss_and_gradients(rounded, dtype, backend="cpu", **options)
    theirs = loss_and_gradients(rounded, dtype, backend="reference", **options)
    for name, x, t, p in zip(NAMES, own, truth, theirs):
        assert_as_accurate(x, t, p, dtype, name)


def op_arguments(tensors, scale=None, groups=(None, None), needs=(True,) * 4):
    a = tensors[0]
    return (*tensors, *groups, torch.full((len(a),), 1 / len(a), dtype=a.dtype) if scale is None else scale, *needs)


@needs_extension
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("rows", "d"), SIZES)
def test_matches_reference(rows, d, dtype, instruction_set):
    assert_matches(drawn(rows, d), dtype)


@needs_extension
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("grouped", [False, True])
def test_options(reduction, grouped, dtype, instruction_set):
    """Groups, weights among which are zeros, and an upstream gradient per row."""
    rows = 131
    weight = torch.rand(rows, dtype=torch.float64) * (torch.arange(rows) % 3 > 0)
    options = {"reduction": reduction, "row_weight": weight.to(dtype)}
    if grouped:
        options |= {"row_group": torch.arange(rows) % 5, "column_group": torch.arange(rows) * 7 % 11}
    upstream = torch.linspace(-1, 2, rows) if reduction == "none" else None
    assert_matches(drawn(rows, 24), dtype, upstream=upstream, **options)


@needs_extension
@pytest.mark.parametrize("tau", [1e-3, 1e-2, 1.0, 1e3])
@pytest.mark.parametrize("tau_column", [1e-2, 1e2])
def test_extreme_temperatures(tau, tau_column, instruction_set):
    a, b, *_ = drawn(130, 32)
    taus = (torch.full((130,), x, dtype=torch.float64) for x in (tau, tau_column))
    assert_matches((a, b, *taus), torch.float32)


@needs_extension
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_large_logits(dtype, instruction_set):
    """The maxima of rows and columns differ by hundreds between blocks, and positives lie far below them."""
    assert_matches(drawn(1100, 64, scale=4), dtype)


@needs_extension
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("side", [0, 1])
def test_the_last_row_or_column_dominates(side, dtype, instruction_set):
    """What was summed before underflows to 0."""
    tensors = list(drawn(700, 16))
    tensors[side][-1] = 400
    tensors[1 - side] += 1
    assert_matches(tensors, dtype)


@needs_extension
@pytest.mark.parametrize("gap", [3, 10, 20, 30])
def test_accuracy_when_the_positive_probability_is_near_one(gap, instruction_set):
    rows = 96
    a = torch.eye(rows, dtype=torch.float64) * gap + inputs(rows, rows, rows, scale=0.1)[0]
    one = torch.ones(rows, dtype=torch.float64)
    assert_matches((a, torch.eye(rows, dtype=torch.float64), one, one * 1.1), torch.float32)


@needs_extension
@pytest.mark.parametrize(("a_scale", "b_scale"), [(1e12, 1e12), (1e-20, 1e30), (1e30, 1e-20)])
def test_operands_of_any_magnitude(a_scale, b_scale, instruction_set):
    a, b, tau, tau_column = drawn(300, 24)
    product = a_scale * b_scale
    assert_matches((a * a_scale, b * b_scale, tau * product, tau_column * product), torch.float32)


@needs_extension
@pytest.mark.parametrize("ratio", [1e6, 1e20, 1e30])
def test_temperatures_and_weights_of_different_magnitudes(ratio, instruction_set):
    """From 2^40 on, one factor would not keep all weights of the gradients in the range of float32."""
    a, b, tau, tau_column = drawn(130, 24)
    far = torch.where(torch.arange(130) % 2 == 0, 1.0, ratio).double()
    assert_matches((a * far[:, None], b, tau * far, tau_column * ratio), torch.float32)
    assert_matches((a, b, tau, tau_column), torch.float32, row_weight=(1 / far).float())


@needs_extension
@pytest.mark.parametrize("logit", [1e2, 1e4, 1e6, 1e8])
def test_equal_logits_of_any_magnitude(logit, instruction_set):
    a = torch.full((64, 4), logit**0.5 / 2, requires_grad=True)
    b = a.detach().clone().requires_grad_()
    loss = af.adaptive_infonce(a, b, 1.0, symmetric=True, reduction="sum", backend="cpu")
    loss.backward()
    assert loss.item() == pytest.approx(64 * math.log(64), rel=1e-6)
    assert max(a.grad.abs().max(), b.grad.abs().max()) <= 1e-2 * a[0, 0]


@needs_extension
def test_equals_two_calls_of_one_direction(instruction_set):
    tensors = drawn(300, 48)
    groups = (torch.arange(300) // 2, torch.arange(300) // 3)
    arguments = op_arguments(tensors, groups=groups)
    own = torch.ops.adaftr_fast.infonce_symmetric(*arguments)
    two = two_sweeps(torch.ops.adaftr_fast.infonce, **SYMMETRIC.named(arguments, {}))
    for x, y in zip(own, two):
        torch.testing.assert_close(x, y, rtol=1e-11, atol=1e-15)


@needs_extension
@pytest.mark.parametrize("need", range(16))
def test_only_the_gradients_that_are_needed(need, instruction_set):
    needs = [bool(need >> i & 1) for i in range(4)]
    tensors = drawn(70, 20)
    whole = torch.ops.adaftr_fast.infonce_symmetric(*op_arguments(tensors))
    part = torch.ops.adaftr_fast.infonce_symmetric(*op_arguments(tensors, needs=needs))
    for x, y, needed in zip(part, whole, [True, True, *needs]):
        torch.testing.assert_close(x, y if needed else y.new_empty(0), rtol=0, atol=0)


@needs_extension
@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_rows_without_weight_have_no_loss_and_no_gradient_even_if_nan(reduction, backend, instruction_set):
    a, b, *taus = (x.float() for x in drawn(40, 8))
    a[3] = math.nan
    upstream = torch.ones(40) if reduction == "none" else None
    given = {"row_weight": torch.zeros(40), "reduction": reduction, "backend": backend}
    results = loss_and_gradients((a, b, *taus), torch.float32, upstream, **given)
    assert all((x == 0).all() for x in results)


@needs_extension
@pytest.mark.parametrize("through", ["score", "tau"])
def test_an_overflowing_row_leaves_the_gradients_of_others(through, instruction_set):
    """A score out of range is one of its column as well, so the losses in that column are lost too."""
    a, b, *taus = (x.float() for x in drawn(40, 8))
    if through == "score":
        a[7] = 3e38
    else:
        a[7], taus[0][7] = a[7] * 1e30, 1e-9
    loss = af.adaptive_infonce(a, b, tuple(taus), symmetric=True, reduction="none", backend="cpu")
    one = af.adaptive_infonce(a, b, taus[0], reduction="none", backend="cpu")
    two = af.adaptive_infonce(b, a, taus[1], reduction="none", backend="cpu")
    assert not loss[7].isfinite()
    torch.testing.assert_close(loss, (one + two) / 2, equal_nan=True)


@needs_extension
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_bitwise_equal_across_runs(threads, dtype, instruction_set):
    tensors, before = drawn(700, 48), torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        first, second = (loss_and_gradients(tensors, dtype, backend="cpu") for _ in range(2))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(x, y) for x, y in zip(first, second))


@needs_extension
@pytest.mark.parametrize("threads", [2, 3, 64])
def test_any_number_of_threads(threads, instruction_set):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        assert_matches(drawn(300, 20), torch.float32)
    finally:
        torch.set_num_threads(before)


@needs_extension
def test_strided_offset_and_expanded_inputs(instruction_set):
    a, b, tau, _ = drawn(40, 10)
    padded = torch.zeros(41, 23, dtype=torch.float64)
    padded[1:, 3:13] = a
    options = {"symmetric": True, "backend": "cpu"}
    plain = af.adaptive_infonce(a, b, tau[:1].expand(40), **options)
    assert torch.equal(plain, af.adaptive_infonce(padded[1:, 3:13], b.T.contiguous().T, tau[0], **options))
    assert torch.equal(plain, af.adaptive_infonce(a, b, tau[0].item(), **options))


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_empty_batch(backend):
    a, b = (torch.empty(0, 4, requires_grad=True) for _ in range(2))
    loss = af.adaptive_infonce(a, b, 0.1, symmetric=True, backend=backend)
    loss.backward()
    assert loss.item() == 0
    assert a.grad.shape == b.grad.shape == (0, 4)


@pytest.mark.parametrize("reference", [False, True])
@pytest.mark.parametrize("needs", [(True,) * 4, (True, False, False, False), (False, True, True, False)])
def test_opcheck(reference, needs):
    tensors = [t.requires_grad_(n) for t, n in zip(drawn(9, 4), needs)]
    name = "infonce_symmetric_reference" if reference else "infonce_symmetric"
    torch.library.opcheck(getattr(torch.ops.adaftr_fast, name).default, op_arguments(tensors, needs=needs))


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_compiles_to_one_graph(reduction):
    def loss(a, b, tau, tau_column):
        return af.adaptive_infonce(a, b, (tau, tau_column), symmetric=True, reduction=reduction)

    results = []
    for f in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        leaves = [t.float().requires_grad_() for t in drawn(33, 7)]
        value = f(*leaves)
        value.sum().backward()
        results.append([value.detach(), *(t.grad for t in leaves)])
    torch.testing.assert_close(*results)


def test_second_derivatives_under_torch_func():
    tensors = drawn(6, 4)

    def penalty(loss):
        return lambda a, b: torch.func.grad(loss)(a, b).square().sum()

    def fused(a, b):
        return af.adaptive_infonce(a, b, tensors[2:], symmetric=True)

    def literal(a, b):
        z, own = a @ b.T, torch.arange(6)
        losses = (
            torch.nn.functional.cross_entropy(x, own) for x in (z / tensors[2][:, None], z.T / tensors[3][:, None])
        )
        return sum(losses) / 2

    found, true = (torch.func.grad(penalty(loss), argnums=(0, 1))(*tensors[:2]) for loss in (fused, literal))
    torch.testing.assert_close(found, true)


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_derivatives_of_weights_and_both_temperatures(backend, reduction):
    leaves = [t.requires_grad_() for t in (*drawn(5, 3), torch.linspace(0.5, 2, 5).double())]

    def loss(a, b, tau, tau_column, weight):
        options = {"row_weight": weight, "reduction": reduction, "backend": backend}
        return af.adaptive_infonce(a, b, (tau, tau_column), symmetric=True, **options)

    assert torch.autograd.gradcheck(loss, leaves)
    assert torch.autograd.gradgradcheck(loss, leaves)


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_bad_temperature_names_the_side_and_the_row(backend):
    a, b, tau, bad = drawn(4, 3)
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
    arguments = list(op_arguments(drawn(3, 3)))
    arguments[position] = value
    with pytest.raises(RuntimeError, match=message):
        torch.ops.adaftr_fast.infonce_symmetric(*arguments)
