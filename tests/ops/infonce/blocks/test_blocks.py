"""The loss within blocks of consecutive rows: accuracy, range, options and determinism."""

import math

import pytest
import torch

import adaftr_fast as af
from tests.ops.infonce.inputs import assert_matches, cross_entropy, inputs, loss_and_gradients
from tests.ops.marks import needs_extension, on_threads

# (B, d, k): a block that is smaller than the others, one row in it, blocks beyond those that the kernels hold.
SIZES = [(2, 3, 1), (5, 8, 2), (10, 31, 3), (97, 100, 4), (129, 33, 16), (97, 17, 33), (130, 64, 64), (150, 16, 70)]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
NAMES = ("infonce_blocks", "infonce_blocks_reference")


def block_slices(rows, block):
    return [slice(first, min(first + block, rows)) for first in range(0, rows, block)]


def op_arguments(tensors, block, scale=None, needs=(True,) * 4):
    """``needs``: the gradients of the anchors, the candidates and tau, and the statistics."""
    a = tensors[0]
    return (*tensors, torch.full((len(a),), 1 / len(a), dtype=a.dtype) if scale is None else scale, *needs, block)


def blockwise_cross_entropy(a, b, tau, block):
    """The loss in PyTorch, block by block."""
    parts = block_slices(len(a), block)
    return sum(cross_entropy(a[s], b[s], tau[s]) * len(a[s]) for s in parts) / len(a)


@needs_extension
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "d", "block"), SIZES)
def test_matches_reference(rows, d, block, dtype, instruction_set):
    assert_matches(inputs(rows, rows, d), dtype, block=block)


@pytest.mark.parametrize(("rows", "d", "block"), SIZES)
def test_reference_matches_cross_entropy(rows, d, block):
    tensors = inputs(rows, rows, d)
    found = loss_and_gradients(af.adaptive_infonce, tensors, torch.float64, backend="reference", block=block)
    true = loss_and_gradients(blockwise_cross_entropy, tensors, torch.float64, block=block)
    torch.testing.assert_close(found, true)


@needs_extension
@pytest.mark.parametrize(("rows", "block"), [(70, 4), (150, 70)])
def test_equals_a_call_for_each_block(rows, block, instruction_set):
    tensors = inputs(rows, rows, 24)
    scale = torch.linspace(-1, 2, rows, dtype=torch.float64)
    loss, *own = torch.ops.adaftr_fast.infonce_blocks(*op_arguments(tensors, block, scale))
    parts = []
    for s in block_slices(rows, block):
        a, b, tau = (x[s] for x in tensors)
        parts.append(torch.ops.adaftr_fast.infonce(a, b, tau, None, None, None, scale[s], True, True, True, True))
    total, *joined = zip(*parts)
    torch.testing.assert_close(loss, sum(total))
    for x, y in zip(own, map(torch.cat, joined)):
        torch.testing.assert_close(x, y, rtol=1e-11, atol=1e-14)


@needs_extension
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("symmetric", [False, True])
def test_options(symmetric, reduction, dtype, instruction_set):
    """Weights among which are zeros, and an upstream gradient per row."""
    rows = 67
    weight = torch.rand(rows, dtype=torch.float64) * (torch.arange(rows) % 3 > 0)
    upstream = torch.linspace(-1, 2, rows) if reduction == "none" else None
    options = {"reduction": reduction, "row_weight": weight.to(dtype), "symmetric": symmetric}
    assert_matches(inputs(rows, rows, 24), dtype, upstream=upstream, block=8, **options)


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_symmetric_averages_two_calls(backend):
    a, b, tau = inputs(30, 30, 8)
    options = {"block": 4, "backend": backend}
    found, stats = af.adaptive_infonce(a, b, (tau, tau * 2), symmetric=True, return_stats=True, **options)
    one, expected = af.adaptive_infonce(a, b, tau, return_stats=True, **options)
    two = af.adaptive_infonce(b, a, tau * 2, **options)
    torch.testing.assert_close(found, (one + two) / 2)
    torch.testing.assert_close(stats, expected)


