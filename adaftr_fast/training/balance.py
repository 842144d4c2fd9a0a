"""Ways to balance the tasks: by weights of the losses, or by combining their gradients
(docs/balancing.md).

Shapes: T tasks, P parameters that several tasks have a gradient for, N values of a gradient, U rows
of a sparse one.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adaftr_fast.config import TrainingConfig
from adaftr_fast.errors import TrainingError
from adaftr_fast.models.base import MultiTaskModel
from adaftr_fast.ops.embedding.lookup import coalesce_gradient


class Balance(nn.Module):
    """Decides what each task contributes to a step.

    The stepper makes it the child ``balance`` of the model that it trains. Its tensors are then
    moved, trained, broadcast and saved in snapshots together with the model's. They are not part of
    ``state_dict()``, because checkpoints hold what predictions need.

    Only the terms of the loss that are named after tasks are balanced; the others keep the weights
    that they have.

    Args:
        task_names: T names.
    """

    def __init__(self, task_names: Sequence[str]) -> None:
        super().__init__()
        self.task_names = list(task_names)

    def split(self, terms: Mapping[str, Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Returns the losses of the tasks, and the other terms.

        Raises:
            TrainingError: a task has no term.
        """
        for task in self.task_names:
            if task not in terms:
                raise TrainingError(
                    f"training.balance: expected a term of the loss for the task {task!r}, got "
                    f"{', '.join(terms)}"
                )
        others = [term for name, term in terms.items() if name not in self.task_names]
        return [terms[task] for task in self.task_names], others

    def task_weights(self) -> Tensor | None:
        """Returns the learned weights of the tasks' losses, detached [T]; None if there
        are none.
        """
        return None

    def named_weights(self) -> dict[str, Tensor]:
        """Returns ``task_weights`` as ``weight/<task>``, 0-dim each."""
        weights = self.task_weights()
        if weights is None:
            return {}
        return {f"weight/{t}": each for t, each in zip(self.task_names, weights.unbind())}

    def after_update(self) -> None:
        """Runs after each update by the optimizers."""

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        pass

    def _load_from_state_dict(self, *_: Any) -> None:
        pass


