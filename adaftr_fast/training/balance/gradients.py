"""The gradient of each task, and their combination.

Shapes: T tasks, P parameters that several tasks have a gradient for, N values of a gradient, U rows of a sparse one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from adaftr_fast.ops.embedding.lookup import coalesce_gradient

Gradient = list[Tensor | None]
"""The gradient of a loss by parameter; None where it has none."""
Factors = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Maps the inner products [T, T] to the factors [T] for shared parameters, and for those of one task."""


def gradients_of(losses: Sequence[Tensor], parameters: Sequence[Tensor], average: Callable[[], None]) -> list[Gradient]:
    """Takes a backward of each loss; the parameters have no gradient before and after.

    Args:
        losses: the losses, 0-dim.
        parameters: the parameters.
        average: replaces the gradients of the parameters by their means over ranks.
    """
    found = []
    for number, loss in enumerate(losses, start=1):
        loss.backward(retain_graph=number < len(losses))
        average()
        for parameter in parameters:
            coalesce_gradient(parameter)  # so that tables have the same rows in the gradients of all losses
        found.append([parameter.grad for parameter in parameters])
        for parameter in parameters:
            parameter.grad = None
    return found


@torch.no_grad()
def combine(parameters: Sequence[Tensor], tasks: Sequence[Gradient], others: Gradient | None, factors: Factors) -> None:
    """Sets the gradient of each parameter to the sum of the tasks' gradients, multiplied by factors, and of the others.

    A parameter is shared if two or more tasks have a gradient for it that is not zero. Kernels that compute several
    towers at once return zeros for the towers that a task does not have.

    Args:
        parameters: the parameters.
        tasks: T gradients of the tasks.
        others: the gradient of the other terms of the loss.
        factors: computes the factors from the inner products of the gradients of the shared parameters.
    """
    each = {n: [gradient[n] for gradient in tasks] for n in range(len(parameters))}
    several = {n: _matrix(grads) for n, grads in each.items() if sum(grad is not None for grad in grads) > 1}
    device = parameters[0].device
    inner = [torch.zeros(len(tasks), len(tasks), dtype=torch.float64, device=device)]
    inner += [(matrix @ matrix.T).double() for matrix, _ in several.values()]
    products = torch.stack(inner)  # [P + 1, T, T]
    shared = (products.diagonal(dim1=1, dim2=2) > 0).sum(1) > 1  # [P + 1]
    of_shared, of_own = factors((products * shared[:, None, None]).sum(0))
    chosen = torch.where(shared[1:, None], of_shared, of_own)  # [P, T]
    for factor, (n, (matrix, like)) in zip(chosen.unbind(), several.items()):
        parameters[n].grad = _like(like, factor.to(matrix) @ matrix)
    for n, grads in each.items():
        for factor, grad in zip(of_own.unbind(), grads):
            if grad is not None and n not in several:
                parameters[n].grad = grad * factor.to(grad.dtype)
    for n, grad in enumerate(others or []):
        _add(parameters[n], grad)


def _matrix(grads: Gradient) -> tuple[Tensor, Tensor]:
    """Returns the values of the gradients of one parameter [T, N], zeros for None, and a gradient of their layout."""
    found = [grad for grad in grads if grad is not None]
    if not all(grad.is_sparse for grad in found):
        grads = [None if grad is None else grad.to_dense() for grad in grads]
        found = [grad for grad in grads if grad is not None]
    like = found[0]
    if like.is_sparse and not all(_same_rows(like, grad) for grad in found):
        empty = [grad * 0.0 for grad in found]  # its rows, without its values
        grads = [None if grad is None else sum(empty, grad).coalesce() for grad in grads]
        like = next(grad for grad in grads if grad is not None)
    values = [torch.zeros_like(_values(like)) if grad is None else _values(grad) for grad in grads]
    return torch.stack([each.flatten() for each in values]), like


def _same_rows(one: Tensor, other: Tensor) -> bool:
    return one._nnz() == other._nnz() and torch.equal(one._indices(), other._indices())


def _values(grad: Tensor) -> Tensor:
    return grad._values() if grad.is_sparse else grad


def _like(grad: Tensor, values: Tensor) -> Tensor:
    """Returns a gradient of the layout of ``grad`` with other values [N]."""
    values = values.view_as(_values(grad))
    if not grad.is_sparse:
        return values
    flag = grad.is_coalesced()
    return torch.sparse_coo_tensor(grad._indices(), values, grad.shape, is_coalesced=flag, check_invariants=False)


def _add(parameter: Tensor, grad: Tensor | None) -> None:
    """Adds a gradient to that of a parameter."""
    if grad is None:
        return
    mine = parameter.grad
    if mine is None:
        parameter.grad = grad
    elif mine.is_sparse and grad.is_sparse and _same_rows(mine, grad):
        mine._values().add_(grad._values())
    else:
        parameter.grad = grad + mine if mine.is_sparse else mine + grad  # torch adds sparse to dense, not the reverse
        coalesce_gradient(parameter)
