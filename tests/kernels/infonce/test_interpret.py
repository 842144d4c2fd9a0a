"""The Triton kernels of one direction under the interpreter; no GPU needed."""

import math
from itertools import product

import pytest
import torch

import adaftr_fast as af
from tests.kernels.infonce.agreement import assert_matches, evaluate
from tests.ops.infonce.inputs import DTYPES, inputs, masks

pytest.importorskip("triton")
config = pytest.importorskip("adaftr_fast.kernels.infonce.config")
pytestmark = pytest.mark.skipif(not config.INTERPRETED, reason="needs TRITON_INTERPRET=1")


@pytest.mark.parametrize("explicit", ["positive_index", "groups"])
def test_positives_or_groups_alone(explicit):
    options = {k: v for k, v in masks(90, 140).items() if (k == "positive_index") == (explicit == "positive_index")}
    assert_matches(inputs(90, 140, 24), torch.float32, **options)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_tie_with_the_positive_is_not_ignored(dtype):
    a, b, tau = (x.to(dtype) for x in inputs(40, 40, 80))
    loss = af.adaptive_infonce(a, torch.cat((b, b)), tau.float(), ignore_above=0.0, reduction="none", backend="triton")
    assert (loss > math.log(2) - 1e-6).all(), "the copy of the positive has its logit"


def test_tf32_block_sizes():
    """The interpreter multiplies in full float32, so this tests the block sizes only."""
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        assert_matches(inputs(70, 150, 64), torch.float32)
        assert_matches(inputs(70, 150, 200), torch.float32, **masks(70, 150))
    finally:
        torch.set_float32_matmul_precision(before)


def test_unneeded_outputs_are_empty():
    a, b, tau = (t.float() for t in inputs(9, 12, 4))
    tensors = (a, b, tau, None, None, None, torch.ones(9))
    for needs in product((False, True), repeat=4):
        own = torch.ops.adaftr_fast.infonce_triton(*tensors, *needs)
        theirs = torch.ops.adaftr_fast.infonce_reference(*tensors, *needs)
        for x, t in zip(own, theirs):
            assert x.shape == t.shape
            assert x.dtype == t.dtype
            torch.testing.assert_close(x, t, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("gap", "weight"), [(55, 1.0), (55, 1e-30), (70, 1.0), (1000, 1.0)])
def test_negatives_far_above_the_positive(gap, weight):
    """The maximum of a row stays at the positive's logit while the gap is below 60; l and acc rise to e^gap."""
    a, b, tau = inputs(130, 200, 16)
    a *= 0.01  # the product of two norms is then hardly above the logit
    a[:, 0], b[:, 0] = gap * tau, torch.linspace(0.5, 1, 200, dtype=torch.float64)
    b[:, 1:] *= 0.1
    b[:130, 0] = 0
    weights = {"row_weight": torch.full((130,), weight), "reduction": "sum"}
    assert_matches((a, b, tau), torch.bfloat16, **weights)
    assert_matches((a, b, tau), torch.bfloat16, frozen=(0,), **weights)  # d_tau by sum_pz


def test_some_rows_of_a_block_have_large_logits():
    a, b, tau = inputs(150, 200, 16)
    a[::40] *= 1000
    assert_matches((a, b, tau), torch.bfloat16)


def test_operands_whose_squares_underflow():
    a, b, tau = inputs(130, 200, 16)
    b[:130] = 0  # the positives' logits are 0, others hundreds
    assert_matches((a * 1e18, b * 1e-24, tau * 1e-8), torch.bfloat16)
    assert_matches((a * 1e-24, b * 1e18, tau * 1e-8), torch.bfloat16)


@pytest.mark.parametrize("kind", ["some negative", "some zero", "all zero", "tiny", "large"])
def test_weights_of_any_sign_and_size(kind):
    """The column sweep takes positive weights, and those of zero, into its exponents."""
    weight = torch.linspace(0.1, 2, 150)
    if kind == "some negative":
        weight[::7] *= -1
    if kind == "some zero":
        weight[::7] = 0
    weight *= {"all zero": 0.0, "tiny": 1e-25, "large": 1e25}.get(kind, 1.0)
    assert_matches(inputs(150, 200, 16), torch.bfloat16, row_weight=weight, reduction="sum")