class GradientBalance(Balance, ABC):
    """A balance that combines the gradients of the tasks, each from a backward of its own.

    What it does to a gradient is a factor per task, so a step adds up multiples of the T gradients.
    """

    @abstractmethod
    def factors(self, products: Tensor, losses: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Returns the factors of the tasks' gradients [T]: of shared parameters, and of those that
        one task has.

        Args:
            products: the inner products of the gradients of the shared parameters, float64 [T, T].
            losses: the losses [T].
            step: number of the step, counted from 1 over all epochs.
        """

    def backward(
        self,
        terms: Mapping[str, Tensor],
        parameters: Sequence[Tensor],
        step: int,
        average: Callable[[Tensor], Tensor],
    ) -> dict[str, Tensor]:
        """Takes a backward of each task's loss and of the other terms, and combines the gradients.
        The parameters have no gradient before.

        Args:
            terms: the terms of the loss, 0-dim.
            parameters: the parameters.
            step: as of ``factors``.
            average: replaces the gradients of the parameters by their means over ranks, and returns
                the means of what it takes.

        Returns:
            The means of the terms over ranks.
        """
        losses, others = self.split(terms)
        parts = [*losses, torch.stack(others).sum()] if others else losses
        values = torch.stack(tuple(terms.values())).detach()
        gradients = []
        for number, loss in enumerate(parts, start=1):
            loss.backward(retain_graph=number < len(parts))
            means = dict(zip(terms, average(values)))  # the same after each backward
            for parameter in parameters:
                # so that tables have the same rows in the gradients of all losses
                coalesce_gradient(parameter)
            gradients.append([parameter.grad for parameter in parameters])
            for parameter in parameters:
                parameter.grad = None
        self._combine(parameters, gradients, torch.stack(self.split(means)[0]), step)
        return means

    @torch.no_grad()
    def _combine(
        self,
        parameters: Sequence[Tensor],
        gradients: Sequence[Sequence[Tensor | None]],
        losses: Tensor,
        step: int,
    ) -> None:
        """Sets the gradient of each parameter to the sum of the tasks' gradients, multiplied by
        factors, and of the last one, of the other terms.

        A parameter is shared if two or more tasks have a gradient for it that is not zero. Kernels
        that compute several towers at once return zeros for the towers that a task does not have.
        Of parameters that only one task has, such as the tables of single towers, no matrix of all
        gradients is formed.
        """
        tasks = len(losses)
        found = {}
        inner = [torch.zeros(tasks, tasks, dtype=torch.float64, device=losses.device)]
        for n, grads in enumerate(zip(*gradients)):
            if sum(grad is not None for grad in grads[:tasks]) > 1:
                matrix, like = _matrix(grads)
                found[n] = (matrix, like)
                inner.append((matrix[:tasks] @ matrix[:tasks].T).double())
        products = torch.stack(inner)  # [P + 1, T, T]
        shared = (products.diagonal(dim1=1, dim2=2) > 0).sum(1) > 1  # [P + 1]
        factors = self.factors((products * shared[:, None, None]).sum(0), losses, step)
        others = len(gradients) - tasks
        of_shared, of_own = (F.pad(each, (0, others), value=1.0) for each in factors)
        chosen = torch.where(shared[1:, None], of_shared, of_own)  # a row per matrix
        for factor, (n, (matrix, like)) in zip(chosen.unbind(), found.items()):
            parameters[n].grad = _like(like, factor.to(matrix) @ matrix)
        for n, grads in enumerate(zip(*gradients)):
            if n in found:
                continue
            terms = [g * f.to(g.dtype) for f, g in zip(of_own.unbind(), grads) if g is not None]
            if terms:
                parameters[n].grad = functools.reduce(_added, terms)
                coalesce_gradient(parameters[n])


NAME = "balance"  # of the child of the model


def build_balance(config: TrainingConfig, model: MultiTaskModel) -> Balance | None:
    """Returns the balance ``config.balance`` of the tasks of ``model``; None for "none".

    Raises:
        TrainingError: the model has an attribute of the name that the balance takes.
    """
    if config.balance != "none" and not isinstance(getattr(model, NAME, None), Balance | None):
        raise TrainingError(
            f"training.balance: {type(model).__name__} has an attribute {NAME!r} of its own; give "
            "it another name"
        )
    # of learned weights: float64 for a model in float64, else float32
    dtype = torch.promote_types(next(model.parameters()).dtype, torch.float32)
    match config.balance:
        case "uncertainty":
            return UncertaintyWeights(model.task_names, dtype)
        case "pcgrad":
            return PCGrad(model.task_names, config.seed)
        case "gradnorm":
            return GradNorm(model.task_names, config.gradnorm_alpha, dtype)
    return None


class UncertaintyWeights(Balance):
    """Weights each task's loss by a learned precision (Kendall et al., CVPR'18).

        L = sum_t (exp(-s_t) L_t + s_t / 2),  s_t = log sigma_t^2

    This is Eq. 10 of the paper for classification, whose terms are L_t / sigma_t^2 + log sigma_t. A
    cross-entropy scaled by 1 / sigma^2 is the likelihood of a sigmoid with temperature sigma^2, up
    to the paper's approximation. s_t starts at 0, which weights all tasks equally, and the
    optimizer of the dense weights updates it.

    Args:
        task_names: T names.
        dtype: dtype of s.
    """

    def __init__(self, task_names: Sequence[str], dtype: torch.dtype = torch.float32) -> None:
        super().__init__(task_names)
        self.log_variances = nn.Parameter(torch.zeros(len(self.task_names), dtype=dtype))

    def total(self, terms: Mapping[str, Tensor], share: float) -> Tensor:
        """Returns the loss to minimize, 0-dim.

        Args:
            terms: the terms of the loss, 0-dim; those of a part of the batch are multiplied by
                ``share``.
            share: share of the part in the batch.
        """
        losses, others = self.split(terms)
        weighted = torch.dot(
            (-self.log_variances).exp(), torch.stack(losses).to(self.log_variances)
        )
        total = weighted + share / 2 * self.log_variances.sum()
        return total + torch.stack(others).sum() if others else total

    def task_weights(self) -> Tensor:
        return (-self.log_variances.detach()).exp()


class PCGrad(GradientBalance):
    """Removes from each task's gradient the component against another's (Yu et al., NeurIPS'20,
    Algorithm 1).

        g_i <- g_i - (g_i . g_j) / |g_j|^2 g_j    if g_i . g_j < 0, for all j != i in random order

    where g_j is the original gradient of task j. The update is the sum of the g_i. It applies to
    the shared parameters, embedding tables included. Every g_i is a linear combination of the
    original gradients, so the inner products of these suffice to compute its coefficients.

    The order is a function of (seed, step), so a run resumes with the same bits.

    Args:
        task_names: T names.
        seed: the seed of the orders.
    """

    def __init__(self, task_names: Sequence[str], seed: int) -> None:
        super().__init__(task_names)
        self.seed = seed

    def factors(self, products: Tensor, losses: Tensor, step: int) -> tuple[Tensor, Tensor]:
        unit = torch.eye(len(products), dtype=products.dtype, device=products.device)
        rows = []
        # row: g_i as a combination of the original gradients
        for row, order in zip(unit, self.orders(step)):
            for j in order:
                inner = row @ products[:, j]
                removed = torch.where(inner < 0, inner / products[j, j], 0.0)
                row = row - removed * unit[j]
            rows.append(row)
        return torch.stack(rows).sum(0), torch.ones_like(rows[0])

    def orders(self, step: int) -> list[list[int]]:
        """Returns for each task the order of the other tasks."""
        random = np.random.default_rng([self.seed, step])
        tasks = len(self.task_names)
        return [[j for j in random.permutation(tasks).tolist() if j != i] for i in range(tasks)]


class GradNorm(GradientBalance):
    """Learns weights w_t at which the tasks train at similar rates (Chen et al., ICML'18, Algorithm
    1).

        G_t = |grad_W w_t L_t|,  r_t = (L_t / L_t(0)) / mean(L / L(0))                 (Section 3.1)
        L_grad = sum_t |G_t - mean(G) r_t^alpha|                                        (Eq. 2)

    The target mean(G) r_t^alpha counts as constant, so L_grad has the gradient sign(G_t - target)
    |grad_W L_t| in w_t. After each update w is scaled to the sum T.

    W are all shared parameters, embedding tables included; the paper takes the last shared layer,
    which a model here does not name. L_t(0) is the first loss of the task that is above 0; until
    then the task is left out of both means, and its weight has the gradient 0. The optimizer of the
    dense weights updates w, and w is clamped to at least 0.

    Args:
        task_names: T names.
        alpha: strength of the pull towards a common rate.
        dtype: dtype of w.
    """

    initial: Tensor

    def __init__(
        self, task_names: Sequence[str], alpha: float, dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__(task_names)
        self.alpha = alpha
        self.weights = nn.Parameter(torch.ones(len(self.task_names), dtype=dtype))
        self.register_buffer("initial", torch.full_like(self.weights.detach(), torch.nan))  # L(0)

    @torch.no_grad()
    def factors(self, products: Tensor, losses: Tensor, step: int) -> tuple[Tensor, Tensor]:
        losses = losses.to(self.initial)
        self.initial.copy_(torch.where(~(self.initial > 0) & (losses > 0), losses, self.initial))
        started = self.initial > 0  # not NaN
        norms = products.diagonal().clamp_min(0).sqrt().to(self.weights)
        weighted = torch.where(started, self.weights * norms, torch.nan)  # G
        rates = torch.where(started, losses / self.initial, torch.nan)
        mean_rate = rates.nanmean().clamp_min(torch.finfo(rates.dtype).tiny)  # 0 if all losses are
        target = weighted.nanmean() * (rates / mean_rate) ** self.alpha
        self.weights.grad = torch.where(started, (weighted - target).sign() * norms, 0.0)
        weights = self.task_weights()
        return weights, weights

    @torch.no_grad()
    def after_update(self) -> None:
        self.weights.clamp_(min=0)
        total = self.weights.sum()
        scaled = self.weights / total * len(self.task_names)
        # equal weights if the optimizer made all 0
        self.weights.copy_(torch.where(total > 0, scaled, 1.0))

    def task_weights(self) -> Tensor:
        return self.weights.detach().clone()


def _matrix(grads: Sequence[Tensor | None]) -> tuple[Tensor, Tensor]:
    """Returns the values of the gradients of one parameter, a row each with N values, zeros for
    None, and a gradient of their layout.
    """
    found = [grad for grad in grads if grad is not None]
    if not all(grad.is_sparse for grad in found):
        grads = [None if grad is None else grad.to_dense() for grad in grads]
    elif not all(torch.equal(found[0]._indices(), grad._indices()) for grad in found):
        empty = [grad * 0.0 for grad in found]  # its rows, without its values
        grads = [None if grad is None else sum(empty, grad).coalesce() for grad in grads]
    like = next(grad for grad in grads if grad is not None)
    absent = torch.zeros_like(_values_of(like))
    values = [absent if grad is None else _values_of(grad) for grad in grads]
    return torch.stack([each.flatten() for each in values]), like


def _added(mine: Tensor, other: Tensor) -> Tensor:
    """Returns the sum of two gradients, which may take the place of the first one."""
    if mine.is_sparse and other.is_sparse and torch.equal(mine._indices(), other._indices()):
        mine._values().add_(other._values())
        return mine
    # torch adds sparse to dense, not the reverse
    return other + mine if mine.is_sparse else mine + other


def _values_of(grad: Tensor) -> Tensor:
    return grad._values() if grad.is_sparse else grad


def _like(grad: Tensor, values: Tensor) -> Tensor:
    """Returns a gradient of the layout of ``grad`` with other values [N]."""
    values = values.view_as(_values_of(grad))
    if not grad.is_sparse:
        return values
    flag = grad.is_coalesced()
    return torch.sparse_coo_tensor(
        grad._indices(), values, grad.shape, is_coalesced=flag, check_invariants=False
    )
