"""Calibration, lift and gain by score bucket against plain loops."""

import itertools

import numpy as np
import pytest

from adaftr_fast.display.tables import Table
from adaftr_fast.explain.buckets import ScoreBuckets
from adaftr_fast.explain.importance import Importance
from adaftr_fast.explain.page import draw, findings, page_sections


def drawn(n, seed=0):
    random = np.random.default_rng(seed)
    logits = random.normal(-1, 1.5, n).astype(np.float32)
    return (random.random(n) < 1 / (1 + np.exp(-logits))).astype(np.uint8), logits


@pytest.mark.parametrize("n", [10, 1003])
def test_buckets_are_the_rows_in_the_order_of_their_scores(n):
    labels, logits = drawn(n)
    found = ScoreBuckets.of(labels, logits)
    order = sorted(range(n), key=lambda row: -logits[row])
    bounds = [n * k // 10 for k in range(11)]
    p = 1 / (1 + np.exp(-logits.astype(np.float64)))
    positives = 0
    for k, (first, last) in enumerate(itertools.pairwise(bounds)):
        rows = order[first:last]
        rate = labels[rows].mean()
        positives += labels[rows].sum()
        assert found.rows[k] == len(rows)
        np.testing.assert_allclose(found.predicted[k], p[rows].mean())
        np.testing.assert_allclose(found.observed[k], rate)
        # Wilson's: where the rate is 1.96 standard errors of the end away from it
        for end in found.interval[:, k]:
            error = np.sqrt(end * (1 - end) / len(rows))
            np.testing.assert_allclose(abs(rate - end), 1.959964 * error, atol=1e-7)
        np.testing.assert_allclose(found.lift[k], rate / labels.mean())
        np.testing.assert_allclose(found.gain[k], positives / labels.sum())
    assert found.gain[-1] == pytest.approx(1.0)
    np.testing.assert_allclose(
        found.calibration_error, (found.rows * np.abs(found.predicted - found.observed)).sum() / n
    )


def test_equal_scores_share_a_bucket():
    found = ScoreBuckets.of(np.array([1, 0] * 50), np.repeat([2.0, -2.0], [15, 85]))
    assert found.rows.tolist() == [15, 85]
    one = ScoreBuckets.of(np.zeros(30), np.zeros(30))
    assert (one.rows.tolist(), one.predicted.tolist()) == ([30], [0.5])
    assert np.isnan(one.lift).all()
    # no positive row is no proof of a rate of 0
    assert one.interval[:, 0] == pytest.approx([0, 0.1135], abs=1e-4)
    extreme = ScoreBuckets.of(np.array([1, 0]), np.array([3e38, -3e38], np.float32))
    assert extreme.predicted.tolist() == [1.0, 0.0]


def test_the_page_says_what_the_numbers_say():
    labels, logits = drawn(5000)
    buckets = {
        "click": ScoreBuckets.of(labels, logits),
        "buy": ScoreBuckets.of(labels, logits + 1),
        "none": ScoreBuckets.of(0 * labels, logits),
    }
    drops = np.array([[[0.1], [0.0]], [[0.12], [0.001]], [[0.11], [-0.001]]])
    importance = Importance(["user", "noise"], ["click"], drops, 5000)
    lines = findings(buckets, importance)
    assert any(line.startswith("click: calibrated on average: ") for line in lines)
    assert any(line.startswith("buy: not calibrated: 1.") for line in lines)
    assert "none: the rows have no positives." in lines
    assert (
        "click: the fields that are worth most, in points of AUC: user (11.00), noise (0.00)."
        in lines
    )
    assert any("that noise are permuted" in line for line in lines)
    metrics = [Table(["task"], [["click"]]).markdown(), "GAUC: the mean over 3 groups."]
    text = "\n\n".join(
        page_sections("run on the test split", metrics, ["x: no better."], buckets, importance)
    )
    places = [text.index(each) for each in ("**Before you read on:** x: no", *metrics, "- click: ")]
    assert places == sorted(places)
    assert "worth most" not in text
    assert "that noise are permuted" not in text
    assert "The importance of fields means little until the doubts above are gone." in text
    assert "| user             | 11.000 ± 0.577 |" in text
    for heading in (
        "# run on the test split",
        "## Importance of fields (5,000 rows, 3 permutations)",
        "### buy",
    ):
        assert f"{heading}\n" in text
    assert [axes.get_title() for axes in draw(buckets).axes[:2]] == [
        "click: calibration",
        "buy: calibration",
    ]