@pytest.mark.parametrize("block", [12, 13])
@pytest.mark.parametrize("options", [{"return_stats": True}, {"symmetric": True}])
def test_a_block_of_all_rows_is_the_ordinary_call(options, block):
    tensors = inputs(12, 12, 5)
    own, plain = (af.adaptive_infonce(*tensors, **options, **more) for more in ({"block": block}, {}))
    torch.testing.assert_close(own, plain, rtol=0, atol=0)


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_a_row_alone_in_its_block_has_no_loss(backend):
    leaves = [x.requires_grad_() for x in inputs(9, 9, 5)]
    losses, stats = af.adaptive_infonce(*leaves, block=4, reduction="none", return_stats=True, backend=backend)
    assert losses[8] == 0
    assert stats.top1[8]
    assert stats.entropy[8] == 0
    assert stats.lse[8] == stats.positive_logit[8]
    losses.sum().backward()
    for leaf in leaves:
        assert (leaf.grad[8] == 0).all()
        assert (leaf.grad[:8] != 0).all()


@needs_extension
@pytest.mark.parametrize("tau", [1e-3, 1e-2, 1.0, 1e3])
def test_extreme_temperatures(tau, instruction_set):
    a, b, _ = inputs(130, 130, 32)
    assert_matches((a, b, torch.full((130,), tau, dtype=torch.float64)), torch.float32, block=16)


@needs_extension
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_large_logits(dtype, instruction_set):
    assert_matches(inputs(130, 130, 64, scale=40), dtype, block=16)


@needs_extension
@pytest.mark.parametrize("gap", [3, 10, 20, 30])
def test_accuracy_when_the_positive_probability_is_near_one(gap, instruction_set):
    rows = 48
    a = torch.eye(rows, dtype=torch.float64) * gap + inputs(rows, rows, rows, scale=0.1)[0]
    tensors = (a, torch.eye(rows, dtype=torch.float64), torch.ones(rows, dtype=torch.float64))
    assert_matches(tensors, torch.float32, block=16)


@needs_extension
@pytest.mark.parametrize("logit", [1e2, 1e4, 1e6])
def test_equal_logits_of_any_magnitude(logit, instruction_set):
    a = torch.full((64, 4), logit**0.5 / 2, requires_grad=True)
    b = a.detach().clone().requires_grad_()
    loss = af.adaptive_infonce(a, b, 1.0, block=16, reduction="sum", backend="cpu")
    loss.backward()
    assert loss.item() == pytest.approx(64 * math.log(16), rel=1e-6)
    assert max(a.grad.abs().max(), b.grad.abs().max()) <= 1e-2 * a[0, 0]


@needs_extension
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("a_scale", "b_scale"), [(1e12, 1e12), (1e-20, 1e30), (1e30, 1e-20), (1e-30, 1.0)])
def test_operands_of_any_magnitude(a_scale, b_scale, dtype, instruction_set):
    a, b, tau = inputs(70, 70, 24)
    tensors = (a * a_scale, b * b_scale, tau * (a_scale * b_scale))
    assert_matches(tensors, dtype, block=8)
    assert_matches(tensors, dtype, block=8, row_weight=torch.arange(70).float() % 3)


@needs_extension
@pytest.mark.parametrize("ratio", [1e6, 1e20, 1e30])
def test_temperatures_and_weights_of_different_magnitudes(ratio, instruction_set):
    a, b, tau = inputs(70, 70, 24)
    far = torch.where(torch.arange(70) % 2 == 0, 1.0, ratio).double()
    assert_matches((a * far[:, None], b, tau * far), torch.float32, block=8)
    assert_matches((a, b, tau), torch.float32, block=8, row_weight=(1 / far).float())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_rows_without_weight_have_no_gradient_whatever_they_hold(value, name, instruction_set):
    a, b, tau = (x.float() for x in inputs(40, 40, 8))
    b[3], a[11] = value, value
    weight = torch.ones(40)
    weight[:4], weight[11] = 0, 0
    loss, *_, d_anchors, d_candidates, d_tau = getattr(torch.ops.adaftr_fast, name)(
        *op_arguments((a, b, tau), 4, weight)
    )
    gradients = d_anchors, d_candidates, d_tau
    assert loss.isfinite()
    for g in gradients:
        assert (g[:4] == 0).all()
        assert g[4:].isfinite().all()
    assert all((g[11] == 0).all() for g in (gradients[0], gradients[2]))


