"""The floor of a training step: what its products, exponentials, random rows and decoding take,
each alone.

A step has

- products: three for each matrix of the dense layers, of which one goes backward to the inputs (the
  first layer of a relatedness network has none, since its inputs are detached), and three of B x B
  x d for each contrasted pair, at the rate of PyTorch's product of large matrices or of a dense
  layer of ours whose weights stay in the cache, whichever is faster (on AMD's CPUs PyTorch's
  library leaves a part of the peak);
- exponentials: B x B for each contrasted pair, at the rate of ``torch.exp`` in the cache;
- random rows: one for each look-up, and of each distinct row its weights and both of Adam's
  moments, at the time of a row of a table of the same size whose rows are read in random order;
- decoding: the batch, at the rate at which the loader makes batches while nothing trains.

Other work, such as optimizing dense weights and starting operations, has no part. The rates are
those of all threads.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

import adaftr_fast.ops.mlp.op  # noqa: F401  # defines the ops
from adaftr_fast.data.dataset.loader import Split
from adaftr_fast.models import AdaFTR
from adaftr_fast.models.base import MultiTaskModel

PRODUCT = 2048  # rows and columns of the matrices of PyTorch's product
LAYER = 256  # inputs and outputs of the dense layer: 256 KB of weights
EXPONENTIALS = 1 << 16  # 256 KB: they stay in the cache
ADAM_ROWS = 3  # a row of weights and two of moments
REPEATS = 5
SECONDS = 0.1  # of a measurement, of which REPEATS are made


@dataclass(frozen=True)
class Work:
    """What a step of B rows computes.

    Attributes:
        flops: floating-point operations of products.
        exponentials: the number of exponentials of the contrastive losses.
        rows: table rows that are read, or read and written, at random.
    """

    flops: int
    exponentials: int
    rows: int


@dataclass(frozen=True)
class Rates:
    """What the machine does in a second: operations of products, exponentials and random rows."""

    flops: float
    exponentials: float
    rows: float


def work(model: MultiTaskModel, batch: int, lookups: int, distinct: int) -> Work:
    """Returns the work of a step.

    Args:
        model: the model; AdaFTR's contrast is part of the step.
        batch: B.
        lookups: the number of ids of a batch.
        distinct: the number of distinct table rows among them.
    """
    flops = sum(2 * batch * each * times for each, times in _products(model))
    pairs, d = _contrasts(model)
    contrast = batch * batch * pairs
    return Work(flops + 3 * 2 * contrast * d, contrast, lookups + ADAM_ROWS * distinct)


def _products(model: MultiTaskModel) -> list[tuple[int, int]]:
    """Returns the sizes of the matrices of the dense layers, and how many products of a step each
    is in.
    """
    found = []
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1 and "embedding." not in name:
            detached = name.startswith("relatedness.") and ".layers.0." in name
            found.append((parameter.numel(), 2 if detached else 3))
    return found


def _contrasts(model: MultiTaskModel) -> tuple[int, int]:
    """Returns the number of contrasted pairs and the width of what they contrast."""
    if not isinstance(model, AdaFTR) or not model.is_contrasting:
        return 0, 0
    return len(model.pairs), model.config.tower_hidden[model.config.contrast_layer - 1]


def parts(work: Work, rates: Rates, decoding: float) -> dict[str, float]:
    """Returns the milliseconds that each part of a step takes alone.

    Args:
        decoding: seconds that the loader takes for a batch.
    """
    seconds = {
        "products": work.flops / rates.flops,
        "exponentials": work.exponentials / rates.exponentials,
        "random rows": work.rows / rates.rows,
        "decoding": decoding,
    }
    return {part: 1e3 * each for part, each in seconds.items()}


def measured(table_rows: int, width: int) -> Rates:
    """Measures the rates of this machine.

    Args:
        table_rows: the rows of all tables together, weights alone.
        width: E.
    """
    values = torch.randn(EXPONENTIALS)
    powers = torch.empty_like(values)
    table = torch.zeros(ADAM_ROWS * table_rows, width)
    order = torch.randperm(len(table))[: 1 << 20]
    taken = torch.empty(len(order), width)
    return Rates(
        peak(),
        EXPONENTIALS / fastest(lambda: torch.exp(values, out=powers)),
        len(order) / fastest(lambda: torch.index_select(table, 0, order, out=taken)),
    )


def peak() -> float:
    """Returns the operations a second of the faster kind of product."""
    a, b, out = (torch.randn(PRODUCT, PRODUCT) for _ in range(3))
    x = torch.randn(PRODUCT, LAYER)
    weight = torch.randn(LAYER, LAYER)
    bias = torch.zeros(LAYER)
    return max(
        2 * PRODUCT**3 / fastest(lambda: torch.mm(a, b, out=out)),
        2
        * PRODUCT
        * LAYER**2
        / fastest(lambda: torch.ops.adaftr_fast.mlp([x], [0], [weight], [bias], [1], [0])),
    )


def decoding(split: Split, batch: int) -> float:
    """Returns the seconds that the loader takes for a batch while nothing else runs."""
    batches = len(split) // batch
    return (
        fastest(lambda: sum(len(each) for each in split.shuffled(batch, seed=0, epoch=1))) / batches
    )


def distinct_rows(split: Split, batch: int) -> tuple[int, int]:
    """Returns the ids of the first batch of an epoch, and the distinct table rows among them."""
    ids = next(split.shuffled(batch, seed=0, epoch=1)).ids
    fields = torch.arange(ids.shape[1]).expand_as(ids)
    return ids.numel(), len(
        torch.unique(torch.stack([fields.reshape(-1), ids.reshape(-1).long()]), dim=1)[0]
    )


def fastest(call: Callable[[], object]) -> float:
    """Returns the seconds of a call: the least mean of several measurements."""
    call()
    means = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        calls = 0
        while time.perf_counter() - start < SECONDS:
            call()
            calls += 1
        means.append((time.perf_counter() - start) / calls)
    return min(means)
