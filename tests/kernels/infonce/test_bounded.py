"""The sweep of rows whose logits are bounded, under the interpreter: half types beyond 256, up to 512, as on sm_90."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

import adaftr_fast as af
from tests.ops.infonce import inputs
from tests.ops.infonce.inputs import loss_and_gradients, masks

pytest.importorskip("triton")
config = pytest.importorskip("adaftr_fast.kernels.infonce.config")
pytestmark = pytest.mark.skipif(not config.INTERPRETED, reason="needs TRITON_INTERPRET=1")
HALF = (torch.bfloat16, torch.float16)


@pytest.fixture(autouse=True)
def hopper(monkeypatch):
    monkeypatch.setattr("adaftr_fast.kernels.infonce.operands.ASSUMED_CAPABILITY", 90)


def unit(rows: int, columns: int, d: int) -> tuple[Tensor, Tensor, Tensor]:
    """Normalised anchors, each near its positive, and candidates; tau in [0.12, 0.62]; float64."""
    g = torch.Generator().manual_seed(0)
    b = normalize(torch.randn(columns, d, generator=g, dtype=torch.float64))
    a = normalize(b[:rows] + torch.randn(rows, d, generator=g, dtype=torch.float64) * d**-0.5)
    return a, b, torch.rand(rows, generator=g, dtype=torch.float64) * 0.5 + 0.12


def results(tensors, dtype: torch.dtype, backend: str, **options) -> list[Tensor | None]:
    """Returns the loss and its gradients, without statistics."""
    upstream = torch.ones(len(tensors[0])) if options.get("reduction") == "none" else None
    return loss_and_gradients(af.adaptive_infonce, tensors, dtype, upstream, backend=backend, **options)


def assert_matches(tensors, dtype: torch.dtype, **options) -> None:
    """Checks the loss and its gradients by the tolerance rule."""
    if options.get("reduction") == "none":
        options["upstream"] = torch.ones(len(tensors[0]))
    inputs.assert_matches(tensors, dtype, backend="triton", **options)


@pytest.mark.parametrize("dtype", HALF)
def test_bounded_rows(dtype, swept):
    for rows, columns, d in ((1, 1, 260), (64, 64, 512), (63, 65, 300), (130, 200, 272)):
        swept.clear()
        assert_matches(unit(rows, columns, d), dtype)
        assert swept == [[1] * math.ceil(rows / 64)]


@pytest.mark.parametrize("dtype", HALF)
def test_some_blocks_of_rows_are_not_bounded(dtype, swept):
    a, b, tau = unit(150, 170, 264)
    a[70::50] *= 300
    assert_matches((a, b, tau), dtype, reduction="none")
    assert swept == [[1, 0, 1]]


@pytest.mark.parametrize("dtype", HALF)
def test_no_rows_are_bounded(dtype, swept):
    a, b, tau = unit(70, 100, 264)
    assert_matches((a * 20, b * 20, tau), dtype)
    assert swept == [[0, 0]]


@pytest.mark.parametrize(("dtype", "bounded"), [(torch.bfloat16, 1), (torch.float16, 0)])
def test_positives_far_below_the_bound(dtype, bounded, swept):
    """Too far for the range of float16, which then takes a maximum that moves."""
    a, b, tau = unit(64, 100, 264)
    assert_matches((-a, b, tau.clamp(max=0.1)), dtype)
    assert swept == [[bounded]]


@pytest.mark.parametrize(("gap", "bounded"), [(55, 1), (70, 0)])
def test_negatives_far_above_the_positive(gap, bounded, swept):
    """l and acc rise to e^gap, or the maximum moves."""
    a, b, tau = unit(64, 130, 264)
    a *= 0.01  # the product of two norms is then hardly above the logit
    a[:, 0], b[:, 0] = gap * tau, torch.linspace(0.5, 1, 130, dtype=torch.float64)
    b[:, 1:] *= 0.1
    b[:64, 0] = 0
    assert_matches((a, b, tau), torch.bfloat16)
    assert swept == [[bounded]]


@pytest.mark.parametrize(("tau", "bounded"), [(0.17, [[1], [1]]), (0.12, [[1], [0]])])
def test_small_terms_and_a_long_candidate(tau, bounded, swept):
    """The bound is far above all logits but one, so that most terms are small."""
    a, b, _ = unit(64, 130, 264)
    b[100] *= 1.5
    for dtype in HALF:
        assert_matches((a, b, torch.full((64,), tau, dtype=torch.float64)), dtype)
    assert swept == bounded


@pytest.mark.parametrize("dtype", HALF)
def test_negatives_of_small_probabilities(dtype, swept):
    """Negatives of 2^-30 each beside a positive near the bound, all rows alike: float16 would lose them."""
    g = torch.Generator().manual_seed(0)
    a = normalize(torch.randn(1, 264, generator=g, dtype=torch.float64)).repeat(64, 1)
    noise = torch.randn(130, 264, generator=g, dtype=torch.float64)
    b = normalize(noise - noise @ a[:1].T * a[:1])
    b[:64] = normalize(0.69 * a + 0.72 * b[:64])
    assert_matches((a[:1], b[torch.tensor([0, *range(64, 130)])], torch.tensor([0.033], dtype=torch.float64)), dtype)
    assert swept == [[dtype == torch.bfloat16]]


@pytest.mark.parametrize(("size", "bounded"), [(2.0**10, 1), (2.0**40, 0)])
def test_large_candidates_of_small_anchors(size, bounded, swept):
    """acc sums candidates, so their size counts beside the logits."""
    a, b, tau = unit(64, 130, 264)
    assert_matches((-a * 20 / size, b * size, torch.ones_like(tau)), torch.bfloat16)
    assert swept == [[bounded]]


@pytest.mark.parametrize("dtype", HALF)
def test_zeros_and_extreme_temperatures(dtype, swept):
    a, b, tau = unit(64, 100, 264)
    a[3] = 0
    b[5] = 0
    b[70] = 0
    tau[7], tau[8] = 1e20, 1e38
    assert_matches((a, b, tau), dtype)
    tau[9] = 1e-5
    assert all(each.isfinite().all() for each in results((a, b, tau), dtype, "triton", reduction="none"))
    assert swept == [[1], [0]]


@pytest.mark.parametrize("dtype", HALF)
def test_a_large_margin(dtype, swept):
    assert_matches(unit(64, 100, 264), dtype, margin=20.0)
    assert swept == [[0]]


@pytest.mark.parametrize("dtype", HALF)
def test_margin_and_weights(dtype, swept):
    weight = torch.linspace(0, 2, 70)
    assert_matches(unit(70, 70, 264), dtype, margin=0.3, row_weight=weight, reduction="sum")
    assert swept == [[1, 1]]


@pytest.mark.parametrize("dtype", HALF)
def test_splits(dtype, swept, monkeypatch):
    from adaftr_fast.kernels.infonce import launch, operands

    monkeypatch.setattr(operands, "ASSUMED_PROCESSORS", 8)
    a, b, tau = unit(130, 300, 272)
    a[100] *= 300
    splits, make = [], launch.make_plan
    monkeypatch.setattr(launch, "make_plan", lambda *key: splits.append(make(*key).rows.grid[1]) or make(*key))
    assert_matches((a, b, tau), dtype)
    assert swept == [[1, 0, 1]]
    assert min(splits) > 1


def test_frozen_inputs(swept):
    for frozen in ((1,), (2,), (1, 2)):
        swept.clear()
        assert_matches(unit(70, 100, 264), torch.bfloat16, frozen=frozen)
        assert swept == [[1, 1]]


@pytest.mark.parametrize("dtype", HALF)
def test_a_row_that_is_not_a_number(dtype, swept):
    a, b, tau = unit(70, 70, 264)
    clean = results((a, b, tau), dtype, "triton", reduction="none")
    a[3, 5] = math.nan
    loss, d_a, d_b, d_tau = results((a, b, tau), dtype, "triton", reduction="none")
    bad = torch.arange(70) == 3
    assert torch.equal(loss.isnan(), bad)
    assert torch.equal(d_a.isnan().any(1), bad)
    assert torch.equal(d_tau.isnan(), bad)
    assert d_b.isnan().any(1).all()
    assert swept == [[1, 1], [0, 1]]
    for own, before in zip((loss, d_a, d_tau), (clean[0], clean[1], clean[3])):
        torch.testing.assert_close(own[~bad], before[~bad], rtol=2e-2, atol=1e-3)


@pytest.mark.parametrize("dtype", HALF)
def test_a_candidate_that_is_not_finite(dtype, swept):
    for value in (math.nan, math.inf):
        a, b, tau = unit(70, 100, 264)
        b[90, 7] = value
        a[:, 7] = 0.1
        loss, d_a, d_b, _ = results((a, b, tau), dtype, "triton", reduction="none")
        assert not loss.isfinite().any()
        assert not d_a.isfinite().all(1).any()
        assert not d_b.isfinite().all()
    assert len(swept) == 2


def test_bad_temperature_gives_nan_in_its_row(swept):
    for tau in (0.0, -0.1, math.nan):
        swept.clear()
        a, b, temperature = unit(66, 66, 264)
        temperature[4] = tau
        loss, d_a, *_ = results((a, b, temperature), torch.bfloat16, "triton", reduction="none")
        assert torch.equal(loss.isnan(), torch.arange(66) == 4)
        assert torch.equal(d_a.isnan().any(1), torch.arange(66) == 4)
        assert swept == [[0, 1]]


def test_other_calls_take_the_row_sweep(swept, monkeypatch):
    """Those with masks or statistics, without d_anchors, and small ones."""
    a, b, tau = (x.float() for x in unit(5, 6, 264))
    half = a.bfloat16(), b.bfloat16(), tau
    af.adaptive_infonce(*half, backend="triton", return_stats=True)
    results(half, torch.bfloat16, "triton", **masks(5, 6))
    results(half, torch.bfloat16, "triton", frozen=(0,))
    monkeypatch.setattr("adaftr_fast.kernels.infonce.launch.SMALL_PART", 2**17)
    results(half, torch.bfloat16, "triton")
    assert swept == []
