"""Gradient clipping by the joint norm of dense parameters and embedding tables."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from adaftr_fast.ops.embedding.lookup import coalesce_gradient


@torch.no_grad()
def clip_grad_norm_(
    parameters: nn.Module | Tensor | Iterable[Tensor],
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
) -> Tensor:
    """Scales all gradients so that their joint norm is at most ``max_norm``; returns the norm before, 0-dim.

    As torch.nn.utils.clip_grad_norm_, which raises for sparse gradients.

    Args:
        parameters: a module, a parameter, or several.
        max_norm: largest norm of the result.
        norm_type: p of the p-norm; may be ``inf``.
        error_if_nonfinite: whether a norm that is not finite raises, rather than scales the gradients by it.

    Raises:
        RuntimeError: the norm is not finite, and ``error_if_nonfinite``; no gradient is scaled.
    """
    if isinstance(parameters, nn.Module):
        parameters = parameters.parameters()
    elif isinstance(parameters, Tensor):
        parameters = [parameters]
    grads = []
    for parameter in parameters:
        if parameter.grad is None:
            continue
        if parameter.grad.is_sparse:
            coalesce_gradient(parameter)  # the norm is that of the sums, not of their terms
        grads.append(parameter.grad._values() if parameter.grad.is_sparse else parameter.grad)
    total = torch.nn.utils.get_total_norm(grads, norm_type, error_if_nonfinite)
    scale = (max_norm / (total + 1e-6)).clamp(max=1.0)
    for grad in grads:
        grad.mul_(scale.to(grad.device))
    return total
