"""Optimizers of the dense weights and of the embedding tables, and the schedule of their learning
rates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from adaftr_fast.config import OptimizerConfig
from adaftr_fast.nn.embedding import FusedEmbedding
from adaftr_fast.optim import SGD, Adagrad, Adam, LazyAdam, RowwiseAdagrad
from adaftr_fast.optim.base import RowOptimizer
from adaftr_fast.optim.dense import DenseAdam
from adaftr_fast.torchrec.tables import ShardedTables

TABLES: dict[str, type[RowOptimizer]] = {
    "sgd": SGD,
    "adagrad": Adagrad,
    "rowwise_adagrad": RowwiseAdagrad,
}
"""The optimizers of tables alone; those of ``ADAMS`` take the dense weights, too."""
ADAMS: dict[str, type[Adam] | type[LazyAdam]] = {"adam": Adam, "lazy_adam": LazyAdam}


def build_optimizers(model: nn.Module, config: OptimizerConfig) -> list[torch.optim.Optimizer]:
    """Builds the optimizers of a model: Adam for the dense weights, ``config.tables`` for the
    embedding tables.

    One optimizer takes both where the tables have an Adam, too. The cost of a step on tables grows
    with the batch and not with the table. Sharded tables have their own optimizer. ``initial_lr``
    of each parameter group is the learning rate after warm-up.
    """
    tables = [module for module in model.modules() if isinstance(module, FusedEmbedding)]
    rows = {parameter for table in tables for parameter in table.parameters()}
    dense = [parameter for parameter in model.parameters() if parameter not in rows]
    of_dense = [{"params": dense, "fused": True}] if dense else []
    of_tables = [{"params": tables, "lr": tables_lr(config)}] if tables else []
    adam: dict[str, Any] = {
        "lr": config.lr,
        "betas": (config.beta1, config.beta2),
        "eps": config.eps,
    }
    optimizers: list[torch.optim.Optimizer] = []
    if tables and config.tables in ADAMS:
        optimizers.append(ADAMS[config.tables]([*of_dense, *of_tables], **adam))
    else:
        optimizers += [DenseAdam([group], **adam) for group in of_dense]
        options: dict[str, Any] = {} if config.tables == "sgd" else {"eps": config.eps}
        optimizers += [TABLES[config.tables]([group], **options) for group in of_tables]
    optimizers += [
        module.optimizer for module in model.modules() if isinstance(module, ShardedTables)
    ]
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
    return optimizers


def tables_lr(config: OptimizerConfig) -> float:
    """Returns the learning rate of the tables after warm-up."""
    return config.lr if config.tables_lr is None else config.tables_lr


def table_state_bytes(kind: str, rows: Sequence[int], widths: Sequence[int]) -> int:
    """Returns the size of the state of the optimizer ``kind`` of float32 tables, in bytes.

    Args:
        kind: a choice of ``OptimizerConfig.tables``.
        rows: number of rows of each table.
        widths: width of each table.
    """
    vectors, numbers = {  # of 4 bytes for each row
        "adam": (2, 1),  # the moments, and the step at which the row was last current
        "lazy_adam": (2, 0),
        "adagrad": (1, 0),
        "rowwise_adagrad": (0, 1),
        "sgd": (0, 0),
    }[kind]
    of_tables = zip(rows, widths, strict=True)
    return 4 * sum(number * (vectors * width + numbers) for number, width in of_tables)


def learning_rate(config: OptimizerConfig, step: int, peak: float) -> float:
    """Computes the learning rate of a step. It has no state, so a resumed run needs none.

    Args:
        config: the schedule.
        step: the step, counted from 1 over all epochs.
        peak: the learning rate after warm-up, ``config.lr`` or ``config.tables_lr``.
    """
    if step < config.warmup_steps:
        return peak * step / config.warmup_steps
    if config.schedule == "constant":
        return peak
    done = min(1.0, (step - config.warmup_steps) / (config.decay_steps - config.warmup_steps))
    left = 1 - done if config.schedule == "linear" else (1 + math.cos(math.pi * done)) / 2
    return peak * (config.lr_end + (1 - config.lr_end) * left)
