"""Fixtures of the op tests."""

import pytest

import adaftr_fast as af


@pytest.fixture(params=["generic", "avx2", "avx512", "avx512_bf16", "amx", "neon", "neon_bf16"])
def instruction_set(request):
    """Runs the test once per instruction set that this machine supports; without the extension, on
    the reference.
    """
    if af.cpu_capability() == "none":
        if request.param != "generic":
            pytest.skip("the C++ extension is not built")
        yield "none"
        return
    if request.param not in af.build_info()["this machine runs"].split(", "):
        pytest.skip(f"this machine does not run {request.param}")
    af.set_cpu_capability(request.param)
    yield request.param
    af.set_cpu_capability(None)
