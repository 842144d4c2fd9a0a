import itertools

import numpy as np
import pytest
from sklearn.metrics import log_loss as sklearn_log_loss
from sklearn.metrics import roc_auc_score

from adaftr_fast.training.metrics import auc, calibration, cvr_auc, gauc, log_loss


def pairwise_auc(labels, scores):
    """Compares every positive with every negative."""
    pairs = list(itertools.product(scores[labels == 1], scores[labels == 0]))
    return sum(1.0 if p > n else 0.5 if p == n else 0.0 for p, n in pairs) / len(pairs)


def draw(rows, levels, seed, groups=7):
    """Draws labels, scores with many ties (few ``levels``), and groups, some with a single class."""
    random = np.random.default_rng(seed)
    scores = random.integers(0, levels, rows).astype(np.float32) / 3
    labels = (random.random(rows) < 0.3 + 0.1 * scores / scores.max()).astype(np.uint8)
    return labels, scores, random.zipf(1.5, rows) % groups


@pytest.mark.parametrize("levels", [2, 5, 1000])
@pytest.mark.parametrize("seed", range(4))
def test_auc_against_its_definition_and_sklearn(levels, seed):
    labels, scores, _ = draw(200, levels, seed)
    assert auc(labels, scores) == pytest.approx(pairwise_auc(labels, scores), abs=1e-15)
    assert auc(labels, scores) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)


@pytest.mark.parametrize("labels", [np.array([0.0, 1.0, 1.0, 0.0]), np.array([False, True, True, False])])
def test_auc_of_extreme_scores(labels):
    assert auc(labels, np.array([-np.inf, np.inf, 2.0, -1e300])) == 1.0
    assert auc(labels, np.zeros(4)) == 0.5
    assert auc(labels, np.array([1, -5, -5, 1])) == 0.0


def test_auc_does_not_change_under_monotone_maps_or_permutation():
    labels, scores, _ = draw(5000, 50, 0)
    order = np.random.default_rng(1).permutation(5000)
    assert auc(labels, scores) == auc(labels[order], scores[order]) == auc(labels, np.exp(scores))


def test_auc_and_gauc_of_a_single_class_are_nan():
    assert np.isnan(auc(np.ones(3), np.arange(3)))
    assert np.isnan(auc(np.zeros(0), np.zeros(0)))
    assert np.isnan(gauc(np.array([0, 1]), np.arange(2), np.array([0, 1])))
    assert np.isnan(gauc(np.array([0, 1]), np.arange(2), np.array([-1, -1])))


@pytest.mark.parametrize("levels", [2, 1000])
@pytest.mark.parametrize("weighted_by", ["none", "impressions"])
def test_gauc_against_a_loop_over_groups(levels, weighted_by):
    labels, scores, groups = draw(400, levels, 3, groups=40)
    areas, weights = [], []
    for group in np.unique(groups):
        mine = groups == group
        if 0 < labels[mine].sum() < mine.sum():
            areas.append(roc_auc_score(labels[mine], scores[mine]))
            weights.append(mine.sum() if weighted_by == "impressions" else 1)
    assert len(areas) < len(np.unique(groups))  # some are skipped
    assert gauc(labels, scores, groups, weighted_by) == pytest.approx(np.average(areas, weights=weights), abs=1e-12)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int16, np.int64])
def test_gauc_is_the_same_for_every_type_and_numbering(dtype):
    random = np.random.default_rng(4)
    scores, groups = random.integers(-30, 30, 500), random.integers(0, 20, 500)
    labels = random.integers(0, 2, 500)
    expected = gauc(labels, scores.astype(np.float32), groups)
    assert gauc(labels, scores.astype(dtype), groups) == expected
    assert gauc(labels, scores.astype(dtype), groups.astype(np.uint8)) == expected
    assert gauc(labels, scores.astype(dtype), groups << 40) == expected  # hashed ids
    assert gauc(labels, scores.astype(dtype), groups + (1 << 32) - 10) == expected  # on both sides of 2^32


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_gauc_of_extreme_scores(dtype):
    labels, groups = np.array([0, 1, 1, 0]), np.array([5, 5, 5, 5])
    assert gauc(labels, np.array([-np.inf, np.inf, 2.0, -1e30], dtype), groups) == 1.0
    assert gauc(labels, np.array([-0.0, 0.0, -0.0, 0.0], dtype), groups) == 0.5
    assert gauc(labels, np.array([np.inf, -np.inf, -1e-45, 1e-45], dtype), groups) == 0.0


def test_scores_that_differ_by_one_ulp_are_not_tied():
    one = np.float32(1.0)
    above = np.nextafter(one, np.float32(2.0))
    for scores in (np.array([one, above]), np.array([-above, -one]), np.array([0.0, 1e-45], np.float32)):
        assert auc(np.array([0, 1]), scores) == gauc(np.array([0, 1]), scores, np.zeros(2, int)) == 1.0


