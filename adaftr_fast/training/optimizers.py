"""Which optimizer moves which parameter."""

from __future__ import annotations

import torch
from torch import nn

from adaftr_fast.nn.embedding import FusedEmbedding
from adaftr_fast.training.config import OptimizerConfig


def build_optimizers(model: nn.Module, config: OptimizerConfig) -> list[torch.optim.Optimizer]:
    """Adam for the dense weights, and for embedding tables one that touches only the rows with gradients."""
    tables = {
        table for module in model.modules() if isinstance(module, FusedEmbedding) for table in module.parameters()
    }
    dense = [parameter for parameter in model.parameters() if parameter not in tables]
    settings = {"lr": config.lr, "betas": (config.beta1, config.beta2), "eps": config.eps}
    optimizers: list[torch.optim.Optimizer] = []
    if dense:
        optimizers.append(torch.optim.Adam(dense, fused=True, **settings))
    if tables:
        optimizers.append(torch.optim.SparseAdam(list(tables), **settings))
    return optimizers
