"""Marks shared by the op tests."""

import pytest

import adaftr_fast as af

needs_extension = pytest.mark.skipif(af.cpu_capability() == "none", reason="the C++ extension is not built")
