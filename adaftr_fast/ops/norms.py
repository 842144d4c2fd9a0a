"""``torch.ops.adaftr_fast.squared_norm`` and ``scaled``: many tensors in one op.

A penalty on the weights of a model is a sum over a dozen tensors, most of them small, where an op
for each costs more than its sum. ``squared_norm`` computes it, and ``scaled`` its gradient and
other gradients that are a number times tensors at hand.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from adaftr_fast._extension import has_cpp_gradients
from adaftr_fast.ops.library import define, library


def squared_norm(tensors: Sequence[Tensor], scales: Sequence[float] | None = None) -> Tensor:
    """Computes the sum of the squares of all elements of ``tensors``, 0-dim, in their dtype.

    With the C++ kernels, its bits do not depend on the number of threads.

    Args:
        tensors: floating point, of any shapes, of one dtype and on one device.
        scales: a factor of each tensor's sum. Default: 1 for all.

    Raises:
        ValueError: there are no tensors, they differ in dtype or device, or the number of scales
            differs from that of the tensors.
    """
    if not tensors:
        raise ValueError("squared_norm: tensors must hold at least one tensor, got none")
    if scales is not None and len(scales) != len(tensors):
        raise ValueError(
            f"squared_norm: scales must be {len(tensors)} numbers, one per tensor, got "
            f"{len(scales)}"
        )
    kinds = {(each.dtype, each.device) for each in tensors}
    if len(kinds) > 1:
        raise ValueError(
            f"squared_norm: tensors must share a dtype and a device, got {sorted(map(str, kinds))}"
        )
    return torch.ops.adaftr_fast.squared_norm(
        tensors, [1.0] * len(tensors) if scales is None else scales
    )


def _squared_norm(tensors: Sequence[Tensor], scales: Sequence[float]) -> Tensor:
    squares = [norm.square() for norm in torch._foreach_norm(list(tensors))]
    return torch.stack(torch._foreach_mul(squares, list(scales))).sum()


def _scaled(factor: Tensor, tensors: Sequence[Tensor], scales: Sequence[float]) -> list[Tensor]:
    """Computes the tensors times ``factor``, 0-dim, and a scale each, contiguous. It cannot be
    differentiated.
    """
    if not tensors:
        return []
    factors = torch._foreach_mul([factor] * len(scales), list(scales))
    return list(torch._foreach_mul([each.contiguous() for each in tensors], factors))


define(
    "squared_norm(Tensor[] tensors, float[] scales) -> Tensor",
    _squared_norm,
    lambda tensors, scales: tensors[0].new_empty(()),
)
define(
    "scaled(Tensor factor, Tensor[] tensors, float[] scales) -> Tensor[]",
    _scaled,
    lambda factor, tensors, scales: [each.new_empty(each.shape) for each in tensors],
)


def _setup(ctx: Any, inputs: tuple[Sequence[Tensor], Sequence[float]], output: Tensor) -> None:
    tensors, ctx.scales = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, grad: Tensor) -> tuple[Sequence[Tensor | None], None]:
    pairs = zip(ctx.saved_tensors, ctx.scales, strict=True)
    return [
        each * (grad * (2 * scale)) if each.requires_grad else None for each, scale in pairs
    ], None


if not has_cpp_gradients():  # csrc/autograd/norms.cpp registers the same formula
    torch.library.register_autograd(
        "adaftr_fast::squared_norm", _backward, setup_context=_setup, lib=library
    )
