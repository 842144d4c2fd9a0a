"""The squared L2 norm of many tensors."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def squared_norm(tensors: Sequence[Tensor], scales: Sequence[float] | None = None) -> Tensor:
    """Computes the sum of the squares of all elements of ``tensors``, 0-dim.

    Args:
        tensors: floating point, of any shapes and of one dtype.
        scales: a factor of each tensor's sum. Default: 1 for all.

    Raises:
        ValueError: there are no tensors, or the number of scales differs from that of the tensors.
    """
    if not tensors:
        raise ValueError("squared_norm: tensors must hold at least one tensor, got none")
    if scales is not None and len(scales) != len(tensors):
        raise ValueError(f"squared_norm: scales must be {len(tensors)} numbers, one per tensor, got {len(scales)}")
    norm: Tensor = _SquaredNorm.apply([1.0] * len(tensors) if scales is None else list(scales), *tensors)
    return norm


class _SquaredNorm(torch.autograd.Function):
    """Records one autograd node for all tensors, because a node per op costs more in a training step than the sums."""

    @staticmethod
    def forward(ctx: Any, scales: list[float], *tensors: Tensor) -> Tensor:
        ctx.save_for_backward(*tensors)
        ctx.scales = scales
        norms = torch.stack(torch._foreach_norm(tensors))
        return (norms.square() * norms.new_tensor(scales)).sum()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if len(set(ctx.scales)) == 1 and not torch.is_grad_enabled():  # one op per tensor rather than three
            return None, *torch._foreach_mul(ctx.saved_tensors, 2 * ctx.scales[0] * grad)
        factors = torch._foreach_mul([2 * grad] * len(ctx.scales), ctx.scales)
        return None, *torch._foreach_mul(ctx.saved_tensors, factors)
