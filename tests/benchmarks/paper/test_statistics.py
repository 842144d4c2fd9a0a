import math

import pytest

from benchmarks.paper.results import holm, paired, summarize


def test_mean_and_standard_deviation_by_hand():
    spread = summarize([1.0, 2.0, 6.0])
    assert (spread.mean, spread.count) == (3.0, 3)
    assert spread.std == pytest.approx(math.sqrt(7))  # (4 + 1 + 9) / (3 - 1)
    assert math.isnan(summarize([5.0]).std)
    assert math.isnan(summarize([]).mean)


def test_paired_test_by_hand():
    # differences 1, 2, 3: t = 2 / (1 / sqrt 3) = 2 sqrt 3 with 2 degrees of freedom, p = 1 - t /
    # sqrt(2 + t^2)
    difference = paired([2.0, 4.0, 3.0], [1.0, 2.0, 0.0])
    assert (difference.mean, difference.std, difference.higher, difference.pairs) == (
        2.0,
        1.0,
        3,
        3,
    )
    t = 2 * math.sqrt(3)
    assert difference.p == pytest.approx(1 - t / math.sqrt(2 + t * t))
    assert not difference.significant  # p = .0742
    with pytest.raises(ValueError, match="got 2 and 1"):
        paired([1.0, 2.0], [1.0])


def test_holm_by_hand():
    # in order .01, .03, .04: 3 x .01, 2 x .03, and 1 x .04, which must not be below the one before
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    found = holm([math.nan, 0.02])
    assert math.isnan(found[0])
    assert found[1] == 0.02
    assert holm([]) == []


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [([1.0], [2.0]), ([], []), ([1.0, 2.0], [1.5, 2.5]), ([0.1 + 0.2, 0.6], [0.2, 0.5])],
)
def test_an_undefined_test_is_not_significant(ours, theirs):
    difference = paired(ours, theirs)
    assert math.isnan(difference.p)
    assert not difference.significant
