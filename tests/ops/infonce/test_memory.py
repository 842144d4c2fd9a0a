"""Peak memory of the loss, measured in a process of its own: the similarities are never stored."""

from tests.forks import Script
from tests.ops.marks import needs_extension

SCRIPT = """
import resource, torch, adaftr_fast as af
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
B, d = 16384, 32
a, b = (torch.randn(B, d).requires_grad_() for _ in range(2))
tau = torch.rand(B).add_(0.05).requires_grad_()
af.adaptive_infonce(a[:64], b[:64], tau[:64]).backward()
before = peak()
for threads in (2, 64):
    torch.set_num_threads(threads)
    af.adaptive_infonce(a, b, tau).backward()
    print(peak() - before)
"""


@needs_extension
def test_peak_memory_is_far_below_that_of_the_similarities():
    """The 16,384 x 16,384 matrix alone is 1,024 MiB."""
    printed, error = Script(SCRIPT).communicate()
    assert error == ""
    few, many = map(float, printed.split())
    assert few < 100
    assert many < 250