@needs_extension
@pytest.mark.parametrize("value", [math.nan, math.inf, 3e38])
def test_a_row_out_of_range_leaves_other_blocks(value, instruction_set):
    a, b, tau = (x.float() for x in inputs(40, 40, 8))
    clean = torch.ops.adaftr_fast.infonce_blocks(*op_arguments((a, b, tau), 4))
    a[7] = value
    found = torch.ops.adaftr_fast.infonce_blocks(*op_arguments((a, b, tau), 4))
    assert not found[0].isfinite()
    assert not found[1][7].isfinite()
    others = torch.arange(40) // 4 != 1
    for x, y in zip(found[1:], clean[1:]):
        assert torch.equal(x[others], y[others])
    own_block = torch.tensor([4, 5, 6])  # their losses and gradients have no term of row 7's anchor
    for i in (1, 2, 6, 8):
        torch.testing.assert_close(found[i][own_block], clean[i][own_block])


@needs_extension
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("side", [0, 1])
def test_what_is_not_finite_in_the_reference_is_not_in_the_kernel(side, value, instruction_set):
    tensors = [x.abs() for x in inputs(40, 40, 8)]  # a logit of -inf leaves a row's loss finite
    tensors[side][7, 2] = value
    arguments = op_arguments(tensors, 4)
    own, true = (getattr(torch.ops.adaftr_fast, name)(*arguments) for name in NAMES)
    for x, t in zip(own, true, strict=True):
        assert not x[~t.isfinite()].isfinite().any()
        either = x.isfinite() & t.isfinite()
        torch.testing.assert_close(x[either], t[either])


@needs_extension
@pytest.mark.parametrize("need", [0, 1, 2, 4, 8, 15])
def test_only_what_is_needed(need):
    needs = [bool(need >> i & 1) for i in range(4)]
    tensors = inputs(70, 70, 20)
    whole = torch.ops.adaftr_fast.infonce_blocks(*op_arguments(tensors, 8))
    part = torch.ops.adaftr_fast.infonce_blocks(*op_arguments(tensors, 8, needs=needs))
    needed = (True,) * 4 + (needs[3],) * 2 + tuple(needs[:3])
    for x, y, need_it in zip(part, whole, needed, strict=True):
        torch.testing.assert_close(x, y if need_it else y.new_empty(0), rtol=0, atol=0)


@needs_extension
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("block", [2, 16, 64])
def test_bits_do_not_depend_on_threads_or_other_blocks(block, dtype, instruction_set):
    tensors, results = inputs(700, 700, 20), []
    for threads in (1, 2, 3):
        with on_threads(threads):
            results.append(loss_and_gradients(af.adaptive_infonce, tensors, dtype, block=block))
    assert all(torch.equal(x, y) for other in results[1:] for x, y in zip(results[0], other, strict=True))
    whole, part = (
        torch.ops.adaftr_fast.infonce_blocks(*op_arguments([x[:end].to(dtype) for x in tensors], block, scale))
        for end, scale in ((700, torch.ones(700)), (256, torch.ones(256)))
    )
    assert all(torch.equal(x[:256], y) for x, y in zip(whole[1:], part[1:], strict=True))


def test_strided_mixed_and_expanded_inputs():
    a, b, tau = inputs(40, 40, 10)
    padded = torch.zeros(41, 23, dtype=torch.float64)
    padded[1:, 3:13] = a
    plain = af.adaptive_infonce(a, b, tau[:1].expand(40), block=4)
    assert torch.equal(plain, af.adaptive_infonce(padded[1:, 3:13], b.T.contiguous().T, tau[0], block=4))
    assert torch.equal(plain, af.adaptive_infonce(a, b, tau[0].item(), block=4))
    mixed = af.adaptive_infonce(a.bfloat16(), b.float(), tau, block=4)
    assert torch.equal(mixed, af.adaptive_infonce(a.bfloat16().float(), b.float(), tau, block=4))


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("symmetric", [False, True])
def test_empty_batch(symmetric, backend):
    a, b = (torch.empty(0, 4, requires_grad=True) for _ in range(2))
    loss = af.adaptive_infonce(a, b, 0.1, block=4, symmetric=symmetric, backend=backend)
    loss.backward()
    assert loss.item() == 0
    assert a.grad.shape == b.grad.shape == (0, 4)


@pytest.mark.parametrize("name", NAMES)
def test_op_of_an_empty_batch(name):
    empty, none = torch.empty(0, 4), torch.empty(0)
    found = getattr(torch.ops.adaftr_fast, name)(empty, empty, none, none, True, True, True, True, 4)
    assert [tuple(x.shape) for x in found] == [(), *[(0,)] * 5, (0, 4), (0, 4), (0,)]
    assert found[0] == 0


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("needs", [(True,) * 4, (True, False, False, False), (False, True, True, True)])
def test_opcheck(name, needs):
    tensors = [t.requires_grad_(n) for t, n in zip(inputs(9, 9, 4), needs)]
    op = getattr(torch.ops.adaftr_fast, name).default
    torch.library.opcheck(op, op_arguments(tensors, 4, needs=needs))


