"""Marks and contexts shared by the op tests."""

from contextlib import contextmanager

import pytest
import torch

import adaftr_fast as af

needs_extension = pytest.mark.skipif(af.cpu_capability() == "none", reason="the C++ extension is not built")


@contextmanager
def on_threads(count):
    """Runs the block on ``count`` threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
