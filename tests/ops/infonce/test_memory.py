"""Peak memory of the loss, measured in a process of its own: the similarities are never stored."""

import pytest

from tests.forks import Script
from tests.ops.marks import needs_extension

SCRIPT = """
import resource, torch, adaftr_fast as af
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
a, b = (torch.randn(B, d).requires_grad_() for _ in range(2))
tau = torch.rand(B).add_(0.05).requires_grad_()
af.adaptive_infonce(a[:64], b[:64], tau[:64], backend=backend).backward()
before = peak()
for threads in (2, 64):
    torch.set_num_threads(threads)
    af.adaptive_infonce(a, b, tau, backend=backend).backward()
    print(peak() - before)
"""


@pytest.mark.parametrize(
    ("backend", "rows"), [pytest.param("auto", 16_384, marks=needs_extension), ("reference", 4_096)]
)
def test_peak_memory_is_far_below_that_of_the_similarities(backend, rows):
    """The matrix alone is 1,024 MiB. Of the smaller, 64 MiB, plain PyTorch would store a dozen at
    once.
    """
    printed, error = Script(f"backend, B, d = {backend!r}, {rows}, 32\n{SCRIPT}").communicate()
    assert error == ""
    few, many = map(float, printed.split())
    assert few < 100
    assert many < 250
