"""Which optimizer moves which parameter."""

from __future__ import annotations

import torch
from torch import nn

from adaftr_fast.nn.embedding import FusedEmbedding
from adaftr_fast.optim import Adam
from adaftr_fast.training.config import OptimizerConfig


def build_optimizers(model: nn.Module, config: OptimizerConfig) -> list[torch.optim.Optimizer]:
    """Adam for everything: torch's for the dense weights, for embedding tables the one that costs by the batch."""
    tables = [module for module in model.modules() if isinstance(module, FusedEmbedding)]
    rows = {parameter for table in tables for parameter in table.parameters()}
    dense = [parameter for parameter in model.parameters() if parameter not in rows]
    settings = {"lr": config.lr, "betas": (config.beta1, config.beta2), "eps": config.eps}
    optimizers: list[torch.optim.Optimizer] = []
    if dense:
        optimizers.append(torch.optim.Adam(dense, fused=True, **settings))
    if tables:
        optimizers.append(Adam(tables, **settings))
    return optimizers
