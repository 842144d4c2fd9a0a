"""Clips the gradients of tables and other parameters, by their joint norm or by value.

As torch.nn.utils, which raises for sparse gradients, and for sharded ones beside others.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from adaftr_fast.ops.embedding.lookup import coalesce_gradient

Parameters = nn.Module | Tensor | Iterable[Tensor]


@torch.no_grad()
def clip_grad_norm_(
    parameters: Parameters,
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
) -> Tensor:
    """Scales all gradients so that their joint norm is at most ``max_norm``; returns the norm
    before, 0-dim.

    Gradients of layers that fully_shard has sharded are DTensors. They count as a whole, so every
    rank must call this, and gets the same norm where the other gradients are equal on all ranks.

    Args:
        parameters: a module, a parameter, or several.
        max_norm: largest norm of the result.
        norm_type: p of the p-norm; may be ``inf``.
        error_if_nonfinite: whether a norm that is not finite raises, rather than scales the
            gradients by it.
        foreach: as in torch.nn.utils.clip_grad_norm_, for the norms.

    Raises:
        RuntimeError: the norm is not finite, and ``error_if_nonfinite``; no gradient is scaled.
    """
    by_mesh: dict[Any, list[Tensor]] = {None: []}
    for grad in _gradients(parameters):
        by_mesh.setdefault(getattr(grad, "device_mesh", None), []).append(grad)
    norms = [
        _full(torch.nn.utils.get_total_norm(grads, norm_type, foreach=foreach))
        for grads in by_mesh.values()
        if grads
    ]
    total = norms[0] if len(norms) == 1 else torch.nn.utils.get_total_norm(norms, norm_type)
    if error_if_nonfinite and not total.isfinite():
        raise RuntimeError(
            f"clip_grad_norm_: the norm of order {norm_type} of the gradients must be finite, got "
            f"the non-finite {total.item()}; error_if_nonfinite=False scales the gradients by it"
        )
    scale = (max_norm / (total + 1e-6)).clamp(max=1.0)
    for grads in by_mesh.values():
        for grad in grads:
            _local(grad).mul_(scale.to(grad.device))
    return total


@torch.no_grad()
def clip_grad_value_(
    parameters: Parameters, clip_value: float, foreach: bool | None = None
) -> None:
    """Limits every element of all gradients to [-clip_value, clip_value].

    Args:
        parameters: a module, a parameter, or several.
        clip_value: largest absolute value of the result.
        foreach: is taken as torch.nn.utils.clip_grad_value_ takes it, and changes nothing.
    """
    for grad in _gradients(parameters):
        _local(grad).clamp_(-clip_value, clip_value)


def _gradients(parameters: Parameters) -> list[Tensor]:
    """Returns the gradients that are not empty; of a sparse one the values of its distinct rows."""
    if isinstance(parameters, nn.Module):
        parameters = parameters.parameters()
    elif isinstance(parameters, Tensor):
        parameters = [parameters]
    grads = []
    for parameter in parameters:
        if parameter.grad is None:
            continue
        if parameter.grad.is_sparse:
            coalesce_gradient(parameter)  # clips sums, not their terms
        grads.append(parameter.grad._values() if parameter.grad.is_sparse else parameter.grad)
    return [grad for grad in grads if grad.numel() > 0]  # which have no norm of order inf


def _full(norm: Any) -> Tensor:
    """Returns the norm of DTensors as a tensor, which is the same on all ranks."""
    whole: Tensor = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
    return whole


def _local(grad: Any) -> Tensor:
    """Returns what this rank holds of a gradient."""
    own: Tensor = grad.to_local() if hasattr(grad, "to_local") else grad
    return own
