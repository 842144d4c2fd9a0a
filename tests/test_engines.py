"""The engine of one process."""

import pytest
import torch

from adaftr_fast import engines
from adaftr_fast.data.parallel import ordered_map
from adaftr_fast.engines import Local, on_one_thread
from adaftr_fast.errors import EngineError


def test_results_are_in_order_and_reported():
    finished = {}
    amounts = []

    def square(number, advance):
        advance(number)
        return number * number

    found = Local().map(square, [3, 1, 2], done=finished.__setitem__, advance=amounts.append)
    assert found == [9, 1, 4]
    assert finished == {0: 9, 1: 1, 2: 4}
    assert amounts == [3, 1, 2]


def test_calls_use_as_many_threads_as_they_have_cores(monkeypatch):
    monkeypatch.setattr(engines, "_limit", None)
    available = engines.cores()
    engines.limit_cores(available + 5)
    assert engines.cores() == available
    engines.limit_cores(1)
    taken = []
    for number in ordered_map(int, (taken.append(each) or each for each in range(10)), int):
        assert len(taken) <= number + 2  # one in work and one at hand


def test_a_folder_that_a_node_does_not_see_is_named(tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    step = on_one_thread(abs)
    threads = torch.get_num_threads()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gone").rmdir()
    try:
        with pytest.raises(
            EngineError,
            match=r"node \S+: does not see /.*gone; it must be on a file system that all",
        ):
            step(1, lambda amount: None)
    finally:
        torch.set_num_threads(threads)
