"""torch.empty gives NaN in every test, so that an op that leaves part of its output unwritten is seen."""

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def fill_uninitialized_memory():
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
