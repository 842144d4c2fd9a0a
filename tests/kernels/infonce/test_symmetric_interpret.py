"""The kernels of the symmetric loss under the interpreter, against two directions of the float64 reference."""

import itertools
import math

import pytest
import torch

from tests.ops.infonce.inputs import DTYPES
from tests.tolerances import assert_as_accurate

pytest.importorskip("triton")
config = pytest.importorskip("adaftr_fast.kernels.infonce.config")
agreement = pytest.importorskip("tests.kernels.infonce.symmetric_agreement")
assert_matches, evaluate, groups, inputs = (
    getattr(agreement, name) for name in ("assert_matches", "evaluate", "groups", "inputs")
)
pytestmark = pytest.mark.skipif(not config.INTERPRETED, reason="needs TRITON_INTERPRET=1")

TEMPERATURES = [None, 0.3]  # one for each row and each column; one for all, which takes a loop of its own


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_matches_two_directions(dtype):
    """In the types in which adaptive_infonce makes two calls."""
    for (rows, d), tau in itertools.product(((2, 8), (63, 31)), TEMPERATURES):
        assert_matches(inputs(rows, d, tau), dtype, groups(rows))


def test_groups_of_one_side_mask_nothing():
    tensors = inputs(70, 16)
    for masks in ((groups(70)[0], None), (None, groups(70)[1])):
        for x, y in zip(evaluate(tensors, torch.float32, masks), evaluate(tensors, torch.float32)):
            assert torch.equal(x, y)


def test_groups_that_mask_every_negative():
    same = torch.zeros(70, dtype=torch.int64)
    for x in evaluate(inputs(70, 16), torch.bfloat16, (same, same)):
        assert not x.any()


@pytest.mark.parametrize(("rows", "d"), [(90, 64), (70, 200)])
def test_tf32_block_sizes(rows, d):
    """The interpreter multiplies in full float32, so this tests the block sizes only."""
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        for tau in TEMPERATURES:
            assert_matches(inputs(rows, d, tau), torch.float32)
        assert_matches(inputs(rows, d), torch.float32, groups(rows))
    finally:
        torch.set_float32_matmul_precision(before)


def test_unneeded_gradients_are_empty():
    for needs in itertools.product([False, True], repeat=4):
        assert_matches(inputs(70, 16, 0.3), torch.bfloat16, needs=needs)
        assert_matches(inputs(20, 16), torch.float32, needs=needs)


def test_temperatures_of_the_two_sides_far_apart():
    a, b, tau_row, tau_column, scale = inputs(50, 32)
    assert_matches((a, b, tau_row * 1e-2, tau_column * 1e2, scale), torch.float32)


def test_logits_of_ten_thousand():
    a, b, *_, scale = inputs(70, 16)
    tau = torch.full((70,), 0.1, dtype=torch.float64)
    for sign in (1, -1):  # the positive far above, or far below, all others
        assert_matches((a * 50, b + sign * a * 20, tau, tau, scale), torch.float32)


@pytest.mark.parametrize("tau", TEMPERATURES)
def test_negatives_far_above_the_positive(tau):
    for gap in (20.0, 50.0, 70.0, 1000.0):
        a, b, tau_row, tau_column, scale = inputs(150, 16, tau)
        a *= 0.01
        a[:, 0] = gap * 0.3
        b[:, 1:] *= 0.1
        b[:, 0] = torch.linspace(0, 1, 150, dtype=torch.float64)
        assert_matches((a, b, tau_row, tau_column, scale), torch.bfloat16)


def test_operands_whose_squares_underflow():
    a, b, tau_row, _, scale = inputs(140, 16)
    for tau in (tau_row, torch.full_like(tau_row, 0.3)):
        both = tau * 1e-6
        assert_matches((a * 1e-24, b * 1e18, both, both, scale), torch.bfloat16)


@pytest.mark.parametrize("tau", TEMPERATURES)
def test_weights_of_any_sign_and_size(tau):
    *tensors, scale = inputs(150, 16, tau)
    negative, zero = scale.clone(), scale.clone()
    negative[::7] *= -1
    zero[::7] = 0
    for each in (negative, zero, 0 * scale, 1e-25 * scale, 1e25 * scale):
        assert_matches((*tensors, each), torch.bfloat16)


