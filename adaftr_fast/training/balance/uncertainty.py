"""Uncertainty weighting: a learned variance per task (Kendall et al., CVPR'18). Shapes: T tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from adaftr_fast.training.balance.base import LossBalance


class UncertaintyWeights(LossBalance):
    """Weights each task's loss by a learned precision.

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
