import warnings

import pytest
import torch

from adaftr_fast.training import spinning


@pytest.fixture
def unbounded(monkeypatch):
    """A process of two threads without a bound on spinning, in which nothing has been measured."""
    monkeypatch.setattr(spinning, "IS_BOUNDED", False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    spinning.warn_of_spinning.cache_clear()
    yield
    spinning.warn_of_spinning.cache_clear()


def test_it_warns_once_with_the_cure(unbounded, monkeypatch):
    monkeypatch.setattr(spinning, "slowdown", lambda: 700.0)
    with pytest.warns(
        RuntimeWarning,
        match="700 times slower than one thread.* set GOMP_SPINCOUNT=300 .* `adaftr-fast",
    ):
        spinning.warn_of_spinning()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        spinning.warn_of_spinning()


@pytest.mark.parametrize(
    ("is_bounded", "threads", "found"), [(True, 2, 700.0), (False, 1, 700.0), (False, 2, 4.0)]
)
def test_nothing_is_said_where_threads_do_not_spin(
    unbounded, monkeypatch, is_bounded, threads, found
):
    monkeypatch.setattr(spinning, "IS_BOUNDED", is_bounded)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(spinning, "slowdown", lambda: found)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        spinning.warn_of_spinning()


def test_the_measurement_ends():
    assert spinning.slowdown() > 0
