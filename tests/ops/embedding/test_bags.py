"""The op that pools bags: what it takes and what it refuses."""

import pytest
import torch

import adaftr_fast
from adaftr_fast.ops.embedding.bags import embedding_bags

VALUES, BAGS = torch.tensor([0, 9, 3, 1]), torch.tensor([0, 1, 2, 4, 4])
OFFSETS = torch.tensor([0, 4, 14])


def backward(values, bags, weights, offsets):
    grad = torch.ones((len(bags) - 1) // 2, 6)
    return torch.ops.adaftr_fast.embedding_bags_backward(grad, values, bags, weights, offsets, 3, False)


def spread(tensor: torch.Tensor) -> torch.Tensor:
    """The same numbers, every other one in memory."""
    return torch.stack([tensor, tensor + 1], 1)[:, 0]


def test_strided_arguments():
    weight, weights = torch.randn(14, 3), torch.rand(4)
    arguments = VALUES, BAGS, weights
    out = embedding_bags(weight, *arguments, OFFSETS, False)
    assert torch.equal(out, embedding_bags(weight, *map(spread, arguments), OFFSETS, False))
    for one, other in zip(backward(*arguments, OFFSETS), backward(*map(spread, arguments), OFFSETS), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    "offsets",
    [torch.tensor(0), torch.tensor([0]), OFFSETS[:0], OFFSETS[None], OFFSETS.int()],
    ids=["0-dim", "no field", "empty", "2-dim", "int32"],
)
def test_wrong_offsets_of_the_fields_are_named(offsets):
    message = r"the tables' offsets must be .*int64 \[F \+ 1\] of F >= 1 fields, got"
    with pytest.raises(ValueError, match="embedding_bags: " + message):
        embedding_bags(torch.randn(14, 3), VALUES, BAGS, None, offsets, False)
    with pytest.raises(ValueError, match="embedding_bags_backward: " + message):
        backward(VALUES, BAGS, None, offsets)


@pytest.mark.skipif(adaftr_fast.cpu_capability() == "none", reason="the reference reads strided offsets as they are")
def test_strided_offsets_of_the_fields_are_not_misread():
    with pytest.raises(ValueError, match=r"the tables' offsets must be contiguous .* with strides \[2\]"):
        embedding_bags(torch.randn(14, 3), VALUES, BAGS, None, spread(OFFSETS), False)


def test_wrong_weights_are_named():
    for weights in (torch.ones(3), torch.ones(4, 1), torch.ones(1)):
        with pytest.raises(ValueError, match=r"embedding_bags: weights must be .*\[4\], got"):
            embedding_bags(torch.randn(14, 3), VALUES, BAGS, weights, OFFSETS, False)
