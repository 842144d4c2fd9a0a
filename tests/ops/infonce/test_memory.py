"""Peak memory of the loss, measured in a process of its own: the similarities are never stored."""

import pytest

from tests.forks import Script
from tests.ops.marks import needs_extension

SCRIPT = """
import resource, torch, warnings, adaftr_fast as af
warnings.filterwarnings("ignore", r"adaftr_fast: the C\\+\\+ kernels are not built")
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
a, b = (torch.randn(B, d).requires_grad_() for _ in range(2))
tau = torch.rand(B).add_(0.05).requires_grad_()
small = torch.ones(64, 64, dtype=torch.bool)
for options in ({}, {"candidate_mask": small}):
    af.adaptive_infonce(a[:64], b[:64], tau[:64], backend=backend, **options).backward()
options = {"candidate_mask": torch.ones(B, B, dtype=torch.bool)} if masked else {}
before = peak()
for threads in (2, 64):
    torch.set_num_threads(threads)
    af.adaptive_infonce(a, b, tau, backend=backend, **options).backward()
    print(peak() - before)
"""


@pytest.mark.parametrize(
    ("backend", "rows", "masked"),
    [
        pytest.param("auto", 16_384, False, marks=needs_extension),
        pytest.param("auto", 8_192, True, marks=needs_extension),
        ("reference", 4_096, False),
    ],
)
def test_peak_memory_is_far_below_that_of_the_similarities(backend, rows, masked):
    """The matrix alone is 1,024 MiB; with the mask, which is of 64 MiB, 256 MiB. Of the smaller,
    64 MiB, plain PyTorch would store a dozen at once.
    """
    printed, error = Script(
        f"backend, B, d, masked = {backend!r}, {rows}, 32, {masked}\n{SCRIPT}"
    ).communicate()
    assert error == ""
    few, many = map(float, printed.split())
    assert few < 100
    assert many < 250
