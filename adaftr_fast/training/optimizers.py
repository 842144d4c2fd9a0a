"""Optimizers of the dense weights and of the embedding tables, and the schedule of their learning
rates.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from adaftr_fast.config import OptimizerConfig
from adaftr_fast.nn.embedding import FusedEmbedding
from adaftr_fast.optim import SGD, Adagrad, Adam, LazyAdam, RowwiseAdagrad
from adaftr_fast.optim.base import RowOptimizer
from adaftr_fast.optim.dense import DenseAdam
from adaftr_fast.optim.tables import tables_of


@dataclass(frozen=True)
class TableOptimizer:
    """An optimizer of tables.

    Attributes:
        kind: its class.
        vectors: how many vectors of the row's width its state has for each row.
        numbers: how many numbers its state has for each row.
        takes_dense: whether it takes the dense weights, too, with the options of Adam.
    """

    kind: Callable[..., RowOptimizer]
    vectors: int = 0
    numbers: int = 0
    takes_dense: bool = False


TABLES = {
    # numbers: the step at which the row was last current
    "adam": TableOptimizer(Adam, vectors=2, numbers=1, takes_dense=True),
    "lazy_adam": TableOptimizer(LazyAdam, vectors=2, takes_dense=True),
    "sgd": TableOptimizer(SGD),
    "adagrad": TableOptimizer(Adagrad, vectors=1),
    "rowwise_adagrad": TableOptimizer(RowwiseAdagrad, numbers=1),
}
"""The choices of ``OptimizerConfig.tables``."""


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
    known = TABLES[config.tables]
    if tables and known.takes_dense:
        optimizers.append(known.kind([*of_dense, *of_tables], **adam))
    else:
        optimizers += [DenseAdam([group], **adam) for group in of_dense]
        # rules with a state divide by its root
        options: dict[str, Any] = {"eps": config.eps} if known.vectors or known.numbers else {}
        optimizers += [known.kind([group], **options) for group in of_tables]
    optimizers += tables_of(model).optimizers
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
    known = TABLES[kind]
    of_tables = zip(rows, widths, strict=True)
    return 4 * sum(count * (known.vectors * width + known.numbers) for count, width in of_tables)


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
