import numpy as np
import pytest

from adaftr_fast.training.metrics import auc, calibration, cvr_auc, gauc, log_loss


def draw(rows, levels, seed, groups=7):
    """Draws labels, scores with many ties (few ``levels``), and groups, some with a
    single class.
    """
    random = np.random.default_rng(seed)
    scores = random.integers(0, levels, rows).astype(np.float32) / 3
    labels = (random.random(rows) < 0.3 + 0.1 * scores / scores.max()).astype(np.uint8)
    return labels, scores, random.zipf(1.5, rows) % groups


def weights(rows, seed, dtype=np.float64):
    """Draws weights from 0 to 4, a third of them 0; none for no type."""
    random = np.random.default_rng(seed)
    drawn = (random.random(rows) < 2 / 3) * 4 * random.random(rows)
    return None if dtype is None else drawn.astype(dtype)


def pairwise_auc(labels, scores, weight=None):
    """Compares every positive with every negative, in float64."""
    weight = np.ones(len(labels)) if weight is None else weight.astype(np.float64)
    scores = scores.astype(np.float64)
    ours = scores[labels == 1][:, None]
    theirs = scores[labels == 0]
    pairs = weight[labels == 1][:, None] * weight[labels == 0]
    return (pairs * ((ours > theirs) + 0.5 * (ours == theirs))).sum() / pairs.sum()


@pytest.mark.parametrize("dtype", [None, np.float16, np.float32, np.float64, np.int64, bool])
def test_auc_against_its_definition(dtype):
    weight = weights(300, 10, dtype)
    for levels in (2, 5, 1000):
        labels, scores, _ = draw(300, levels, 9)
        found = auc(labels, scores, weight)
        assert found == pytest.approx(pairwise_auc(labels, scores, weight), abs=1e-13)
        assert (found == pytest.approx(auc(labels, scores), abs=1e-3)) == (weight is None)


@pytest.mark.parametrize("weighted_by", ["none", "impressions"])
@pytest.mark.parametrize("dtype", [None, np.float64])
def test_gauc_against_a_loop_over_groups(weighted_by, dtype):
    weight = weights(400, 11, dtype)
    for levels in (2, 1000):
        labels, scores, groups = draw(400, levels, 3, groups=40)
        areas = []
        of_groups = []
        for group in np.unique(groups):
            mine = groups == group
            own = np.ones(mine.sum()) if weight is None else weight[mine]
            if own[labels[mine] == 1].sum() > 0 and own[labels[mine] == 0].sum() > 0:
                areas.append(pairwise_auc(labels[mine], scores[mine], own))
                of_groups.append(own.sum() if weighted_by == "impressions" else 1)
        assert len(areas) < len(np.unique(groups))  # some are skipped
        found = gauc(labels, scores, groups, weighted_by, weight)
        assert found == pytest.approx(np.average(areas, weights=of_groups), abs=1e-12)
        # rows without a group, of both classes
        loose = np.append(labels, [1, 0]), np.append(scores, [-2, -1]), np.append(groups, [-1, -1])
        assert (
            gauc(*loose, weighted_by, None if weight is None else np.append(weight, [1, 1]))
            == found
        )


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int16, np.int64])
def test_gauc_is_the_same_for_every_type_and_numbering(dtype):
    random = np.random.default_rng(4)
    scores, groups, labels = (
        random.integers(low, high, 500) for low, high in ((-30, 30), (0, 20), (0, 2))
    )
    expected = gauc(labels, scores.astype(np.float32), groups)
    # hashed; around 2^32
    for numbers in (groups, groups.astype(np.uint8), groups << 40, groups + (1 << 32) - 10):
        assert gauc(labels, scores.astype(dtype), numbers) == expected


def of_one_group(labels, scores, weight=None):
    return gauc(labels, scores, np.zeros(len(labels), int), "none", weight)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("metric", [auc, of_one_group])
def test_extreme_scores(metric, dtype):
    labels = np.array([0, 1, 1, 0])
    most = np.finfo(dtype).max
    least = np.finfo(dtype).smallest_subnormal
    assert metric(labels, np.array([-np.inf, np.inf, 2.0, -most], dtype)) == 1.0
    assert metric(labels, np.array([-0.0, 0.0, -0.0, 0.0], dtype)) == 0.5
    assert metric(labels == 1, np.array([np.inf, -np.inf, -least, least], dtype)) == 0.0
    above = np.nextafter(dtype(1), dtype(2))
    # scores that differ by one bit
    for scores in ([1, above], [-above, -1], [0, least], [least, 2 * least]):
        assert metric(labels[:2], np.array(scores, dtype)) == 1.0


@pytest.mark.parametrize("metric", [auc, of_one_group])
def test_metrics_of_a_single_class_are_nan(metric):
    assert np.isnan(metric(np.ones(3), np.arange(3)))
    assert np.isnan(metric(np.zeros(0), np.zeros(0)))
    labels = np.array([0, 1, 1, 0])
    scores = np.array([0.0, 1.0, -np.inf, np.inf])
    # rows of weight 0 have no effect
    assert metric(labels, scores, np.array([1.0, 2.0, 0, 0])) == 1.0
    assert np.isnan(metric(labels, scores, np.array([1.0, 0, 0, 1])))


