"""PCGrad: projects conflicting gradients (Yu et al., NeurIPS'20). Shapes: T tasks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from adaftr_fast.training.balance.base import GradientBalance


class PCGrad(GradientBalance):
    """Removes from each task's gradient the component against another task's (PCGrad paper, Algorithm 1).

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
        random, tasks = np.random.default_rng([self.seed, step]), len(self.task_names)
        return [[j for j in random.permutation(tasks).tolist() if j != i] for i in range(tasks)]
