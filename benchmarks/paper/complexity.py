"""The cost of every model (Table 1): numbers of parameters, and training and inference time per
sample on batches in memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import cycle, islice

import torch
from torch import nn

from adaftr_fast.config import RunConfig
from adaftr_fast.data.dataset.batch import Batch
from adaftr_fast.data.dataset.loader import PreparedData
from adaftr_fast.display.figures import BLUE, Picture, plain
from adaftr_fast.errors import ConfigError
from adaftr_fast.models.base import MultiTaskModel
from adaftr_fast.nn.embedding import tables_of
from adaftr_fast.runs.run import build
from adaftr_fast.training.optimizers import build_optimizers
from benchmarks.measure import machine, side_by_side
from benchmarks.paper.catalog import BASELINES, NO_OMEGA, TITLES, Variant, divide_experts
from benchmarks.paper.report import Report
from benchmarks.render import Cases, of_cases

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


def measure(data: PreparedData, config: RunConfig, seconds: float = 2.0) -> Cases:
    """Measures every model on batches of the training split, in alternation.

    Args:
        data: the prepared data.
        config: the options of all models.
        seconds: the time to spend on each model's training and on its inference, in seconds.

    Returns:
        A case per model: its title, the numbers of ``count_parameters``, and the median times of a
        training step (loss, gradients, update) and of a forward pass, in microseconds per sample.

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
    for row in VARIANTS:
        row = divide_experts(row, config.model, len(data.manifest.tasks))
        torch.manual_seed(config.training.seed)
        models[row.title] = build(replace(config.model, **row.changes), data)
    infer = side_by_side({title: _inference(models[title], batches) for title in models}, seconds)
    train = side_by_side(
        {title: _step(models[title], batches, config) for title in models}, seconds
    )
    return [
        {
            "model": title,
            **count_parameters(model, batches[0]),
            "training": 1e3 * train[title] / size,
            "inference": 1e3 * infer[title] / size,
        }
        for title, model in models.items()
    ]


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


def count_parameters(model: nn.Module, batch: Batch) -> dict[str, int]:
    """Counts the parameters of tables, the dense parameters, and the deployed ones: the dense
    parameters that the logits depend on.
    """
    tables = tables_of([model])
    dense = [parameter for parameter in model.parameters() if parameter not in tables]
    gradients = torch.autograd.grad(model(*batch.features).sum(), dense, allow_unused=True)
    used = [p for p, gradient in zip(dense, gradients) if gradient is not None]
    kinds = {"tables": tables, "dense": dense, "deployed": used}
    return {kind: sum(p.numel() for p in each) for kind, each in kinds.items()}


def report(dataset: str, batch_size: int, cases: Cases) -> Report:
    """Returns the report of the costs."""
    found = {case["model"]: case for case in cases}
    facts = ", ".join(f"{name} {value}" for name, value in machine().items())
    table = of_cases(
        "model | in tables | dense | dense, deployed | training, µs/sample | vs. MMoE | "
        "inference, µs/sample | vs. MMoE",
        "lrrrrrrr",
        "{model} | {tables:,} | {dense:,} | {deployed:,} | {training:.2f} | "
        "{training / mmoe[training]:.2f}x | {inference:.2f} | "
        "{inference / mmoe[inference]:.2f}x",
        [case | {"mmoe": found["MMoE"]} for case in cases],
    )
    without, fixed, whole = (found[title]["training"] for title in (WITHOUT, FIXED, WITH))
    return Report(
        "complexity",
        f"Cost of each model (Table 1): {dataset}",
        f"{table}\n\nThe contrastive loss adds {fixed - without:.2f} µs per sample to a training "
        f"step. The relatedness network and the adaptive temperature add {whole - fixed:.2f} µs. "
        f"Together they take {100 * (whole - without) / whole:.0f} % of AdaFTR's step. Inference "
        f"does not compute them.\n\nMedian times of alternating steps at batch size "
        f"{batch_size:,}: loss, gradients and update for training, a forward pass for inference; "
        f"float32 on the CPU, without data loading. {facts}.",
        ["![time per sample](complexity.png)"],
        _draw(f"Time per sample at batch size {batch_size:,}: {dataset}", cases),
        cases,
    )


def _draw(title: str, cases: Cases) -> Picture:
    """Draws bars from zero of the training and the inference time."""
    figure = Picture(11, 4)
    figure.suptitle(title)
    for axes, time in zip(figure.subplots(1, 2), ("training", "inference")):
        axes.barh([case["model"] for case in cases], [case[time] for case in cases], color=BLUE)
        axes.invert_yaxis()
        axes.set_title(time)
        axes.set_xlabel("µs per sample")
        axes.set_ylabel("model")
        plain(axes, "x")
    return figure