def test_groups_of_a_single_class_and_rows_without_a_group_are_skipped():
    for groups in ([0, 1], [-1, -1]):
        assert np.isnan(gauc(np.array([0, 1]), np.arange(2), np.array(groups)))


def test_rounding_does_not_leave_the_range():
    labels, _, groups = draw(3000, 50, 16, groups=200)
    best = labels.astype(np.float64)
    weight = weights(3000, 17)
    assert auc(labels, best, weight) <= 1.0
    assert gauc(labels, best, groups, "none", weight) <= 1.0
    assert gauc(labels, -best, groups, "none", weight) >= 0.0


def test_log_loss_against_its_definition():
    random = np.random.default_rng(0)
    logits = random.normal(0, 3, 1000)
    labels = random.integers(0, 2, 1000)
    p = 1 / (1 + np.exp(-logits))
    for weight in (None, weights(1000, 15)):
        expected = np.average(-np.log(np.where(labels, p, 1 - p)), weights=weight)
        assert log_loss(labels, logits, weight) == pytest.approx(expected, rel=1e-12)
    assert log_loss(np.array([1, 0]), np.array([-2000.0, 2000.0], np.float32)) == 2000.0
    # rows of weight 0 have no effect
    far = np.array([-np.inf, 1.0])
    weight = np.array([0.0, 2.0])
    assert log_loss(np.ones(2), far, weight) == pytest.approx(np.log1p(np.exp(-1)), rel=1e-14)
    with pytest.raises(ValueError, match="log_loss: no rows of positive weight"):
        log_loss(np.ones(2), far, np.zeros(2))


def test_calibration_is_predicted_over_observed_positives():
    probabilities = np.array([0.5, 0.25, 0.75, 0.5])
    logits = np.log(probabilities / (1 - probabilities))
    assert calibration(np.array([1, 0, 0, 0]), logits) == pytest.approx(2.0, rel=1e-12)
    assert calibration(np.array([1, 0]), np.array([2000.0, -2000.0], np.float32)) == 1.0
    assert np.isnan(calibration(np.zeros(4), logits))


def test_cvr_auc_against_the_ratio_of_probabilities_on_clicked_rows():
    random = np.random.default_rng(7)
    click_logits, logits = random.normal(-1, 2, (2, 500))
    clicks = random.integers(0, 2, 500)
    conversions = clicks * random.integers(0, 2, 500)
    p_ctr = 1 / (1 + np.exp(-click_logits))
    p_ctcvr = 1 / (1 + np.exp(-logits))
    clicked = clicks == 1
    expected = pairwise_auc(conversions[clicked], (p_ctcvr / p_ctr)[clicked])
    assert cvr_auc(clicks, conversions, click_logits, logits) == pytest.approx(expected, abs=1e-12)
    # the rate over all impressions
    assert expected != pytest.approx(auc(conversions, logits), abs=0.02)
    far = np.array([-1000.0, -1000.0, 5.0])  # p_ctr underflows; p_cvr = e^-2 and e^-1
    assert (
        cvr_auc(np.ones(3), np.array([0, 1, 0]), far, np.array([-1002, -1001, -1000.0], np.float32))
        == 1.0
    )
    assert np.isnan(cvr_auc(np.array([1, 1, 0]), np.array([0, 0, 1]), np.zeros(3), np.zeros(3)))
    with pytest.raises(
        ValueError, match=r"cvr_auc: expected clicks and conversions \[n\], got \(2,\) and \(3,\)"
    ):
        cvr_auc(np.zeros(2), np.zeros(3), np.zeros(2), np.zeros(3))


@pytest.mark.parametrize("metric", [auc, log_loss, of_one_group])
def test_invalid_weights_raise(metric):
    for weight, message in (
        (np.ones(3), r"sample_weight must be real numbers of shape \(2,\), got float64 \(3,\)"),
        (np.array(["1", "2"]), r"sample_weight must be real numbers of shape \(2,\), got <U1"),
        (np.array([1.0, -0.5]), "1 of 2 sample weights are not finite numbers >= 0"),
        (np.array([np.nan, np.inf]), "2 of 2 sample weights are not finite"),
    ):
        with pytest.raises(ValueError, match=message):
            metric(np.array([0, 1]), np.zeros(2), weight)


@pytest.mark.parametrize("metric", [auc, log_loss, calibration, of_one_group])
def test_invalid_input_raises(metric):
    for labels, scores, message in (
        (np.array([0, 2]), np.zeros(2), r"labels must be 0 or 1, got values in \[0, 2\]"),
        (np.array([0, 0.5]), np.zeros(2), "labels must be 0 or 1"),
        (np.zeros(2), np.zeros(3), r"expected labels and scores \[n\], got \(2,\) and \(3,\)"),
        (np.zeros(2), np.array([0, np.nan]), "1 of 2 scores are nan"),
    ):
        with pytest.raises(ValueError, match=message):
            metric(labels, scores)


def test_invalid_gauc_arguments_raise():
    for groups in (np.zeros(3, int), np.zeros(2)):
        with pytest.raises(
            ValueError, match=r"integer groups of shape \(2,\), got (int64 \(3|float64 \(2),\)"
        ):
            gauc(np.zeros(2), np.zeros(2), groups)
    with pytest.raises(ValueError, match=r"weighted_by must be .* got 'clicks'"):
        gauc(np.zeros(2), np.zeros(2), np.zeros(2), "clicks")
