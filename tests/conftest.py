"""For every test: the same random numbers in every run; torch.empty gives NaN, so that an op that
leaves part of its output unwritten is seen; Ctrl-C raises KeyboardInterrupt; threads that wait for
work sleep; and without a GPU Triton's kernels run under its interpreter. The last two must be
chosen before anything imports torch or triton.
"""

import os
import signal

# A shell starts jobs in the background with SIGINT ignored, and their processes inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Workers of pytest-xdist share the cores: a thread that spins while it waits takes its core from
# another worker.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture(autouse=True, scope="session")
def fill_uninitialized_memory():
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)
