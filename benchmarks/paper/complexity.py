"""Table 1: parameters, and training and inference time per sample, with and without the contrastive
loss.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from itertools import cycle, islice
from typing import Any

import torch
from matplotlib.axes import Axes
from torch import nn

from adaftr_fast._figures import BLUE, Picture, plain
from adaftr_fast._tables import Table
from adaftr_fast.config import RunConfig
from adaftr_fast.data.dataset.batch import Batch
from adaftr_fast.data.dataset.loader import PreparedData
from adaftr_fast.errors import ConfigError
from adaftr_fast.models.base import MultiTaskModel
from adaftr_fast.nn.embedding import tables_of
from adaftr_fast.runs.run import build
from adaftr_fast.training.optimizers import build_optimizers
from benchmarks.measure import machine, side_by_side
from benchmarks.paper.catalog import BASELINES, NO_OMEGA, TITLES, Variant, divide_experts
from benchmarks.paper.report import Report

BATCHES = 8  # distinct batches that the steps cycle through
WITHOUT = "AdaFTR, no contrast"
FIXED = "AdaFTR, fixed τ"
WITH = "AdaFTR"

VARIANTS = (
    *(Variant(TITLES[name], {"name": name}) for name in BASELINES),
    Variant(WITHOUT, {"name": "adaftr", "contrast": "none"} | NO_OMEGA),
    Variant(FIXED, {"name": "adaftr", "contrast": "infonce", "tau": "fixed"} | NO_OMEGA),
    Variant(WITH, {"name": "adaftr", "contrast": "infonce", "tau": "adaptive"}),
)


@dataclass(frozen=True)
class Cost:
    """The cost of a model.

    Attributes:
        title: the title of the model.
        table_parameters: the number of parameters of the embedding tables.
        dense_parameters: the number of other parameters.
        deployed_parameters: the number of dense parameters that a prediction needs.
        train_us: median time of a training step (loss, gradients, update), in microseconds per
            sample.
        infer_us: median time of a forward pass, in microseconds per sample.
    """

    title: str
    table_parameters: int
    dense_parameters: int
    deployed_parameters: int
    train_us: float
    infer_us: float


@dataclass(frozen=True)
class Complexity:
    """The costs of all models at one batch size, and the machine."""

    dataset: str
    batch_size: int
    machine: dict[str, Any]
    costs: list[Cost]


def measure(data: PreparedData, config: RunConfig, seconds: float = 2.0) -> Complexity:
    """Measures every model on batches of the training split, in alternation.

    Args:
        data: the prepared data.
        config: the options of all models.
        seconds: the time to spend on each model's training and on its inference, in seconds.

    Raises:
        ConfigError: the training split is smaller than a batch.
    """
    size = config.training.batch_size
    rows = data.manifest.splits["train"].rows
    if rows < size:
        raise ConfigError(f"complexity: {rows} training rows are fewer than a batch of {size}")
    shuffled = data.load("train").shuffled(size, seed=config.training.seed, epoch=1)
    batches = list(islice(shuffled, BATCHES))
    models = {}
    for variant in (
        divide_experts(row, config.model, len(data.manifest.tasks)) for row in VARIANTS
    ):
        torch.manual_seed(config.training.seed)
        models[variant.title] = build(replace(config.model, **variant.changes), data)
    infer = side_by_side(
        {title: _inference(model, batches) for title, model in models.items()}, seconds
    )
    train = side_by_side(
        {title: _step(model, batches, config) for title, model in models.items()}, seconds
    )
    costs = [
        Cost(
            title,
            *count_parameters(model, batches[0]),
            1e3 * train[title] / size,
            1e3 * infer[title] / size,
        )
        for title, model in models.items()
    ]
    return Complexity(data.manifest.dataset, size, machine(), costs)


def _step(model: MultiTaskModel, batches: list[Batch], config: RunConfig) -> Callable[[], None]:
    optimizers = build_optimizers(model, config.optimizer)
    supply = cycle(batches)

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
    """Counts the parameters of tables, the dense parameters, and the dense parameters that the
    logits depend on.
    """
    tables = tables_of([model])
    dense = [parameter for parameter in model.parameters() if parameter not in tables]
    gradients = torch.autograd.grad(model(*batch.features).sum(), dense, allow_unused=True)
    deployed = sum(p.numel() for p, gradient in zip(dense, gradients) if gradient is not None)
    return sum(p.numel() for p in tables), sum(p.numel() for p in dense), deployed


REFERENCE = "MMoE"


def report(found: Complexity) -> Report:
    """Returns the report of the costs."""
    return Report(
        "complexity",
        f"Cost of each model (Table 1): {found.dataset}",
        "\n\n".join((cost_table(found), contrast_text(found), machine_text(found))),
        ["![time per sample](complexity.png)"],
        draw_complexity(found),
        [asdict(cost) for cost in found.costs],
    )


def cost_table(found: Complexity) -> str:
    """Returns the table with one row per model; times are also given relative to MMoE."""
    reference = _cost(found, REFERENCE)
    rows = [
        [
            each.title,
            f"{each.table_parameters:,}",
            f"{each.dense_parameters:,}",
            f"{each.deployed_parameters:,}",
            f"{each.train_us:.2f}",
            f"{each.train_us / reference.train_us:.2f}x",
            f"{each.infer_us:.2f}",
            f"{each.infer_us / reference.infer_us:.2f}x",
        ]
        for each in found.costs
    ]
    times = ["training, µs/sample", "vs. MMoE", "inference, µs/sample", "vs. MMoE"]
    header = ["model", "in tables", "dense", "dense, deployed", *times]
    return Table(header, rows).markdown()


def contrast_text(found: Complexity) -> str:
    """Returns the cost that the contrastive loss adds to a step."""
    plain, fixed, whole = (_cost(found, title).train_us for title in (WITHOUT, FIXED, WITH))
    return (
        f"The contrastive loss adds {fixed - plain:.2f} µs per sample to a training step. The "
        "relatedness network "
        f"and the adaptive temperature add {whole - fixed:.2f} µs. Together they take "
        f"{100 * (whole - plain) / whole:.0f} % of AdaFTR's step. Inference does not compute them."
    )


def machine_text(found: Complexity) -> str:
    """Describes the measurement and the machine."""
    facts = ", ".join(f"{name} {value}" for name, value in found.machine.items())
    return (
        f"Median times of alternating steps at batch size {found.batch_size:,}: loss, gradients "
        "and update for training, a forward pass for inference; float32 on the CPU, without data "
        f"loading. {facts}."
    )


def _cost(found: Complexity, title: str) -> Cost:
    return next(each for each in found.costs if each.title == title)


def draw_complexity(found: Complexity) -> Picture:
    """Draws bars from zero of the training and the inference time."""
    figure = Picture(11, 4)
    figure.suptitle(f"Time per sample at batch size {found.batch_size:,}: {found.dataset}")
    left, right = figure.subplots(1, 2)
    _paint(left, "training", [(each.title, each.train_us) for each in found.costs])
    _paint(right, "inference", [(each.title, each.infer_us) for each in found.costs])
    return figure


def _paint(axes: Axes, title: str, times: list[tuple[str, float]]) -> None:
    axes.barh([name for name, _ in times], [value for _, value in times], color=BLUE)
    axes.invert_yaxis()
    axes.set_title(title)
    axes.set_xlabel("µs per sample")
    axes.set_ylabel("model")
    plain(axes, "x")
