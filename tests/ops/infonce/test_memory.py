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
    af.adaptive_infonce(a[:64], b[:64], tau[:64], **options).backward()
options = {"candidate_mask": torch.ones(B, B, dtype=torch.bool)} if masked else {}
before = peak()
for threads in counts:
    torch.set_num_threads(threads)
    af.adaptive_infonce(a, b, tau, **options).backward()
    print(peak() - before)
"""


@pytest.mark.parametrize(
    ("rows", "masked", "counts"),
    [pytest.param(16_384, False, (2, 64), marks=needs_extension), (6_144, True, (2,))],
)
def test_peak_memory_is_far_below_that_of_the_similarities(rows, masked, counts):
    """The matrix alone is 1,024 MiB; with the mask, which is of 36 MiB, 144 MiB, of which plain
    PyTorch would store a dozen at once. Each thread of the kernel has memory of its own.
    """
    printed, error = Script(
        f"B, d, masked, counts = {rows}, 32, {masked}, {counts}\n{SCRIPT}"
    ).communicate()
    assert error == ""
    for found, bound in zip(map(float, printed.split()), (100, 250)):
        assert found < bound
