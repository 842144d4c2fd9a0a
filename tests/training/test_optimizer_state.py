"""The size of the tables' state, which is compared with the memory before tables are made."""

import pytest
import torch

from adaftr_fast.config import OptimizerConfig
from adaftr_fast.nn.embedding import FusedEmbedding
from adaftr_fast.training.optimizers import TABLES, build_optimizers, table_state_bytes

ROWS = [70, 30, 5]
WIDTHS = [4, 8, 4]


@pytest.mark.parametrize("kind", TABLES)
def test_size_of_the_state(kind):
    """Counts the elements of the optimizer's tensors that have one or more numbers per row."""
    table = FusedEmbedding(ROWS, WIDTHS)
    (optimizer,) = build_optimizers(table, OptimizerConfig(tables=kind))
    table(torch.zeros(2, 3, dtype=torch.int64)).sum().backward()
    optimizer.step()
    tensors = []
    for state in optimizer.state.values():
        own = getattr(state, "own", None)
        tensors += state.values() if own is None else getattr(own, "tensors", [own.moments])
    found = {value.data_ptr(): value.numel() for value in tensors if is_state(value)}
    assert 4 * sum(found.values()) == table_state_bytes(kind, ROWS, WIDTHS)


def is_state(value):
    return isinstance(value, torch.Tensor) and value.dtype.itemsize == 4 and len(value) in (75, 30)
