"""The losses as a table: how each is called, and what it is in PyTorch with the similarities
stored.

The tests that all of them have in common run over ``LOSSES``, and over the problems of extremes.py:
test_losses.py, and with Triton tests/kernels/infonce/test_losses.py.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import adaftr_fast as af
from tests.ops.infonce.inputs import assert_matches, inputs, masks, moved


def literal_rows(
    a, b, tau, *, positive_index=None, row_group=None, column_group=None, positive_group=None, column_bias=None,
    ignore_above=None, label_smoothing=0.0, margin=0.0, block=None, candidate_mask=None,
):  # fmt: skip
    """Returns the loss of every row of one direction."""
    rows = torch.arange(len(a))
    columns = torch.arange(len(b))
    index = (rows if positive_index is None else positive_index.clamp(min=0))[:, None]
    own = index == columns
    candidate = torch.ones_like(own)
    if row_group is not None:
        candidate = row_group[:, None] != (row_group if column_group is None else column_group)
    if candidate_mask is not None:
        candidate = candidate & candidate_mask
    if block is not None:
        candidate = (rows // block)[:, None] == columns // block
    similarity = (a @ b.T).to(tau.dtype)
    if column_bias is not None:
        similarity = similarity + tau[:, None] * column_bias
    if ignore_above is not None:
        candidate = candidate & ~(similarity > similarity.gather(1, index) + ignore_above)
    if positive_group is None:
        candidate = candidate | own
        positive = own
    else:
        positive = candidate & (positive_group[0][:, None] == positive_group[1])
    logits = (similarity - margin * positive.to(tau.dtype)) / tau[:, None]
    shares = [
        (x / x.sum(1, keepdim=True)).nan_to_num() for x in (positive.double(), candidate.double())
    ]
    target = (1 - label_smoothing) * shares[0] + label_smoothing * shares[1]
    lse = logits.masked_fill(~candidate, -torch.inf).logsumexp(1)
    loss = lse - (target.to(logits.dtype) * logits).sum(1)
    ignored = positive_index if positive_group is None else positive_group[0]
    return loss if ignored is None else torch.where(ignored == -100, 0.0, loss)


def literal(a, b, tau, tau_column=None, *, reduction="mean", row_weight=None, **options):
    """The loss of one direction, or with ``tau_column`` of both."""
    loss = literal_rows(a, b, tau, **options)
    if tau_column is not None:
        back = options | {
            "row_group": options.get("column_group"),
            "column_group": options.get("row_group"),
        }
        if "candidate_mask" in options:
            back["candidate_mask"] = options["candidate_mask"].T
        loss = (loss + literal_rows(b, a, tau_column, **back)) / 2
    weight = torch.ones_like(loss) if row_weight is None else row_weight
    ignored = options.get("positive_index", options.get("positive_group", (None,))[0])
    if ignored is not None:
        weight = torch.where(ignored == -100, 0.0, weight)
    if reduction == "none":
        return loss * weight
    total = weight.sum() if reduction == "mean" else torch.ones(())
    return (loss * weight).sum() / torch.where(total == 0, 1, total)


def literal_sigmoid(a, b, scale, bias, positive_index=None, reduction="mean"):
    """Zhai et al., 2023, Algorithm 1."""
    positive = torch.arange(len(a)) if positive_index is None else positive_index
    labels = 2 * (positive[:, None] == torch.arange(len(b))).to(a.dtype) - 1
    loss = (
        -F.logsigmoid(labels * (scale.to(a.dtype) * (a @ b.T) + bias.to(a.dtype)))
        .to(scale.dtype)
        .sum()
    )
    return loss / len(a) if reduction == "mean" else loss


def positives(rows, columns):
    """Returns the index of a positive for three rows of four."""
    positive = torch.randint(0, columns, (rows,), generator=torch.Generator().manual_seed(1))
    positive[::4] = -100
    return positive


def both_directions(a, b, tau, tau_column, **options):
    return af.adaptive_infonce(a, b, (tau, tau_column), symmetric=True, **options)


def biased(function, a, b, tau, bias, **options):
    return function(a, b, tau, column_bias=bias, **options)


def draw_both(rows, columns, d, **more):
    a, b, tau = inputs(rows, rows, d, **more)
    return a, b, tau, tau.flip(0) * 2


def draw_one_temperature(rows, columns, d, **more):
    a, b, *temperatures = draw_both(rows, columns, d, **more)
    return a, b, *(torch.full_like(tau, 0.3) for tau in temperatures)


def draw_apart_of_masks(rows, columns, d):
    return draw_apart(
        rows, columns, d, bound=0.1, positive_index=masks(rows, columns)["positive_index"]
    )


def draw_both_apart(rows, columns, d):
    """Draws different numbers of rows and candidates, which share no similarities."""
    return *inputs(rows, columns, d), torch.linspace(0.1, 1, columns, dtype=torch.float64)


def draw_biased(rows, columns, d, **more):
    bias = -5 + 3 * torch.randn(
        columns, generator=torch.Generator().manual_seed(2), dtype=torch.float64
    )
    return *inputs(rows, columns, d, **more), bias


def draw_sigmoid(rows, columns, d, scale=3.0, bias=-2.0):
    a, b, _ = inputs(rows, columns, d)
    return a, b, torch.tensor(scale, dtype=torch.float64), torch.tensor(bias, dtype=torch.float64)


def draw_apart(rows, columns, d, bound=0.25, positive_index=None, **more):
    """Draws numbers of bfloat16 without a similarity so near the bound that rounding
    may cross it.
    """
    a, b, tau = inputs(rows, columns, d, **more)
    a, b = (x.bfloat16().double() for x in (a, b))
    positive = torch.arange(rows) if positive_index is None else positive_index.clamp(min=0)
    for factor in (0.5, 0.6, 0.7, 0.8):
        gap = a @ b.T - (a * b[positive]).sum(1, keepdim=True) - bound  # [B, N]
        near = (gap.scatter(1, positive[:, None], math.inf).abs() < 1e-4).any(1)
        if not near.any():
            return a, b, tau
        # the positive is then among the most similar
        a[near] = (factor * b[positive[near]]).bfloat16().double()
    raise AssertionError("a similarity remains near the bound")


def labels(rows, columns, count, seed=1):
    """Returns random ids of rows and candidates; every row finds its id among the first
    candidates.
    """
    g = torch.Generator().manual_seed(seed)
    column = torch.randint(0, count, (columns,), generator=g)
    column[: min(count, columns)] = torch.arange(min(count, columns))
    return torch.randint(0, min(count, columns), (rows,), generator=g), column


def masked(rows, columns, *names):
    """Returns a mask with half of the candidates, none for some rows, and options that are
    named.
    """
    mask = torch.rand(rows, columns, generator=torch.Generator().manual_seed(4)) < 0.5
    mask[1::6] = False
    others = masks(rows, columns)
    return {"candidate_mask": mask, **{name: others[name] for name in names}}


def masks_of_square(rows, columns):
    return {name: x for name, x in masks(rows, rows).items() if name != "positive_index"}


class Loss(NamedTuple):
    call: Callable = af.adaptive_infonce
    options: Callable = lambda rows, columns: {}
    draw: Callable = inputs
    literal: Callable = literal
    kernels: str = "infonce"  # of tests.ops.marks.KERNELS
    square: bool = False  # whether N is B
    statistics: bool = False

    def drawn(self, rows, columns, d, **more):
        """Returns float64 inputs of a size, and the options."""
        columns = rows if self.square else columns
        return self.draw(rows, columns, d, **more), self.options(rows, columns)

    def assert_matches(self, tensors, dtype, **options):
        assert_matches(tensors, dtype, self.call, **options)


def targets(*names, **numbers):
    """Returns one direction with ``numbers`` and those of the options that are named."""

    def options(rows, columns):
        row, column = labels(rows, columns, max(4, rows // 4))
        row_group, column_group = labels(rows, columns, 7, seed=2)
        column_group[: row.max() + 1] = 9  # the ids of all rows remain among the candidates
        index = labels(rows, columns, columns, seed=3)[0]
        index[::7] = -100
        ignored = row.clone()
        ignored[1::5] = -100
        every = {
            "positives": {"positive_group": (row, column)},
            "ignored": {"positive_group": (ignored, column)},
            "index": {"positive_index": index},
            "groups": {"row_group": row_group, "column_group": column_group},
        }
        given = dict(numbers)
        for name in names:
            given |= every[name]
        return given

    return Loss(options=options)


BOTH = Loss(both_directions, draw=draw_both, kernels="symmetric", square=True)
BLOCKS = {
    "options": lambda rows, _: {"block": 16 if rows > 16 else 2},
    "kernels": "blocks",
    "square": True,
}
SIGMOID = Loss(af.sigmoid_contrast, draw=draw_sigmoid, literal=literal_sigmoid, kernels="sigmoid")
# Those that have kernels of their own, or take other ways through a kernel.
LOSSES = {
    "plain": Loss(statistics=True),
    "masks": Loss(options=masks, statistics=True),
    "ignore_above": Loss(
        options=lambda *_: {"ignore_above": 0.25}, draw=draw_apart, statistics=True
    ),
    "margin, smoothing": targets("index", "groups", margin=0.2, label_smoothing=0.5)._replace(
        statistics=True
    ),
    "positives, groups": targets("positives", "groups"),
    "both": BOTH,
    "both, masks": BOTH._replace(options=masks_of_square),
    "blocks": Loss(statistics=True, **BLOCKS),
    "sigmoid": SIGMOID,
}
# Those that differ in what is done before a kernel or after it.
OTHERS = {
    "column_bias": Loss(
        partial(biased, af.adaptive_infonce), draw=draw_biased, literal=partial(biased, literal)
    ),
    "both, N > B": Loss(both_directions, options=masks, draw=draw_both_apart, literal=None),
    "ignore_above, masks": Loss(
        options=lambda *of: masks(*of) | {"ignore_above": 0.1}, draw=draw_apart_of_masks
    ),
    "candidate_mask": Loss(
        options=lambda *of: masked(*of, "positive_index", "row_weight"), statistics=True
    ),
    "candidate_mask, groups, margin, smoothing": Loss(
        options=lambda *of: {
            **masked(*of, "row_group", "column_group"),
            "margin": 0.2,
            "label_smoothing": 0.3,
        }
    ),
    "both, candidate_mask": BOTH._replace(options=lambda rows, _: masked(rows, rows)),
    "both, blocks": Loss(both_directions, draw=draw_both, **BLOCKS),
    "margin": targets(margin=0.35),
    "margin, groups": targets("index", "groups", margin=0.2),
    "smoothing, groups": targets("index", "groups", label_smoothing=0.3),
    "smoothing, positives, groups": targets("ignored", "groups", label_smoothing=0.2),
    "positives": targets("positives"),
    "positives, ignored rows": targets("ignored"),
    "sigmoid, positives": SIGMOID._replace(options=lambda *of: {"positive_index": positives(*of)}),
}
EVERY = LOSSES | OTHERS
# Both directions have kernels of their own in Triton, with another loop where all temperatures are
# equal.
WITH_TRITON = LOSSES | {
    "both, one temperature": BOTH._replace(draw=draw_one_temperature),
    "both, masks, one temperature": BOTH._replace(
        options=masks_of_square, draw=draw_one_temperature
    ),
}


class Calls(TorchDispatchMode):
    """Records the ops of the package that are called, with their arguments."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "adaftr_fast":
            self.found.append((func, args, kwargs))
        return func(*args, **kwargs or {})


def check_op(name, frozen=(), device="cpu", **options):
    """Runs PyTorch's checks on the op that a loss calls."""
    tensors, given = LOSSES[name].drawn(9, 11, 4)
    leaves = [x.to(device).requires_grad_(i not in frozen) for i, x in enumerate(tensors)]
    with Calls() as calls:
        LOSSES[name].call(*leaves, **moved(given, device), **options)
    ((op, arguments, by_name),) = calls.found
    torch.library.opcheck(op, arguments, by_name)
