"""GradNorm: balances the norms of the tasks' gradients (Chen et al., ICML'18). Shapes: T tasks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from adaftr_fast.training.balance.base import GradientBalance


class GradNorm(GradientBalance):
    """Learns weights w_t of the losses at which the tasks train at similar rates (GradNorm paper, Algorithm 1).

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
