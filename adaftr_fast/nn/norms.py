"""Squared L2 norms of many tensors at once."""

from collections.abc import Sequence

import torch
from torch import Tensor


def squared_norm(tensors: Sequence[Tensor], scales: Sequence[float] | None = None) -> Tensor:
    """Sum of the squares of all elements of ``tensors``, floating, of any shapes and of one dtype; 0-dim.

    Args:
        scales: one number a tensor, by which its sum is multiplied; all 1 by default.

    Raises:
        ValueError: no tensors, or not one scale for each.
    """
    if not tensors:
        raise ValueError("squared_norm: tensors must hold at least one tensor, got none")
    if scales is not None and len(scales) != len(tensors):
        raise ValueError(f"squared_norm: scales must be {len(tensors)} numbers, one a tensor, got {len(scales)}")
    return _SquaredNorm.apply([1.0] * len(tensors) if scales is None else list(scales), *tensors)


class _SquaredNorm(torch.autograd.Function):
    """One node for all tensors: recorded op by op, a step of training pays more for autograd than for the sums."""

    @staticmethod
    def forward(ctx, scales: list[float], *tensors: Tensor) -> Tensor:
        ctx.save_for_backward(*tensors)
        ctx.scales = scales
        squares = torch._foreach_pow(torch._foreach_norm(tensors), 2)
        return torch.stack(torch._foreach_mul(squares, scales)).sum()

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        factors = torch._foreach_mul([2 * grad] * len(ctx.scales), ctx.scales)
        return None, *torch._foreach_mul(ctx.saved_tensors, factors)