@pytest.mark.parametrize(
    ("blocks", "capability", "d", "expected"),
    [
        ("", 90, 40, (128, 128, 1)),
        ("", 90, 100, (128, 64, 1)),
        ("wide", 90, 40, (128, 128, 1)),
        ("wide", 90, 100, (128, 128, 1)),
        ("wide", 80, 40, (128, 64, 1)),
        ("narrow", 90, 40, (64, 64, 3)),
        ("narrow", 90, 100, (64, 64, 2)),
        ("narrow", 80, 40, (64, 32, 3)),
        ("narrow", 80, 100, (128, 64, 1)),
    ],
)
def test_blocks_of_the_environment_variable(blocks, capability, d, expected, monkeypatch):
    from adaftr_fast.kernels.infonce import operands

    monkeypatch.setenv(config.BLOCKS_VARIABLE, blocks)
    monkeypatch.setattr(operands, "ASSUMED_CAPABILITY", capability)
    chosen = config.choose_tiling("half", -(-d // 16) * 16, capability, blocks).row_sweep
    assert (chosen.block_m, chosen.block_n, chosen.programs) == expected
    options = masks(150, 450) if d == 100 else {}
    assert_matches(inputs(150, 450, d), torch.bfloat16, **options)


def test_splits_fill_the_programs_that_a_multiprocessor_holds():
    from adaftr_fast.kernels.infonce.operands import launch_options

    chosen = config.choose_tiling("half", 64, 90).row_sweep._replace(block_m=64)
    of_operands = "half", torch.bfloat16, 64, (64 * 132, 8192), False, True, 0, 132
    splits = [launch_options(chosen._replace(programs=n), *of_operands)[0][1] for n in (1, 2, 3)]
    assert splits == [1, 2, 3]


def test_an_unknown_choice_of_blocks_is_refused(monkeypatch):
    monkeypatch.setenv(config.BLOCKS_VARIABLE, "tall")
    with pytest.raises(ValueError, match=r"ADAFTR_FAST_INFONCE_BLOCKS must be one of \('wide', 'narrow'\), got 'tall'"):
        assert_matches(inputs(20, 30, 8), torch.bfloat16)


@pytest.mark.parametrize("sign", [1, -1])
def test_logits_of_ten_thousand(sign):
    a, b, _ = inputs(64, 64, 16)
    b += sign * a * 10  # the positive far above, or far below, all others
    assert_matches((a * 100, b, torch.full((64,), 0.1, dtype=torch.float64)), torch.float32)


def test_operands_of_any_magnitude_without_d_anchors():
    a, b, tau = inputs(40, 70, 16)
    for a_scale, b_scale in ((1e12, 1e12), (1e-20, 1e30), (1e30, 1e-20)):
        tensors = (a * a_scale, b * b_scale, tau * (a_scale * b_scale))
        assert_matches(tensors, torch.bfloat16, frozen=(0,), **masks(40, 70))


@pytest.mark.parametrize(("logit", "dtype"), [(1e8, torch.float32), (1e8, torch.bfloat16), (1e7, torch.float16)])
def test_the_largest_logits_of_the_documented_range(logit, dtype):
    a, b, _ = inputs(40, 70, 16)
    a *= logit / (a @ b.T).abs().max()
    share = (b.abs().max() / a.abs().max()) ** 0.5  # operands of one magnitude: float16 ends at 65504
    assert_matches((a * share, b / share, torch.ones(40, dtype=torch.float64)), dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_over_tau_below_float32s_normal_numbers(dtype):
    a, b, tau = inputs(40, 70, 16)
    tensors = (a * 1e14, b * 1e14, tau * 1e28)
    weights = {"row_weight": torch.full((40,), 1e-12), "reduction": "sum"}
    assert_matches(tensors, dtype, **weights)


@pytest.mark.parametrize("through", ["score", "tau"])
def test_an_overflowing_row_leaves_the_others(through):
    a, b, tau = (x.float() for x in inputs(40, 70, 16))
    if through == "score":
        a[7] = 3e38
    else:
        a[7], tau[7] = a[7] * 1e30, 1e-20
    results = []
    for backend in ("triton", "reference"):
        leaf = a.clone().requires_grad_()
        rows = af.adaptive_infonce(leaf, b, tau, reduction="none", backend=backend)
        rows.sum().backward()
        results.append((rows.detach(), leaf.grad))
    others = torch.arange(40) != 7
    for own, theirs in zip(*results):
        torch.testing.assert_close(own[others], theirs[others], rtol=1e-4, atol=1e-4)
        assert not own[7].isfinite().all()
        assert not theirs[7].isfinite().all()


def test_float16_keeps_small_probabilities_and_large_weights():
    """A uniform p of 1/3000, times weights from 1e-6 to 1, loses digits in float16 unless MAX_OFFSET raises it."""
    a, b, tau = inputs(40, 3000, 16, scale=0.01)
    assert_matches((a, b, tau), torch.float16, row_weight=torch.logspace(-6, 0, 40), reduction="sum")


def test_a_tie_is_no_hit():
    a = torch.ones(70, 9)
    loss, stats = af.adaptive_infonce(a, a, 0.3, return_stats=True, backend="triton")
    assert not stats.top1.any()
    torch.testing.assert_close(loss.item(), math.log(70), rtol=1e-6, atol=0)


def test_groups_that_mask_every_negative():
    loss, *gradients, _, _, top1, entropy = evaluate(
        inputs(20, 20, 8), torch.float32, row_group=torch.zeros(20, dtype=torch.int64)
    )
    assert loss == 0
    assert top1.all()
    assert all((x == 0).all() for x in (*gradients, entropy))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_ignored_row_leaks_nothing(dtype):
    a, b, tau = inputs(40, 50, 8)
    positive = torch.arange(40)
    positive[7] = positive[33] = -100
    clean = evaluate((a, b, tau), dtype, positive_index=positive)
    a[7] = math.nan
    a[33] = math.inf
    tau[33] = math.nan
    dirty = evaluate((a, b, tau), dtype, positive_index=positive)
    assert all(torch.equal(x, y) for x, y in zip(clean, dirty, strict=True))


def test_all_rows_ignored():
    a, b, tau = inputs(20, 30, 8)
    b[3] = math.nan
    positive = torch.full((20,), -100)
    assert not any(x.any() for x in evaluate((a, b, tau), torch.float32, positive_index=positive))


def test_bad_temperature_gives_nan_in_its_row():
    a, b, temperature = (t.float() for t in inputs(10, 10, 4))
    for tau in (0.0, -0.1, math.nan, math.inf):
        temperature[4] = tau
        rows = af.adaptive_infonce(a, b, temperature, reduction="none", backend="triton")
        assert torch.equal(rows.isnan(), torch.arange(10) == 4)


def test_positive_out_of_range_gives_nan_in_its_row():
    for index in (-1, 10, 2**33):
        a, b, tau = (t.float().requires_grad_() for t in inputs(10, 10, 4))
        positive = torch.arange(10)
        positive[4] = index
        rows = af.adaptive_infonce(a, b, tau, positive_index=positive, reduction="none", backend="triton")
        assert torch.equal(rows.isnan(), torch.arange(10) == 4)
        rows.sum().backward()
        assert torch.equal(a.grad.isnan().any(1), torch.arange(10) == 4)


def test_nothing_to_do():
    for rows, columns in ((0, 5), (0, 0), (3, 0)):
        a, b = torch.zeros(rows, 4), torch.zeros(columns, 4)
        tensors = (a, b, torch.ones(rows), torch.full((rows,), -100), None, None, torch.ones(rows))
        for x, shape in zip(
            torch.ops.adaftr_fast.infonce_triton(*tensors, True, True, True, True),
            ((), (rows,), (rows,), (rows,), (rows,), (rows,), (rows, 4), (columns, 4), (rows,)),
        ):
            assert x.shape == shape
            assert not x.any()


def test_opcheck():
    a, b, tau = (t.float().requires_grad_() for t in inputs(5, 7, 4))
    arguments = (a, b, tau, None, None, None, torch.ones(5), True, True, True, True)
    torch.library.opcheck(torch.ops.adaftr_fast.infonce_triton.default, arguments)


def test_splits_fill_the_gpu_and_bound_the_partial_results():
    for programs, blocks in ((1, 1), (1, 1000), (8, 8), (131, 131), (133, 133), (500, 500), (4000, 9)):
        splits = config.choose_splits(programs, blocks, 132)
        assert 1 <= splits <= blocks
        assert splits == 1 or programs * splits <= 4 * 132
        if programs < 66 and blocks >= 64:
            assert programs * splits > 100
