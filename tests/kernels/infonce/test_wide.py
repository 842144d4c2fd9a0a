"""Half types beyond a width of 256, up to 512, as on sm_90, under the interpreter.

Rows whose logits are bounded have a sweep of their own, with four products. Calls with statistics
or masks take five: d_anchors has kernels of its own.
"""

import math

import pytest
import torch
from torch.nn.functional import normalize

import adaftr_fast as af
from tests.ops.infonce.inputs import assert_matches, inputs, loss_and_gradients, masks
from tests.ops.infonce.losses import draw_apart

pytest.importorskip("triton")
config = pytest.importorskip("adaftr_fast.kernels.infonce.config")
pytestmark = [
    pytest.mark.skipif(not config.INTERPRETED, reason="needs TRITON_INTERPRET=1"),
    pytest.mark.usefixtures("hopper"),
]
HALF = (torch.bfloat16, torch.float16)
EACH_TYPE = pytest.mark.parametrize("dtype", HALF)


def check(tensors, dtype, **options):
    """Checks the loss and its gradients by the tolerance rule."""
    if options.get("reduction") == "none":
        options["upstream"] = torch.ones(len(tensors[0]))
    assert_matches(tensors, dtype, backend="triton", **options)


def results(tensors, dtype=torch.bfloat16, **options):
    upstream = torch.ones(len(tensors[0]))
    given = {"reduction": "none", "backend": "triton"} | options
    return loss_and_gradients(af.adaptive_infonce, tensors, dtype, upstream, **given)


def unit(rows=64, columns=100, d=264):
    """Normalised anchors, each near its positive, and candidates; tau in [0.12, 0.62]; float64."""
    g = torch.Generator().manual_seed(0)
    b = normalize(torch.randn(columns, d, generator=g, dtype=torch.float64))
    a = normalize(b[:rows] + torch.randn(rows, d, generator=g, dtype=torch.float64) * d**-0.5)
    return a, b, torch.rand(rows, generator=g, dtype=torch.float64) * 0.5 + 0.12


def large_rows():
    a, b, tau = unit(150, 170)
    a[70::50] *= 300
    return a, b, tau


def far_below():
    """Positives too far below the bound for the range of float16, which then takes a maximum that
    moves.
    """
    a, b, tau = unit()
    return -a, b, tau.clamp(max=0.1)


def far_above(gap):
    """Negatives: l and acc rise to e^gap, or the maximum moves."""
    a, b, tau = unit(64, 130)
    a *= 0.01  # the product of two norms is then hardly above the logit
    a[:, 0] = gap * tau
    b[:, 1:] *= 0.1
    b[:, 0] = torch.linspace(0.5, 1, 130, dtype=torch.float64)
    b[:64, 0] = 0
    return a, b, tau


def long_candidate(tau):
    """The bound is far above all logits but one, so that most terms are small."""
    a, b, _ = unit(64, 130)
    b[100] *= 1.5
    return a, b, torch.full((64,), tau, dtype=torch.float64)


def small_probabilities():
    """Negatives of 2^-30 each beside a positive near the bound: float16 would lose them."""
    g = torch.Generator().manual_seed(0)
    a = normalize(torch.randn(1, 264, generator=g, dtype=torch.float64))
    noise = torch.randn(67, 264, generator=g, dtype=torch.float64)
    b = normalize(noise - noise @ a.T * a)
    b[:1] = normalize(0.69 * a + 0.72 * b[:1])
    return a, b, torch.tensor([0.033], dtype=torch.float64)


def large_candidates(size):
    """acc sums candidates, so their size counts beside the logits."""
    a, b, tau = unit(64, 130)
    return -a * 20 / size, b * size, torch.ones_like(tau)


def zeros():
    a, b, tau = unit()
    a[3] = b[5] = b[70] = 0
    tau[7], tau[8] = 1e20, 1e38
    return a, b, tau


