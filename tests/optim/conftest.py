"""Fixtures of the optimizer tests: a FusedEmbedding and the same table as nn.Embedding."""

import pytest
import torch
from torch import Tensor, nn

from adaftr_fast import FusedEmbedding
from tests.ops.conftest import instruction_set  # noqa: F401  # a fixture
from tests.ops.marks import on_threads


class Pair:
    """A FusedEmbedding and an nn.Embedding with the same rows and gradients."""

    def __init__(self, sizes: list[int], width: int, dtype: torch.dtype, sparse: bool) -> None:
        self.sizes = sizes
        self.ours = FusedEmbedding(sizes, width, dtype=dtype)
        start = self.ours.weight.detach().clone()
        self.theirs = nn.Embedding.from_pretrained(start, freeze=False, sparse=sparse)

    def ids(self, batch: int) -> Tensor:
        """Returns ids that favour the first rows of each field, so that many rows skip
        many steps.
        """
        return torch.stack([(torch.rand(batch) ** 3 * n).long() for n in self.sizes], 1)

    def backward(self, ids: Tensor, scale: float = 1.0) -> None:
        rows = ids + self.ours.offsets[:-1]
        grad = torch.randn(len(ids), self.ours.out_features, dtype=self.ours.weight.dtype) * scale
        self.ours(ids).backward(grad)
        self.theirs(rows).flatten(1).backward(grad)

    def distance(self) -> float:
        """Returns the relative distance of the two tables."""
        self.ours.flush()
        ours = self.ours.weight.detach().double()
        theirs = self.theirs.weight.detach().double()
        return ((ours - theirs).norm() / theirs.norm()).item()


@pytest.fixture
def pair():
    return Pair


@pytest.fixture(autouse=True)
def one_thread():
    """Runs on one thread: in thousands of tiny steps, waking a second one would take most of the
    time.
    """
    with on_threads(1):
        yield