@pytest.mark.parametrize("options", [{}, {"reduction": "none"}, {"symmetric": True}])
def test_compiles_to_one_graph_for_any_number_of_rows(options):
    def loss(a, b, tau):
        return af.adaptive_infonce(a, b, tau, block=4, **options)

    torch.compiler.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager", dynamic=True)
    for rows in (33, 18, 3, 0):
        tensors = [x.float() for x in inputs(rows, rows, 7)]
        results = []
        for f in (loss, compiled):
            leaves = [t.clone().requires_grad_() for t in tensors]
            value = f(*leaves)
            value.sum().backward()
            results.append([value.detach(), *(t.grad for t in leaves)])
        torch.testing.assert_close(*results)


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_first_and_second_derivatives(backend, reduction):
    leaves = [t.requires_grad_() for t in (*inputs(5, 5, 3), torch.linspace(0.5, 2, 5).double())]

    def loss(a, b, tau, weight):
        return af.adaptive_infonce(a, b, tau, row_weight=weight, reduction=reduction, block=2, backend=backend)

    assert torch.autograd.gradcheck(loss, leaves)
    assert torch.autograd.gradgradcheck(loss, leaves)


def test_derivatives_under_torch_func():
    tensors = inputs(6, 6, 4)

    def penalty(loss):
        return lambda a, b, tau: torch.func.grad(loss)(a, b, tau).square().sum()

    def own(a, b, tau):
        return af.adaptive_infonce(a, b, tau, block=4)

    def literal(a, b, tau):
        return blockwise_cross_entropy(a, b, tau, 4)

    for one, other in ((own, literal), (penalty(own), penalty(literal))):
        found, true = (torch.func.grad(loss, argnums=(0, 1, 2))(*tensors) for loss in (one, other))
        torch.testing.assert_close(found, true)
    many = torch.stack([tensors[0], tensors[0] * 2])
    found = torch.vmap(own, (0, None, None))(many, *tensors[1:])
    torch.testing.assert_close(found, torch.stack([literal(a, *tensors[1:]) for a in many]))


def test_the_module_passes_it_on():
    a, b, _ = inputs(12, 12, 5)
    contrast = af.AdaptiveInfoNCE(tau=0.3)
    assert torch.equal(contrast(a, b, block=4), af.adaptive_infonce(a, b, 0.3, block=4))


OTHERS = {
    "positive_index": torch.arange(4),
    "row_group": torch.arange(4),
    "column_bias": torch.zeros(4),
    "positive_group": torch.arange(4),
    "ignore_above": 0.0,
    "label_smoothing": 0.1,
    "margin": 0.1,
}


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("block", [2, 4])
def test_options_of_candidates_are_refused(name, block):
    a, b, tau = inputs(4, 4, 3)
    with pytest.raises(ValueError, match=f"adaptive_infonce: block does not support {name}"):
        af.adaptive_infonce(a, b, tau, block=block, **{name: OTHERS[name]})


@pytest.mark.parametrize(("block", "error"), [(0, ValueError), (-1, ValueError), (2.0, TypeError), (True, TypeError)])
def test_bad_blocks(block, error):
    with pytest.raises(error, match="adaptive_infonce: block must be"):
        af.adaptive_infonce(*inputs(4, 4, 3), block=block)


def test_more_candidates_than_rows_are_refused():
    with pytest.raises(ValueError, match="block requires N = B, got N = 5, B = 4"):
        af.adaptive_infonce(*inputs(4, 5, 3), block=2)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("position", "value", "message"),
    [
        (1, torch.zeros(5, 3), "anchors and candidates must both be"),
        (2, torch.tensor([1, 0, 1, 1.0]), r"tau must be positive and finite, got tau\[1\]"),
        (8, 0, "block must be at least 1, got 0"),
    ],
)
def test_bad_arguments_of_the_op(name, position, value, message):
    arguments = list(op_arguments([x.float() for x in inputs(4, 4, 3)], 2))
    arguments[position] = value
    with pytest.raises(RuntimeError, match=message):
        getattr(torch.ops.adaftr_fast, name)(*arguments)