# Tensors, options, and whether each block of 64 rows is bounded, in bfloat16 and in float16; None:
# runs in the other.
PROBLEMS = {
    "one row": (unit(1, 1), {}, [1], None),
    "ragged blocks": (unit(130, 200, 300), {}, [1, 1, 1], [1, 1, 1]),
    "large rows": (large_rows(), {"reduction": "none"}, [1, 0, 1], None),
    "far below": (far_below(), {}, [1], [0]),
    "far above": (far_above(55), {}, [1], None),
    "farther above": (far_above(70), {}, [0], [0]),
    "long candidate": (long_candidate(0.17), {}, [1], [1]),
    "long candidate, colder": (long_candidate(0.12), {}, [1], [0]),
    "small probabilities": (small_probabilities(), {}, [1], [0]),
    "large candidates": (large_candidates(2.0**10), {}, [1], None),
    "larger candidates": (large_candidates(2.0**40), {}, [0], None),
    "zeros": (zeros(), {}, None, [1]),
    "a large margin": (unit(), {"margin": 20.0}, [0], None),
    "weights": (
        unit(70, 70),
        {"margin": 0.3, "row_weight": torch.linspace(0, 2, 70), "reduction": "sum"},
        None,
        [1, 1],
    ),
    "frozen candidates": (unit(64, 64, 512), {"frozen": (1,)}, [1], None),
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_bounded_rows(name, swept):
    tensors, options, *expected = PROBLEMS[name]
    for dtype, bounded in zip(HALF, expected, strict=True):
        if bounded is not None:
            swept.clear()
            check(tensors, dtype, **options)
            assert swept == [bounded]


FIVE = {
    "a block": (inputs(64, 64, 512), {}),
    "several blocks": (inputs(130, 140, 400), {}),
    "masks": (inputs(140, 200, 264), masks(140, 200)),
    "groups": (
        inputs(70, 90, 264),
        {name: masks(70, 90)[name] for name in ("row_group", "column_group")},
    ),
    "ignore_above": (draw_apart(70, 100, 264), {"ignore_above": 0.25}),
    "weights": (
        inputs(70, 70, 264),
        {"margin": 0.3, "row_weight": torch.linspace(0, 2, 70), "reduction": "sum"},
    ),
    "far above": (far_above(70), {}),
    "frozen tau": (inputs(70, 100, 264), {"frozen": (2,)}),
    "frozen anchors": (inputs(70, 100, 264), {"frozen": (0,)}),
}


@pytest.mark.parametrize("name", FIVE)
def test_five_products(name, plans):
    tensors, options = FIVE[name]
    for dtype in HALF if name in ("masks", "far above") else HALF[1:]:
        check(tensors, dtype, **{"return_stats": True} | options)
    assert plans
    assert all(each.columns.options["BRANCHES"] for each in plans)
    assert not any(each.rows[0].options["NEED_D_ANCHORS"] for each in plans)
    assert all((len(each.rows) == 1) == (name == "frozen anchors") for each in plans)


def test_splits(swept, plans, assume):
    assume(processors=8)
    a, b, tau = unit(130, 300, 272)
    a[100] *= 300
    check((a, b, tau), torch.bfloat16)
    assert swept == [[1, 0, 1]]
    assert min(each.rows[0].grid[1] for each in plans) > 1
    for rows, columns in ((130, 140), (300, 100)):
        plans.clear()
        check(inputs(rows, columns, 264), torch.float16, return_stats=True, **masks(rows, columns))
        assert all(each.columns.grid[1] > 1 for each in plans)
        assert all((each.rows[-1].grid[1] > 1) == (rows < columns) for each in plans)


@EACH_TYPE
def test_a_bad_number_stays_in_its_row(dtype, swept):
    a, b, tau = unit(70, 70)
    clean = results((a, b, tau), dtype)
    a[3, 5] = math.nan
    loss, d_a, d_b, d_tau = results((a, b, tau), dtype)
    bad = torch.arange(70) == 3
    assert torch.equal(loss.isnan(), bad)
    assert torch.equal(d_a.isnan().any(1), bad)
    assert torch.equal(d_tau.isnan(), bad)
    assert d_b.isnan().any(1).all()
    assert swept == [[1, 1], [0, 1]]
    for own, before in zip((loss, d_a, d_tau), (clean[0], clean[1], clean[3])):
        torch.testing.assert_close(own[~bad], before[~bad], rtol=2e-2, atol=1e-3)


@EACH_TYPE
def test_a_bad_number_of_a_candidate_shows_in_all_rows(dtype):
    for value in (math.nan, math.inf):
        a, b, tau = unit(5, 70)
        b[60, 7] = value
        a[:, 7] = 0.1
        loss, d_a, d_b, _ = results((a, b, tau), dtype)
        assert not loss.isfinite().any()
        assert not d_a.isfinite().all(1).any()
        assert not d_b.isfinite().all()


def test_bad_temperatures(swept):
    for value in (0.0, math.nan):
        a, b, tau = unit(66, 66)
        tau[4] = value
        loss, d_a, *_ = results((a, b, tau))
        assert torch.equal(loss.isnan(), torch.arange(66) == 4)
        assert torch.equal(d_a.isnan().any(1), torch.arange(66) == 4)
    a, b, tau = zeros()
    tau[9] = 1e-5
    assert all(each.isfinite().all() for each in results((a, b, tau)))
    assert swept == [[0, 1]] * 2 + [[0]]


def test_other_calls_take_the_row_sweep(swept, monkeypatch):
    """Those with masks or statistics, without d_anchors, and small ones."""

    def call(**options):
        loss_and_gradients(
            af.adaptive_infonce, unit(5, 6), torch.bfloat16, backend="triton", **options
        )

    for options in ({"return_stats": True}, masks(5, 6), {"frozen": (0,)}):
        call(**options)
    monkeypatch.setattr("adaftr_fast.kernels.infonce.launch.SMALL_PART", 2**17)
    call()
    for options in ({}, masks(70, 130)):
        check(inputs(70, 130, 264), torch.bfloat16, return_stats=True, **options)
    assert swept == []
