import pytest
import torch

from adaftr_fast.training.checkpoint.progress import RunningMean


def terms(*values, names="ab"):
    return {name: torch.tensor(value) for name, value in zip(names, values)}


def test_means_are_those_of_float64_sums():
    steps = torch.rand(1000, 2).tolist()
    means = RunningMean()
    for step in steps:
        means.add(terms(*step))
    expected = torch.tensor(steps, dtype=torch.float32).double()
    total = torch.zeros(2, dtype=torch.float64)
    for row in expected:
        total += row
    assert means.means() == dict(zip("ab", (total / 1000).tolist()))
    assert list(means.sums) == ["a", "b"]
    assert all(value.dtype == torch.float64 and value.dim() == 0 for value in means.sums.values())


def test_means_continue_from_sums_in_another_order():
    first, whole = RunningMean(), RunningMean()
    for mean in (first, whole):
        mean.add(terms(1.0, 2.0))
    resumed = RunningMean({name: value.clone() for name, value in reversed(first.sums.items())}, 1)
    for mean in (resumed, whole):
        mean.add(terms(3.0, 8.0))
    assert resumed.means() == whole.means() == {"a": 2.0, "b": 5.0}


def test_terms_are_added_by_name():
    means = RunningMean()
    means.add(terms(1.0, 2.0))
    means.add(terms(6.0, 5.0, names="ba"))
    means.add(terms(9.0, names="c"))
    assert means.means() == {"a": 2.0, "b": pytest.approx(8 / 3), "c": 3.0}


def test_no_terms():
    means = RunningMean()
    assert means.means() == {}
    means.add({})
    assert means.means() == {}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_sum_that_is_not_finite_stays_so(value):
    means = RunningMean()
    for each in (1.0, value, *[-1e30] * 50, 1e30):
        means.add(terms(each, each))
    assert not torch.tensor(list(means.means().values())).isfinite().any()


def test_the_terms_may_be_overwritten_later():
    means, term = RunningMean(), torch.tensor(1.0)
    means.add({"a": term})
    term.fill_(7.0)
    assert means.means() == {"a": 1.0}
