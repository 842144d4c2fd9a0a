import math

import numpy as np
import pytest

from benchmarks.paper.abtest import METRICS, lifts, rates


def drawn(number=4000, seeds=2, seed=0, rate=0.3):
    """Counts [n, 4] of clicks and of conversions of half of them, per seed."""
    random = np.random.default_rng(seed)
    click = random.random((seeds, number)) < rate
    conversion = click & (random.random((seeds, number)) < 0.5)
    return np.stack([click, conversion, np.full_like(click, 0.2, float), 3.0 * conversion], 2)


def by_name(found):
    return {lift["metric"]: lift for lift in found}


def test_the_metrics_by_hand():
    found = dict(zip(METRICS, rates(np.array([20.0, 5.0, 40.0, 15.0]), 100)))
    assert found == {
        "CTR": 0.2,
        "CVR": 0.25,
        "CPC": 8.0,
        "eCPM": 400.0,
        "conversions": 50.0,
        "value": 150.0,
    }
    nothing = dict(zip(METRICS, rates(np.zeros((1, 4)), 100)[0]))
    assert math.isnan(nothing["CVR"])
    assert math.isnan(nothing["CPC"])
    assert nothing["CTR"] == 0


def test_differences_by_hand():
    control = [np.array([[1, 1, 1.0, 2.0], [1, 0, 1.0, 0], [0, 0, 2.0, 0]])]
    treatment = [np.array([[1, 1, 1.0, 2.0], [1, 1, 1.0, 2.0], [1, 0, 1.0, 0]])]
    found = by_name(lifts(control, treatment, 10))
    expected = {
        "CTR": 50.0,
        "CVR": 100 * (2 / 3 / (1 / 2) - 1),
        "CPC": 100 * (1.5 / 4 - 1),
        "eCPM": -25.0,
    }
    assert {name: found[name]["mean"] for name in expected} == pytest.approx(expected)
    assert found["conversions"]["mean"] == pytest.approx(100.0)
    assert found["CTR"]["by seed"] == pytest.approx([50.0])
    assert found["CTR"]["seeds"] is None


def test_the_interval_is_that_of_the_normal_approximation():
    control = drawn(seeds=1, rate=0.3)
    treatment = drawn(seeds=1, seed=1, rate=0.36)
    lift = by_name(lifts(control, treatment))["CTR"]
    a = control[0, :, 0]
    b = treatment[0, :, 0]
    ratio = b.mean() / a.mean()
    residual = (b - ratio * a) / a.mean()  # delta method
    half = 1.96 * 100 * residual.std() / math.sqrt(len(a))
    assert lift["mean"] == pytest.approx(100 * (ratio - 1))
    assert lift["auctions"] == pytest.approx(
        (lift["mean"] - half, lift["mean"] + half), abs=0.15 * half
    )


def test_seeds_that_differ_widen_the_second_interval():
    control = drawn(seeds=3)
    for lift in lifts(control, control, 20):
        assert (lift["mean"], lift["auctions"], lift["seeds"], lift["by seed"]) == (
            0,
            (0, 0),
            (0, 0),
            [0, 0, 0],
        )
    treatment = np.array([1.0, 1.2, 1.4])[:, None, None] * control
    lift = by_name(lifts(control, treatment))["conversions"]
    assert lift["by seed"] == pytest.approx([0, 20, 40])
    assert (
        lift["auctions"][1] - lift["auctions"][0] < 5
    )  # auctions are resampled in both arms together
    half = 4.302653 * 20 / math.sqrt(3)  # t of two degrees of freedom
    assert lift["seeds"][1] - lift["seeds"][0] == pytest.approx(2 * half, rel=0.01)
    assert lifts(control, treatment) == lifts(control, treatment)
