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


def test_auc_of_float16_counts_its_ties():
    random = np.random.default_rng(8)
    exact = random.normal(0, 1, 2000)
    labels, scores = random.integers(0, 2, 2000), exact.astype(np.float16)  # rounding produces ties
    assert auc(labels, scores) == pytest.approx(weighted_auc(labels, scores, np.ones(2000)), abs=1e-13)
    assert auc(labels, scores) == auc(labels, scores.astype(np.float64)) != auc(labels, exact)
    assert auc(np.array([0, 1]), np.array([6e-8, 1.2e-7], np.float16)) == 1.0  # subnormal
    assert auc(np.array([0, 1]), np.array([-0.0, 0.0], np.float16)) == 0.5


def weighted_auc(labels, scores, weight):
    """Compares every positive with every negative, in float64."""
    scores, weight = scores.astype(np.float64), weight.astype(np.float64)
    ours, theirs = scores[labels == 1][:, None], scores[labels == 0]
    pairs = weight[labels == 1][:, None] * weight[labels == 0]
    return (pairs * ((ours > theirs) + 0.5 * (ours == theirs))).sum() / pairs.sum()


def weights(rows, seed, dtype=np.float64):
    """Draws weights from 0 to 4, a third of them 0."""
    random = np.random.default_rng(seed)
    return ((random.random(rows) < 2 / 3) * 4 * random.random(rows)).astype(dtype)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int64, bool])
def test_weighted_auc_against_its_definition_and_sklearn(dtype):
    weight = weights(300, 10, dtype)
    assert (weight == 0).any()
    for levels in (2, 5, 1000):
        labels, scores, _ = draw(300, levels, 9)
        found = auc(labels, scores, weight)
        assert found == pytest.approx(weighted_auc(labels, scores, weight), abs=1e-13)
        assert found == pytest.approx(roc_auc_score(labels, scores, sample_weight=weight.astype(np.float64)), abs=1e-12)
        assert found != pytest.approx(auc(labels, scores), abs=1e-3)


@pytest.mark.parametrize("weighted_by", ["none", "impressions"])
@pytest.mark.parametrize("levels", [2, 1000])
def test_weighted_gauc_against_a_loop_over_groups(levels, weighted_by):
    labels, scores, groups = draw(400, levels, 3, groups=40)
    weight = weights(400, 11)
    areas, of_groups = [], []
    for group in np.unique(groups):
        y = labels[groups == group]
        s = scores[groups == group]
        w = weight[groups == group]
        if w[y == 1].sum() > 0 and w[y == 0].sum() > 0:
            areas.append(weighted_auc(y, s, w))
            of_groups.append(w.sum() if weighted_by == "impressions" else 1)
    unweighted = sum(0 < labels[groups == g].sum() < (groups == g).sum() for g in np.unique(groups))
    assert len(areas) < unweighted  # weights of 0 leave some groups with a single class
    found = gauc(labels, scores, groups, weighted_by, weight)
    assert found == pytest.approx(np.average(areas, weights=of_groups), abs=1e-12)


@pytest.mark.parametrize("weighted_by", ["none", "impressions"])
def test_a_weight_of_k_equals_k_rows(weighted_by):
    labels, scores, groups = draw(300, 20, 12)
    counts = np.random.default_rng(13).integers(0, 4, 300)
    repeated = [np.repeat(each, counts) for each in (labels, scores, groups)]
    assert auc(labels, scores, counts) == pytest.approx(auc(*repeated[:2]), abs=1e-15)
    assert log_loss(labels, scores, counts) == pytest.approx(log_loss(*repeated[:2]), rel=1e-14)
    expected = gauc(*repeated, weighted_by)
    assert gauc(labels, scores, groups, weighted_by, counts) == pytest.approx(expected, abs=1e-14)


def test_weighted_log_loss_against_its_definition_and_sklearn():
    random = np.random.default_rng(14)
    logits = random.normal(0, 3, 1000)
    labels = random.integers(0, 2, 1000)
    weight = weights(1000, 15)
    p = 1 / (1 + np.exp(-logits))
    expected = (weight * -(labels * np.log(p) + (1 - labels) * np.log(1 - p))).sum() / weight.sum()
    assert log_loss(labels, logits, weight) == pytest.approx(expected, rel=1e-12)
    assert log_loss(labels, logits, weight) == pytest.approx(
        sklearn_log_loss(labels, p, sample_weight=weight), rel=1e-12
    )


def test_rows_of_weight_0_have_no_effect():
    labels = np.array([0, 1, 1, 0])
    scores = np.array([0.0, 1.0, -np.inf, np.inf])
    weight = np.array([1.0, 2.0, 0, 0])
    assert auc(labels, scores, weight) == gauc(labels, scores, np.zeros(4, int), "none", weight) == 1.0
    assert log_loss(labels, scores, weight) == pytest.approx((np.log(2) + 2 * np.log1p(np.exp(-1))) / 3, rel=1e-14)
    assert np.isnan(auc(labels, scores, np.array([1.0, 0, 0, 1])))
    assert np.isnan(gauc(labels, scores, np.zeros(4, int), "none", np.array([1.0, 0, 0, 1])))
    assert np.isnan(gauc(labels, scores, np.zeros(4, int), "impressions", np.array([0, 1.0, 1, 0])))
    with pytest.raises(ValueError, match="log_loss: no rows of positive weight"):
        log_loss(labels, scores, np.zeros(4))


def test_equal_weights_are_no_weights():
    labels, scores, groups = draw(3000, 50, 16, groups=200)
    weight = np.full(3000, 0.1)
    assert auc(labels, scores, weight) == pytest.approx(auc(labels, scores), abs=1e-13)
    assert log_loss(labels, scores, weight) == pytest.approx(log_loss(labels, scores), rel=1e-13)
    assert gauc(labels, scores, groups, "none", weight) == pytest.approx(gauc(labels, scores, groups), abs=1e-12)
    best = labels.astype(np.float64)
    assert auc(labels, best, weights(3000, 17)) <= 1.0  # rounding does not leave [0, 1]
    assert gauc(labels, best, groups, "none", weights(3000, 17)) <= 1.0
    assert gauc(labels, -best, groups, "none", weights(3000, 17)) >= 0.0


@pytest.mark.parametrize(
    "metric",
    [auc, log_loss, lambda y, s, w: gauc(y, s, np.zeros(len(y), int), "none", w)],
)
@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (np.ones(3), r"sample_weight must be real numbers of shape \(2,\), got float64 \(3,\)"),
        (np.ones((2, 1)), r"got float64 \(2, 1\)"),
        (np.array(["1", "2"]), r"sample_weight must be real numbers of shape \(2,\), got <U1"),
        (np.array([1.0, -0.5]), "1 of 2 sample weights are not finite numbers >= 0"),
        (np.array([np.nan, np.inf]), "2 of 2 sample weights are not finite"),
    ],
)
def test_invalid_weights_raise(metric, weight, message):
    with pytest.raises(ValueError, match=message):
        metric(np.array([0, 1]), np.zeros(2), weight)


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
