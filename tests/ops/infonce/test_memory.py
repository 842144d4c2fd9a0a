"""Peak memory of the loss, measured in a subprocess: the similarities are never stored."""

import subprocess
import sys

import pytest

from tests.ops.marks import needs_extension

SCRIPT = """
import resource, sys, torch, adaftr_fast as af
torch.set_num_threads(int(sys.argv[1]))
B, d = 16384, 32
a, b = (torch.randn(B, d).requires_grad_() for _ in range(2))
tau = torch.rand(B).add_(0.05).requires_grad_()
af.adaptive_infonce(a[:64], b[:64], tau[:64]).backward()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
af.adaptive_infonce(a, b, tau).backward()
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@needs_extension
@pytest.mark.parametrize(("threads", "bound"), [(2, 100), (64, 250)])
def test_peak_memory_is_far_below_that_of_the_similarities(threads, bound):
    command = [sys.executable, "-c", SCRIPT, str(threads)]
    added = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert added < bound, f"{added:.0f} MiB added; the 16,384 x 16,384 matrix alone is 1,024 MiB"
