"""Squared L2 norms of many tensors at once."""

from collections.abc import Sequence

import torch
from torch import Tensor


def squared_norm(tensors: Sequence[Tensor]) -> Tensor:
    """Sum of the squares of all elements of ``tensors``, floating, of any shapes and of one dtype; 0-dim.

    Raises:
        ValueError: no tensors.
    """
    if not tensors:
        raise ValueError("squared_norm: tensors must hold at least one tensor, got none")
    return _SquaredNorm.apply(*tensors)


class _SquaredNorm(torch.autograd.Function):
    """One node for all tensors: recorded op by op, a step of training pays more for autograd than for the sums."""

    @staticmethod
    def forward(ctx, *tensors: Tensor) -> Tensor:
        ctx.save_for_backward(*tensors)
        return torch.stack(torch._foreach_norm(tensors)).square().sum()

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, ...]:
        twice = 2 * grad
        return tuple(twice * each for each in ctx.saved_tensors)
