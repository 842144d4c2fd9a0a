import pytest
import torch

from adaftr_fast.training.checkpoint.progress import RunningMean


def terms(*values, names="ab"):
    return {name: torch.tensor(value) for name, value in zip(names, values)}


def test_means_continue_from_sums_in_another_order_by_name():
    means = RunningMean()
    term = torch.tensor(1.0)
    assert means.means() == {}
    means.add({"a": term, "b": torch.tensor(2.0)})
    term.fill_(7.0)  # the terms may be overwritten later
    saved = {name: value.clone() for name, value in reversed(means.state().items())}
    resumed = RunningMean(saved | {"model/a": term}, 1)
    for each in (resumed, means):
        each.add(terms(8.0, 3.0, names="ba"))
        assert each.means() == {"a": 2.0, "b": 5.0}
    means.add(terms(9.0, names="c"))
    assert means.means()["c"] == 3.0


def test_means_are_those_of_float64_sums():
    """A sum that is not finite stays so."""
    for value in (0.1, float("nan"), -float("inf")):
        steps = torch.tensor([1.0, value, *[-1e30] * 50, 1e30, 3.3])
        means = RunningMean()
        for step in steps:
            means.add({"a": step})
        expected = steps.double().cumsum(0)[-1].item() / len(steps)
        assert means.means()["a"] == pytest.approx(expected, rel=0, abs=0, nan_ok=True)
