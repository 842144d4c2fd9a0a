"""Table 1 measured: parameters, and the time of training and inference per sample, with and without the contrast."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import cycle
from typing import Any

import torch
from torch import nn

from adaftr_fast.config import RunConfig
from adaftr_fast.data.dataset.batch import Batch
from adaftr_fast.data.dataset.loader import PreparedData
from adaftr_fast.errors import ConfigError
from adaftr_fast.experiments.catalog import NO_OMEGA, TITLES, Variant
from adaftr_fast.experiments.measure import machine, side_by_side
from adaftr_fast.nn.embedding import FusedEmbedding
from adaftr_fast.runs.run import build
from adaftr_fast.training.optimizers import build_optimizers

BATCHES = 8  # different ones in turn, so that a step's rows are not those of the last
WITHOUT, FIXED, WITH = "AdaFTR, no contrast", "AdaFTR, fixed τ", "AdaFTR"

VARIANTS = (
    *(Variant(title, {"name": name}) for name, title in TITLES.items() if name != "adaftr"),
    Variant(WITHOUT, {"name": "adaftr", "contrast": "none"} | NO_OMEGA),
    Variant(FIXED, {"name": "adaftr", "contrast": "infonce", "tau": "fixed"} | NO_OMEGA),
    Variant(WITH, {"name": "adaftr", "contrast": "infonce", "tau": "adaptive"}),
)


@dataclass(frozen=True)
class Cost:
    """What a model costs.

    Attributes:
        table_parameters: of the embedding tables.
        dense_parameters: all others.
        deployed_parameters: the dense ones that a prediction needs.
        train_us: median time of a training step (loss, gradients, update) over its rows, microseconds a sample.
        infer_us: the same of a forward pass.
    """

    title: str
    table_parameters: int
    dense_parameters: int
    deployed_parameters: int
    train_us: float
    infer_us: float


@dataclass(frozen=True)
class Complexity:
    """Costs at the budget's batch size, and machine."""

    dataset: str
    batch_size: int
    machine: dict[str, Any]
    costs: list[Cost]


def measure(data: PreparedData, config: RunConfig, seconds: float = 2.0) -> Complexity:
    """Measures every model on real batches, in turns; ``seconds`` is each one's share for each of its two times.

    Raises:
        ConfigError: fewer training rows than a batch.
    """
    size = config.training.batch_size
    rows = data.manifest.splits["train"].rows
    if rows < size:
        raise ConfigError(f"complexity: {rows} training rows are fewer than a batch of {size}")
    batches = _some(data, size, config.training.seed)
    models = {}
    for variant in VARIANTS:
        torch.manual_seed(config.training.seed)
        models[variant.title] = build(replace(config.model, **variant.changes), data)
    infer = side_by_side({title: _inference(model, batches) for title, model in models.items()}, seconds)
    train = side_by_side({title: _step(model, batches, config) for title, model in models.items()}, seconds)
    costs = [
        Cost(title, *count_parameters(model, batches[0]), 1e3 * train[title] / size, 1e3 * infer[title] / size)
        for title, model in models.items()
    ]
    return Complexity(data.manifest.dataset, size, machine(), costs)


def _some(data: PreparedData, size: int, seed: int) -> list[Batch]:
    batches = data.load("train").shuffled(size, seed=seed, epoch=1)
    return [batch for _, batch in zip(range(BATCHES), batches)]


def _step(model: nn.Module, batches: list[Batch], config: RunConfig) -> Callable[[], None]:
    optimizers, supply = build_optimizers(model, config.optimizer), cycle(batches)

    def step() -> None:
        loss = torch.stack(tuple(model.loss(next(supply)).values())).sum()
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()

    return step


def _inference(model: nn.Module, batches: list[Batch]) -> Callable[[], None]:
    supply = cycle(batches)

    @torch.no_grad()
    def infer() -> None:
        model(*next(supply).features)

    return infer


def count_parameters(model: nn.Module, batch: Batch) -> tuple[int, int, int]:
    """Those of tables, all others, and those others that the logits depend on: what serving must keep."""
    tables = {p for module in model.modules() if isinstance(module, FusedEmbedding) for p in module.parameters()}
    dense = [parameter for parameter in model.parameters() if parameter not in tables]
    gradients = torch.autograd.grad(model(*batch.features).sum(), dense, allow_unused=True)
    deployed = sum(p.numel() for p, gradient in zip(dense, gradients) if gradient is not None)
    return sum(p.numel() for p in tables), sum(p.numel() for p in dense), deployed
