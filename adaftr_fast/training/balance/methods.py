"""The ways to balance tasks, and the choice of one. Shapes: T tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from adaftr_fast.config import TrainingConfig
from adaftr_fast.errors import TrainingError
from adaftr_fast.models.base import MultiTaskModel
from adaftr_fast.training.balance.base import Balance, GradientBalance, LossBalance, tensor_dtype

NAME = "balance"  # of the child of the model


def build_balance(config: TrainingConfig, model: MultiTaskModel) -> Balance | None:
    """Returns the balance ``config.balance`` of the tasks of ``model``; None for "none".

    Raises:
        TrainingError: the model has an attribute of the name that the balance takes.
    """
    if config.balance != "none" and not isinstance(getattr(model, NAME, None), Balance | None):
        raise TrainingError(
            f"training.balance: {type(model).__name__} has an attribute {NAME!r} of its own; give it another name"
        )
    match config.balance:
        case "uncertainty":
            return UncertaintyWeights(model.task_names, tensor_dtype(model))
        case "pcgrad":
            return PCGrad(model.task_names, config.seed)
        case "gradnorm":
            return GradNorm(model.task_names, config.gradnorm_alpha, tensor_dtype(model))
    return None


class UncertaintyWeights(LossBalance):
    """Weights each task's loss by a learned precision (Kendall et al., CVPR'18).

        L = sum_t (exp(-s_t) L_t + s_t / 2),  s_t = log sigma_t^2

    This is Eq. 10 of the paper for classification, whose terms are L_t / sigma_t^2 + log sigma_t. A cross-entropy
    scaled by 1 / sigma^2 is the likelihood of a sigmoid with temperature sigma^2, up to the paper's approximation.
    s_t starts at 0, which weights all tasks equally, and the optimizer of the dense weights updates it.

    Args:
        task_names: T names.
        dtype: dtype of s.
    """

    def __init__(self, task_names: Sequence[str], dtype: torch.dtype = torch.float32) -> None:
        super().__init__(task_names)
        self.log_variances = nn.Parameter(torch.zeros(len(self.task_names), dtype=dtype))

    def total(self, terms: Mapping[str, Tensor], share: float) -> Tensor:
        losses, others = self.split(terms)
        weighted = torch.dot((-self.log_variances).exp(), torch.stack(losses).to(self.log_variances))
        total = weighted + share / 2 * self.log_variances.sum()
        return total + torch.stack(others).sum() if others else total

    def task_weights(self) -> Tensor:
        return (-self.log_variances.detach()).exp()


class PCGrad(GradientBalance):
    """Removes from each task's gradient the component against another's (Yu et al., NeurIPS'20, Algorithm 1).

        g_i <- g_i - (g_i . g_j) / |g_j|^2 g_j    if g_i . g_j < 0, for all j != i in random order

    where g_j is the original gradient of task j. The update is the sum of the g_i. It applies to the shared parameters,
    embedding tables included. Every g_i is a linear combination of the original gradients, so the inner products of
    these suffice to compute its coefficients.

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
        for row, order in zip(unit, self.orders(step)):  # row: g_i as a combination of the original gradients
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
    """Learns weights w_t at which the tasks train at similar rates (Chen et al., ICML'18, Algorithm 1).

        G_t = |grad_W w_t L_t|,  r_t = (L_t / L_t(0)) / mean(L / L(0))                 (Section 3.1)
        L_grad = sum_t |G_t - mean(G) r_t^alpha|                                        (Eq. 2)

    The target mean(G) r_t^alpha counts as constant, so L_grad has the gradient sign(G_t - target) |grad_W L_t| in w_t.
    After each update w is scaled to the sum T.

    W are all shared parameters, embedding tables included; the paper takes the last shared layer, which a model here
    does not name. L_t(0) is the first loss of the task that is above 0; until then the task is left out of both means,
    and its weight has the gradient 0. The optimizer of the dense weights updates w, and w is clamped to at least 0.

    Args:
        task_names: T names.
        alpha: strength of the pull towards a common rate.
        dtype: dtype of w.
    """

    initial: Tensor

    def __init__(self, task_names: Sequence[str], alpha: float, dtype: torch.dtype = torch.float32) -> None:
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
        self.weights.copy_(torch.where(total > 0, scaled, 1.0))  # equal weights if the optimizer made all 0

    def task_weights(self) -> Tensor:
        return self.weights.detach().clone()
