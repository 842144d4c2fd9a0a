"""Fixtures of the loss tests."""

import pytest

import adaftr_fast as af


@pytest.fixture(params=["generic", "avx2", "avx512", "avx512_bf16", "amx"])
def capability(request):
    """Runs the test once per instruction set that this machine supports."""
    try:
        af.set_cpu_capability(request.param)
    except RuntimeError as error:
        pytest.skip(str(error))
    yield request.param
    af.set_cpu_capability(None)
