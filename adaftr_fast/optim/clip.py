"""Clips the gradients of tables and other parameters, by their joint norm or by value.

As torch.nn.utils, which raises for sparse gradients, and for sharded ones beside others.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn

from adaftr_fast.ops.embedding.lookup import coalesce_gradient
from adaftr_fast.optim.base import check_at_least_0

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
        parameters: a module, a parameter, or several parameters.
        max_norm: largest norm of the result, >= 0.
        norm_type: p > 0 of the p-norm; may be ``inf``.
        error_if_nonfinite: whether a norm that is not finite raises, rather than scales the
            gradients by it.
        foreach: as in torch.nn.utils.clip_grad_norm_, for the norms.

    Raises:
        RuntimeError: the norm is not finite, and ``error_if_nonfinite``; no gradient is scaled.
        TypeError: ``parameters`` holds something else.
        ValueError: ``max_norm`` or ``norm_type`` is out of range.
    """
    check_at_least_0("clip_grad_norm_", max_norm=float(max_norm))
    norm_type = float(norm_type)
    if not norm_type > 0:
        raise ValueError(f"clip_grad_norm_: norm_type must be > 0, got {norm_type}")
    by_layout: dict[Any, list[Tensor]] = {}
    for grad in _gradients("clip_grad_norm_", parameters):
        layout = (grad.device_mesh, grad.placements) if _is_distributed(grad) else None
        by_layout.setdefault(layout, []).append(_local(grad))
    norms = [_norm(grads, layout, norm_type, foreach) for layout, grads in by_layout.items()]
    total = norms[0] if len(norms) == 1 else torch.nn.utils.get_total_norm(norms, norm_type)
    if error_if_nonfinite and not total.isfinite():
        raise RuntimeError(
            f"clip_grad_norm_: the norm of order {norm_type} of the gradients must be finite, got "
            f"the non-finite {total.item()}; error_if_nonfinite=False scales the gradients by it"
        )
    scale = (max_norm / (total + 1e-6)).clamp(max=1.0)
    for grads in by_layout.values():
        for grad in grads:
            grad.mul_(scale.to(grad.device))
    return total


@torch.no_grad()
def clip_grad_value_(
    parameters: Parameters, clip_value: float, foreach: bool | None = None
) -> None:
    """Limits every element of all gradients to [-clip_value, clip_value].

    Args:
        parameters: a module, a parameter, or several parameters.
        clip_value: largest absolute value of the result, >= 0.
        foreach: is taken as torch.nn.utils.clip_grad_value_ takes it, and changes nothing.

    Raises:
        TypeError: ``parameters`` holds something else.
        ValueError: ``clip_value`` is out of range.
    """
    check_at_least_0("clip_grad_value_", clip_value=float(clip_value))
    for grad in _gradients("clip_grad_value_", parameters):
        _local(grad).clamp_(-clip_value, clip_value)


def _gradients(name: str, parameters: Parameters) -> list[Any]:
    """Returns the gradients, of a sparse one the values of its distinct rows. What they are sums of
    is summed before: the terms of a row, and those of several ranks.
    """
    if isinstance(parameters, nn.Module):
        parameters = parameters.parameters()
    elif isinstance(parameters, Tensor):
        parameters = [parameters]
    grads = []
    for parameter in parameters:
        if not isinstance(parameter, Tensor):
            raise TypeError(
                f"{name}: parameters must be a module, a parameter, or several parameters, got a "
                f"{type(parameter).__name__} among them"
            )
        grad: Any = parameter.grad
        if grad is None:
            continue
        if grad.is_sparse:
            coalesce_gradient(parameter)
            grad = cast(Tensor, parameter.grad)._values()
        elif _is_distributed(grad) and any(each.is_partial() for each in grad.placements):
            from torch.distributed.tensor import Replicate  # takes long to import

            whole = [Replicate() if each.is_partial() else each for each in grad.placements]
            grad = parameter.grad = grad.redistribute(placements=whole)
        grads.append(grad)
    return grads


def _norm(grads: list[Tensor], layout: Any, norm_type: float, foreach: bool | None) -> Tensor:
    """Returns the norm of gradients, of which this rank holds ``grads``; it is the same on all
    ranks of their mesh.

    Args:
        grads: what this rank holds.
        layout: the mesh and placements of the whole gradients, None where ``grads`` are whole.
        norm_type: p of the p-norm.
        foreach: see ``clip_grad_norm_``.
    """
    # a tensor without elements has no norm of order inf
    some = [grad if grad.numel() else grad.new_zeros(1) for grad in grads]
    own = torch.nn.utils.get_total_norm(some, norm_type, foreach=foreach)
    if layout is None:
        return own
    from torch.distributed.tensor import DTensor, Shard  # takes long to import

    mesh, placements = layout
    of_ranks = [Shard(0) if each.is_shard() else each for each in placements]
    norms: Any = DTensor.from_local(own[None], mesh, of_ranks, run_check=False)
    total: Tensor = torch.linalg.vector_norm(norms.full_tensor(), norm_type)
    return total


def _is_distributed(grad: Tensor) -> bool:
    """Returns whether the gradient is a DTensor."""
    return hasattr(grad, "placements")


def _local(grad: Any) -> Tensor:
    """Returns what this rank holds of a gradient."""
    own: Tensor = grad.to_local() if _is_distributed(grad) else grad
    return own
