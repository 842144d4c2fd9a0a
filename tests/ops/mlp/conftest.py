"""Fixtures of the tests of dense layers and mixtures."""

import pytest

import adaftr_fast as af


@pytest.fixture(params=["generic", "avx2", "avx512", "avx512_bf16"])  # amx uses the kernels of avx512_bf16
def instruction_set(request):
    """Runs the test once per instruction set that this machine supports."""
    if af.cpu_capability() == "none":
        pytest.skip("the C++ extension is not built")
    try:
        af.set_cpu_capability(request.param)
    except RuntimeError:
        pytest.skip(f"this machine does not support {request.param}")
    yield request.param
    af.set_cpu_capability(None)