@pytest.mark.parametrize("tau", TEMPERATURES)
def test_float16_keeps_small_probabilities_and_large_weights(tau):
    a, b, *taus, _ = inputs(600, 16, tau)
    assert_matches((a * 0.01, b, *taus, torch.logspace(-6, 0, 600, dtype=torch.float64)), torch.float16)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_equals_two_calls_of_the_one_direction(dtype):
    """The kernels of one direction, on the same rounded inputs, with half the weight for each direction."""
    from adaftr_fast.kernels.infonce import infonce

    acc = torch.float64 if dtype == torch.float64 else torch.float32
    a, b, tau_row, tau_column, scale = (x.to(dtype if i < 2 else acc) for i, x in enumerate(inputs(130, 24)))
    masks = groups(130)
    needs = (True, True, True, False)
    loss, row_loss, *_, d_a, d_b, d_row = infonce(a, b, tau_row, None, *masks, scale / 2, *needs)
    back, column_loss, *_, d_b2, d_a2, d_column = infonce(b, a, tau_column, None, *masks[::-1], scale / 2, *needs)
    calls = (loss + back, (row_loss + column_loss) / 2, d_a + d_a2, d_b + d_b2, d_row, d_column)
    truth = agreement.two_directions(*(x.double() for x in (a, b, tau_row, tau_column, scale)), *masks)
    own = evaluate((a, b, tau_row, tau_column, scale), dtype, masks)
    for name, x, theirs, t in zip(agreement.NAMES, own, calls, truth):
        assert_as_accurate(x, t, theirs, dtype, name)


def test_bad_temperature_gives_nan_in_its_row():
    for side, tau in itertools.product((2, 3), (0.0, -0.1, math.nan, math.inf)):
        changed = [x.clone() for x in inputs(10, 4, 0.3)]
        changed[side][4] = tau
        loss, row_loss, d_a, d_b, *_ = evaluate(changed, torch.bfloat16)
        assert torch.equal(row_loss.isnan(), torch.arange(10) == 4)
        assert loss.isnan()
        assert d_a[4].isnan().all()
        assert d_b[4].isnan().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_strides_and_offsets(dtype):
    a, b, tau_row, tau_column, scale = (x.to(dtype if i < 2 else torch.float32) for i, x in enumerate(inputs(70, 24)))
    masks = groups(70)
    wide = torch.randn(71, 49).to(dtype)
    wide[1:, 1:25] = b
    spread = [torch.stack((x, x), 1)[:, 1] for x in (tau_row, tau_column, *masks, scale)]
    found = agreement.infonce_symmetric(a.T.contiguous().T, wide[1:, 1:25], *spread, True, True, True, True)
    straight = agreement.infonce_symmetric(a, b, tau_row, tau_column, *masks, scale, True, True, True, True)
    assert all(torch.equal(x, y) for x, y in zip(found, straight))


def test_expanded_temperature_and_weight():
    a, b, *_ = (x.bfloat16() for x in inputs(150, 24))
    tau, scale = torch.tensor(0.3), torch.tensor(1 / 150)
    own = agreement.infonce_symmetric(
        a, b, tau.expand(150), tau.expand(150), None, None, scale.expand(150), True, True, True, True
    )
    full = [torch.full((150,), x.item()) for x in (tau, tau, scale)]
    found = evaluate((a, b, *full), torch.bfloat16)
    assert all(torch.equal(x, y) for x, y in zip(own, found))


@pytest.mark.parametrize("dtype", DTYPES)
def test_nothing_to_do(dtype):
    for x, shape in zip(evaluate(inputs(0, 4), dtype), ((), (0,), (0, 4), (0, 4), (0,), (0,))):
        assert x.shape == shape
        assert not x.any()


def test_what_two_calls_serve():
    for rows, d, dtype, serves in (
        (2, 256, torch.bfloat16, True),
        (131_072, 17, torch.float16, True),
        (131_073, 17, torch.float16, False),
        (2, 257, torch.bfloat16, False),
        (2, 64, torch.float32, False),
        (2, 64, torch.float64, False),
    ):
        anchors = torch.empty(rows, d, dtype=dtype, device="meta")
        for tau in (torch.empty(rows, device="meta"), torch.empty((), device="meta").expand(rows)):
            assert agreement.serves_symmetric(anchors, tau, tau, None) == serves


def test_other_shapes_are_refused():
    a, b, *rest = inputs(5, 4)
    with pytest.raises(ValueError, match=r"candidates must have anchors' shape \(5, 4\), got \(4, 4\)"):
        evaluate((a, b[:4], *rest), torch.float32)


@pytest.mark.parametrize("tau", TEMPERATURES)
@pytest.mark.parametrize(("needs", "products"), [((True,) * 4, 5), ((True, False, True, False), 3), ((False,) * 4, 1)])
def test_number_of_products(needs, products, tau, monkeypatch):
    """The multiply-adds of all tl.dot, as a multiple of B x B x d; the positives' are those of 64 columns."""
    from triton.runtime.interpreter import InterpreterBuilder

    done = []
    dot = InterpreterBuilder.create_dot

    def counted(self, a, b, *rest):
        done.append(a.data.shape[0] * a.data.shape[1] * b.data.shape[1])
        return dot(self, a, b, *rest)

    monkeypatch.setattr(InterpreterBuilder, "create_dot", counted)
    rows, d = 256, 64  # whole blocks
    evaluate(inputs(rows, d, tau), torch.bfloat16, needs=needs)
    assert sum(done) == (products + 64 / rows) * rows * rows * d