def test_gauc_ignores_rows_without_a_group():
    labels, scores, groups = draw(300, 20, 5)
    loose = np.append(labels, 1), np.append(scores, -1e9), np.append(groups, -1)
    assert gauc(*loose) == gauc(labels, scores, groups)


def test_gauc_of_one_group_is_auc():
    labels, scores, _ = draw(300, 20, 6)
    assert gauc(labels, scores, np.full(300, 9)) == auc(labels, scores)


def test_log_loss_against_sklearn():
    random = np.random.default_rng(0)
    logits = random.normal(0, 3, 1000)
    labels = random.integers(0, 2, 1000)
    expected = sklearn_log_loss(labels, 1 / (1 + np.exp(-logits)))
    assert log_loss(labels, logits) == pytest.approx(expected, rel=1e-12)
    assert log_loss(np.array([1, 0]), np.array([-2000.0, 2000.0], np.float32)) == 2000.0


def test_calibration_is_predicted_over_observed_positives():
    probabilities = np.array([0.5, 0.25, 0.75, 0.5])
    logits = np.log(probabilities / (1 - probabilities))
    assert calibration(np.array([1, 0, 0, 0]), logits) == pytest.approx(2.0, rel=1e-12)
    assert calibration(np.array([1, 0, 1, 0]), logits) == pytest.approx(1.0, rel=1e-12)
    assert calibration(np.array([1, 0]), np.array([2000.0, -2000.0], np.float32)) == 1.0
    assert np.isnan(calibration(np.zeros(4), logits))


def test_cvr_auc_against_the_ratio_of_probabilities_on_clicked_rows():
    random = np.random.default_rng(7)
    click_logits, logits = random.normal(-1, 2, (2, 500))
    clicks = random.integers(0, 2, 500)
    conversions = clicks * random.integers(0, 2, 500)
    p_ctr, p_ctcvr = 1 / (1 + np.exp(-click_logits)), 1 / (1 + np.exp(-logits))
    clicked = clicks == 1
    expected = roc_auc_score(conversions[clicked], (p_ctcvr / p_ctr)[clicked])
    assert cvr_auc(clicks, conversions, click_logits, logits) == pytest.approx(expected, abs=1e-12)
    assert expected != pytest.approx(auc(conversions, logits), abs=0.02)  # the rate over all impressions


def test_cvr_auc_of_extreme_logits_and_of_a_single_class():
    far = np.array([-1000.0, -1000.0, 5.0])  # p_ctr underflows; p_cvr = e^-2 and e^-1
    assert cvr_auc(np.ones(3), np.array([0, 1, 0]), far, np.array([-1002, -1001, -1000.0], np.float32)) == 1.0
    assert np.isnan(cvr_auc(np.array([1, 1, 0]), np.array([0, 0, 1]), np.zeros(3), np.zeros(3)))
    assert np.isnan(cvr_auc(np.zeros(2), np.zeros(2), np.zeros(2), np.zeros(2)))
    with pytest.raises(ValueError, match=r"cvr_auc: expected clicks and conversions \[n\], got \(2,\) and \(3,\)"):
        cvr_auc(np.zeros(2), np.zeros(3), np.zeros(2), np.zeros(3))


@pytest.mark.parametrize("metric", [auc, log_loss, calibration, lambda y, s: gauc(y, s, np.zeros(len(y), int))])
def test_invalid_input_raises(metric):
    with pytest.raises(ValueError, match=r"labels must be 0 or 1, got values in \[0, 2\]"):
        metric(np.array([0, 2]), np.zeros(2))
    with pytest.raises(ValueError, match="labels must be 0 or 1"):
        metric(np.array([0, 0.5]), np.zeros(2))
    with pytest.raises(ValueError, match=r"expected labels and scores \[n\], got \(2,\) and \(3,\)"):
        metric(np.zeros(2), np.zeros(3))
    with pytest.raises(ValueError, match="1 of 2 scores are nan"):
        metric(np.zeros(2), np.array([0, np.nan]))


def test_invalid_gauc_arguments_raise():
    with pytest.raises(ValueError, match=r"expected integer groups of shape \(2,\), got int64 \(3,\)"):
        gauc(np.zeros(2), np.zeros(2), np.zeros(3, int))
    with pytest.raises(ValueError, match=r"expected integer groups of shape \(2,\), got float64 \(2,\)"):
        gauc(np.zeros(2), np.zeros(2), np.zeros(2))
    with pytest.raises(ValueError, match=r"weighted_by must be .* got 'clicks'"):
        gauc(np.zeros(2), np.zeros(2), np.zeros(2), "clicks")
