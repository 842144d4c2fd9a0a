"""What the Triton kernels have beside what tests of all losses compare, under the interpreter; no
GPU needed.
"""

import math
from functools import partial

import pytest
import torch

import adaftr_fast as af
from tests.ops.infonce.inputs import assert_matches, inputs, loss_and_gradients, masks
from tests.ops.infonce.losses import draw_both, draw_sigmoid, positives
from tests.ops.infonce.test_precision import under
from tests.ops.test_smallest_batches import SIZES, assert_as_the_reference, options_of

pytest.importorskip("triton")
config = pytest.importorskip("adaftr_fast.kernels.infonce.config")
pytestmark = pytest.mark.skipif(not config.INTERPRETED, reason="needs TRITON_INTERPRET=1")
infonce_triton = partial(af.adaptive_infonce, backend="triton")
sigmoid_triton = partial(af.sigmoid_contrast, backend="triton")


def check(*size, dtype=torch.float32, **options):
    assert_matches(inputs(*size), dtype, backend="triton", return_stats=True, **options)


@pytest.mark.parametrize("given", [("positive_index",), ("row_group", "column_group")], ids=str)
def test_positives_or_groups_alone(given):
    options = masks(90, 140)
    check(90, 140, 24, **{name: options[name] for name in given})


def test_some_rows_of_a_block_have_large_logits():
    a, b, tau = inputs(150, 200, 16)
    a[::40] *= 1000
    assert_matches((a, b, tau), torch.bfloat16, backend="triton", return_stats=True)


def test_tf32_block_sizes():
    """The interpreter multiplies in full float32, so this tests the block sizes only."""
    with under("high"):
        check(40, 100, 64)
        check(40, 100, 200, **masks(40, 100))
        options = {"positive_index": positives(40, 100), "backend": "triton"}
        assert_matches(draw_sigmoid(40, 100, 200), torch.float32, af.sigmoid_contrast, **options)


