"""For every test: the same random numbers in every run; torch.empty gives NaN, so that an op that leaves part of its
output unwritten is seen; and without a GPU Triton's kernels run under its interpreter, which must be chosen before
anything imports triton."""

import os

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
