"""The op that pools bags: strided arguments and bad input."""

import pytest
import torch

from adaftr_fast.ops.embedding.bags import embedding_bags, select_bags
from tests.tolerances import assert_same_bits

VALUES = torch.tensor([0, 9, 3, 1])
OFFSETS = torch.tensor([0, 1, 2, 4, 4])
FIELD_OFFSETS = torch.tensor([0, 4, 14])


def backward(values, offsets, per_sample_weights, field_offsets):
    grad = torch.ones((len(offsets) - 1) // 2, 6)
    return torch.ops.adaftr_fast.embedding_bags_backward(
        grad, values, offsets, per_sample_weights, field_offsets, 3, False
    )


def strided(tensor: torch.Tensor) -> torch.Tensor:
    """Returns the same numbers at a stride of 2."""
    return torch.stack([tensor, tensor + 1], 1)[:, 0]


def test_strided_arguments():
    weight = torch.randn(14, 3)
    arguments = (VALUES, OFFSETS, torch.rand(4))
    out = embedding_bags(weight, *arguments, FIELD_OFFSETS, False)
    assert torch.equal(out, embedding_bags(weight, *map(strided, arguments), FIELD_OFFSETS, False))
    contiguous = backward(*arguments, FIELD_OFFSETS)
    other = backward(*map(strided, arguments), FIELD_OFFSETS)
    assert_same_bits(contiguous, other)


def test_bad_per_sample_weights():
    weights = torch.ones(4, 1)
    message = r"embedding_bags: per_sample_weights must be .*\[4\], got"
    with pytest.raises(ValueError, match=message):
        embedding_bags(torch.randn(14, 3), VALUES, OFFSETS, weights, FIELD_OFFSETS, False)


def test_bags_of_some_fields():
    # two rows of three fields
    values = torch.tensor([7, 8, 9, 6, 5])
    offsets = torch.tensor([0, 2, 2, 3, 3, 5, 5])
    positions, starts = select_bags(values, offsets, None, [0, 2], 3)
    assert (values[positions].tolist(), starts.tolist()) == ([7, 8, 9], [0, 2, 3, 3, 3])
    torch.library.opcheck(torch.ops.adaftr_fast.select_bags, (values, offsets, None, [0, 2], 3))
    with pytest.raises(ValueError, match="offsets must rise from 0 to the number of values, 5"):
        select_bags(values, offsets[:4], None, [0], 3)
    with pytest.raises(ValueError, match="embedding_bags: fields must be >= 1, got 0"):
        select_bags(values, offsets, None, [], 0)