@pytest.mark.parametrize(
    ("capability", "d", "expected"),
    [
        (90, 40, (64, 64, 3)),
        (90, 100, (64, 64, 2)),
        (80, 40, (64, 32, 3)),
        (80, 100, (128, 64, 1)),
    ],
)
def test_blocks_of_the_environment_variable(capability, d, expected, monkeypatch, assume):
    monkeypatch.setenv(config.BLOCKS_VARIABLE, "narrow")
    assume(capability=capability)
    chosen = config.choose_tiling("half", -(-d // 16) * 16, capability, "narrow").row_sweep
    assert (chosen.block_m, chosen.block_n, chosen.programs) == expected
    check(130, 200, d, dtype=torch.bfloat16, **(masks(130, 200) if d == 100 else {}))


def test_an_unknown_choice_of_blocks_is_refused(monkeypatch):
    monkeypatch.setenv(config.BLOCKS_VARIABLE, "tall")
    with pytest.raises(
        ValueError, match=r"ADAFTR_FAST_INFONCE_BLOCKS must be one of \('narrow',\), got 'tall'"
    ):
        check(20, 30, 8, dtype=torch.bfloat16)


def test_splits_fill_the_gpu_and_bound_the_partial_results():
    for programs, blocks in (
        (1, 1),
        (1, 1000),
        (8, 8),
        (131, 131),
        (133, 133),
        (500, 500),
        (4000, 9),
    ):
        splits = config.choose_splits(programs, blocks, 132)
        assert 1 <= splits <= blocks
        assert splits == 1 or programs * splits <= 4 * 132
        if programs < 66 and blocks >= 64:
            assert programs * splits > 100


def test_splits_fill_the_programs_that_a_multiprocessor_holds():
    from adaftr_fast.kernels.infonce.launch import Products

    products = Products("half", torch.bfloat16, torch.float32, 64 * 132, 8192, 64, 64, 0, 90, 132)
    for programs in (1, 2, 3):
        chosen = config.Config(64, 128, 64, 0, 8, 3, programs)
        assert products.grid(chosen, divide_width=True) == (132, programs, 1)


@pytest.mark.parametrize("options", [{}, {"symmetric": True}, {"block": 4}], ids=str)
def test_bad_temperature_gives_nan_in_its_row(options):
    a, b, tau = inputs(10, 10, 4)
    a, b, tau = a.bfloat16(), b.bfloat16(), tau.float()
    for value in (0.0, -0.1, math.nan, math.inf):
        bad = tau.clone()
        bad[4] = value
        for each in ((bad, tau), (tau, bad)) if "symmetric" in options else (bad,):
            rows = infonce_triton(a, b, each, reduction="none", **options)
            assert torch.equal(rows.isnan(), torch.arange(10) == 4)


def test_a_bad_scale_or_bias_gives_nan():
    a, b, *_ = (x.float() for x in draw_sigmoid(10, 10, 4))
    assert all(
        sigmoid_triton(a, b, scale, 0.0).isnan() for scale in (0.0, -1.0, math.nan, math.inf)
    )
    assert all(sigmoid_triton(a, b, 1.0, bias).isnan() for bias in (math.nan, math.inf, -math.inf))


def test_a_positive_out_of_range_gives_nan_in_its_row():
    for index in (-1, 10, 2**32, 2**33 + 4):
        positive = torch.arange(10)
        positive[4] = index
        calls = (
            lambda a, b, positive=positive: infonce_triton(a, b, 0.3, positive_index=positive),
            lambda a, b, positive=positive: sigmoid_triton(
                a, b, 3.0, -2.0, positive_index=positive
            ),
        )
        for call in calls:
            a, b = (x.float().requires_grad_() for x in inputs(10, 10, 4)[:2])
            loss = call(a, b)
            loss.backward()
            assert loss.isnan()
            assert torch.equal(a.grad.isnan().any(1), torch.arange(10) == 4)
            assert b.grad.isnan().any()


def test_at_most_one_row_and_candidate():
    dtype = torch.bfloat16
    for sizes in SIZES:
        for options in options_of(*sizes):
            assert_as_the_reference(
                partial(af.adaptive_infonce, tau=0.5, **options), sizes, dtype, "triton"
            )
        options = {} if sizes[0] <= sizes[1] else {"positive_index": torch.full((sizes[0],), -100)}
        loss = partial(af.sigmoid_contrast, logit_scale=2.0, logit_bias=1.0, **options)
        assert_as_the_reference(loss, sizes, dtype, "triton")


def test_operands_that_do_not_match_are_refused_before_a_kernel_reads_them():
    a, b, ones = torch.ones(8, 16), torch.ones(5, 16), torch.ones(8)
    needs = [True, True, True, False]
    calls = {
        "infonce_blocks": (a, b, ones, ones, *needs, 4),
        "infonce_symmetric": (a, b, ones, ones, None, None, ones, *[True] * 4),
        "infonce": (a, b.double(), ones, None, None, None, ones, *needs),
    }
    for name, arguments in calls.items():
        op = getattr(torch.ops.adaftr_fast, f"{name}_triton")
        with pytest.raises(ValueError, match=rf"{name}: expected anchors .* \[8, 16\] and .* \[5"):
            op(*arguments)


def test_without_the_interpreter_cpu_tensors_are_refused(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(
        ValueError, match="sigmoid_contrast: backend 'triton' accepts CPU tensors only under"
    ):
        sigmoid_triton(torch.ones(2, 3), torch.ones(2, 3), 1.0, 0.0)


def test_a_margin_leaves_ignore_above_as_it_is():
    """Similarities are small integers, so many tie with the bound; these remain negatives."""
    g = torch.Generator().manual_seed(0)
    a, b = (torch.randint(-1, 2, (n, 8), generator=g).double() for n in (40, 50))
    tensors, upstream = (a, b, torch.full((40,), 0.7)), torch.ones(40)
    call = partial(
        loss_and_gradients, af.adaptive_infonce, tensors, torch.float32, upstream, reduction="none"
    )
    found, true = (
        call(ignore_above=1.0, margin=0.3, backend=each) for each in ("triton", "reference")
    )
    torch.testing.assert_close(found, true)


def test_what_the_kernels_of_both_directions_serve():
    from adaftr_fast.kernels.infonce import serves_symmetric

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
            assert serves_symmetric(anchors, tau, tau, None) == serves


@pytest.mark.parametrize(
    ("tau", "frozen", "products"),
    [(None, (), 5), (None, (1, 3), 3), (None, (0, 1, 2, 3), 1), (torch.tensor(0.3), (), 5)],
)
def test_number_of_products_of_both_directions(tau, frozen, products, monkeypatch):
    """The multiply-adds of all tl.dot, as a multiple of B x B x d; the positives' are those of 64
    columns.
    """
    from triton.runtime.interpreter import InterpreterBuilder

    done = []
    dot = InterpreterBuilder.create_dot

    def counted(self, a, b, *rest):
        done.append(a.data.shape[0] * a.data.shape[1] * b.data.shape[1])
        return dot(self, a, b, *rest)

    monkeypatch.setattr(InterpreterBuilder, "create_dot", counted)
    rows, d = 128, 64  # whole blocks

    def call(a, b, *taus):
        return infonce_triton(a, b, taus if tau is None else tau, symmetric=True)

    loss_and_gradients(call, draw_both(rows, rows, d), torch.bfloat16, frozen=frozen)
    assert sum(done) == (products + 64 / rows) * rows * rows * d
