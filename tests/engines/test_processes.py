"""The engine of several processes, and calls of one thread."""

import operator

import pytest
import torch

from adaftr_fast.engines import Processes, on_one_thread
from adaftr_fast.errors import EngineError


def test_items_are_taken_when_there_is_a_place_for_them():
    finished = {}

    def numbers():
        for number in range(6):
            assert len(finished) >= number - 1  # two calls are in progress at most
            yield number

    found = Processes(2).map(on_one_thread(operator.neg), numbers(), done=finished.__setitem__)
    assert found == [0, -1, -2, -3, -4, -5]
    assert finished == dict(enumerate(found))


def test_calls_have_one_thread_and_the_working_folder_of_the_caller_and_raise_errors(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    finished = {}
    asked = ["__import__('os').getcwd()", "__import__('torch').get_num_threads()", "1 / 0"]
    with pytest.raises(ZeroDivisionError):
        Processes(1).map(on_one_thread(eval), asked, done=finished.__setitem__)
    assert finished == {0: str(tmp_path), 1: 1}


def test_a_folder_that_a_node_does_not_see_is_named(tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    step, threads = on_one_thread(abs), torch.get_num_threads()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gone").rmdir()
    try:
        with pytest.raises(EngineError, match=r"node \S+: does not see /.*gone; it must be on a file system that all"):
            step(1, lambda amount: None)
    finally:
        torch.set_num_threads(threads)
