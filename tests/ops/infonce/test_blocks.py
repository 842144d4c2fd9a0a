"""The loss within blocks of consecutive rows."""

import math
from itertools import product

import pytest
import torch

import adaftr_fast as af
from tests.ops.infonce.inputs import DTYPES, assert_matches, inputs, loss_and_gradients
from tests.ops.marks import needs_extension, on_kernels, on_threads

# (B, d, k): a block that is smaller than the others, one row in it, blocks beyond those that the kernels hold.
SIZES = [(2, 3, 1), (5, 8, 2), (10, 31, 3), (97, 100, 4), (129, 33, 16), (97, 17, 33), (130, 64, 64), (150, 16, 70)]
NAMES = ("infonce_blocks", "infonce_blocks_reference")


def block_slices(rows, block):
    return [slice(first, min(first + block, rows)) for first in range(0, rows, block)]


def op_arguments(tensors, block, scale=None, needs=(True,) * 4):
    """``needs``: the gradients of the anchors, the candidates and tau, and the statistics."""
    a = tensors[0]
    return (*tensors, torch.full((len(a),), 1 / len(a), dtype=a.dtype) if scale is None else scale, *needs, block)


@needs_extension
@on_kernels("blocks", *DTYPES)
def test_matches_reference(dtype, instruction_set):
    for rows, d, block in SIZES:
        assert_matches(inputs(rows, rows, d), dtype, block=block, what=f"{(rows, d, block)}")


@needs_extension
@on_kernels("blocks", torch.float64)
def test_equals_a_call_for_each_block(dtype, instruction_set):
    for rows, block in ((70, 4), (150, 70)):
        tensors = inputs(rows, rows, 24)
        scale = torch.linspace(-1, 2, rows, dtype=dtype)
        loss, *own = torch.ops.adaftr_fast.infonce_blocks(*op_arguments(tensors, block, scale))
        parts = []
        for s in block_slices(rows, block):
            a, b, tau = (x[s] for x in tensors)
            parts.append(torch.ops.adaftr_fast.infonce(a, b, tau, None, None, None, scale[s], True, True, True, True))
        total, *joined = zip(*parts)
        torch.testing.assert_close(loss, sum(total))
        for x, y in zip(own, map(torch.cat, joined)):
            torch.testing.assert_close(x, y, rtol=1e-11, atol=1e-14)


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
@on_kernels("blocks", torch.float32)
def test_temperatures_and_weights_of_different_magnitudes(dtype, instruction_set):
    for ratio in (1e6, 1e20, 1e30):
        a, b, tau = inputs(70, 70, 24)
        far = torch.where(torch.arange(70) % 2 == 0, 1.0, ratio).double()
        assert_matches((a * far[:, None], b, tau * far), dtype, block=8, what=f"{ratio}")
        assert_matches((a, b, tau), dtype, block=8, row_weight=1 / far, what=f"{ratio}")
        assert_matches((a / ratio, b, tau / ratio), dtype, block=8, what=f"{ratio}")


@pytest.mark.parametrize("name", NAMES)
@on_kernels("blocks", torch.float32)
def test_rows_without_weight_have_no_gradient_whatever_they_hold(name, dtype, instruction_set):
    for value in (math.nan, math.inf):
        a, b, tau = (x.to(dtype) for x in inputs(40, 40, 8))
        b[3], a[11] = value, value
        weight = torch.ones(40)
        weight[:4], weight[11] = 0, 0
        arguments = op_arguments((a, b, tau), 4, weight)
        loss, *_, d_anchors, d_candidates, d_tau = getattr(torch.ops.adaftr_fast, name)(*arguments)
        assert loss.isfinite()
        for g in (d_anchors, d_candidates, d_tau):
            assert (g[:4] == 0).all()
            assert g[4:].isfinite().all()
        assert (d_anchors[11] == 0).all()
        assert d_tau[11] == 0


@needs_extension
@on_kernels("blocks", torch.float32)
def test_a_row_out_of_range_leaves_other_blocks(dtype, instruction_set):
    for value in (math.nan, math.inf, 3e38):
        a, b, tau = (x.to(dtype) for x in inputs(40, 40, 8))
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
@on_kernels("blocks", torch.float64)
def test_what_is_not_finite_in_the_reference_is_not_in_the_kernel(dtype, instruction_set):
    for value, side in product((math.nan, math.inf, -math.inf), (0, 1)):
        tensors = [x.abs() for x in inputs(40, 40, 8)]  # a logit of -inf leaves a row's loss finite
        tensors[side][7, 2] = value
        arguments = op_arguments(tensors, 4)
        own, true = (getattr(torch.ops.adaftr_fast, name)(*arguments) for name in NAMES)
        for x, t in zip(own, true, strict=True):
            assert not x[~t.isfinite()].isfinite().any()
            either = x.isfinite() & t.isfinite()
            torch.testing.assert_close(x[either], t[either])


@needs_extension
def test_only_what_is_needed():
    tensors = inputs(70, 70, 20)
    whole = torch.ops.adaftr_fast.infonce_blocks(*op_arguments(tensors, 8))
    for needs in product((False, True), repeat=4):
        part = torch.ops.adaftr_fast.infonce_blocks(*op_arguments(tensors, 8, needs=needs))
        needed = (True,) * 4 + (needs[3],) * 2 + needs[:3]
        for x, y, need_it in zip(part, whole, needed, strict=True):
            torch.testing.assert_close(x, y if need_it else y.new_empty(0), rtol=0, atol=0)


@needs_extension
@on_kernels("blocks", torch.float64, torch.float32)
def test_bits_do_not_depend_on_threads_or_other_blocks(dtype, instruction_set):
    tensors = inputs(700, 700, 20)
    for block in (2, 16, 64):
        results = []
        for threads in (1, 2, 3):
            with on_threads(threads):
                results.append(loss_and_gradients(af.adaptive_infonce, tensors, dtype, block=block))
        assert all(torch.equal(x, y) for other in results[1:] for x, y in zip(results[0], other, strict=True))
        whole, part = (
            torch.ops.adaftr_fast.infonce_blocks(*op_arguments([x[:end].to(dtype) for x in tensors], block, scale))
            for end, scale in ((700, torch.ones(700)), (256, torch.ones(256)))
        )
        assert all(torch.equal(x[:256], y) for x, y in zip(whole[1:], part[1:], strict=True))


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


@pytest.mark.parametrize(("name", "block"), zip(OTHERS, [2, 4] * 4))
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
