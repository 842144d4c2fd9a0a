"""Inputs at the ends of what the losses take, as a table that tests run on the CPU and with Triton.

A function of ``EXTREMES`` yields tensors and options, given a loss, the type of the representations
and a size. Every problem is judged by the tolerance rule.
"""

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any, NamedTuple

import torch

from tests.ops.infonce.inputs import DTYPES, inputs, winning
from tests.ops.infonce.losses import both_directions, draw_sigmoid, positives

F64, F32, BF16, F16 = DTYPES
HALF = (BF16, F16)
Problems = Iterator[tuple[Any, dict[str, Any]]]


def temperatures(loss, dtype, *size) -> Problems:
    tensors, options = loss.drawn(*size)
    # of the rows, and of the columns
    for taus in ((1e-3, 1e2), (1e-2, 1e-2), (1.0, 1e2), (1e3, 1e-2)):
        yield (
            (*tensors[:2], *(torch.full_like(x, tau) for x, tau in zip(tensors[2:], taus))),
            options,
        )


def magnitudes(loss, dtype, *size) -> Problems:
    """tau, or the inverse of the sigmoid loss's scale, is of the magnitude of the operands'
    product.
    """
    (a, b, first, *rest), options = loss.drawn(*size)
    for of_a, of_b, frozen in (
        (1e12, 1e12, ()),
        (1e30, 1e-20, ()),
        *((1e-20, 1e30, each) for each in ((), (0,), (1,))),
    ):
        if loss.kernels == "sigmoid":
            others = (first / (of_a * of_b), *rest)
        else:
            others = [tau * (of_a * of_b) for tau in (first, *rest)]
        yield (a * of_a, b * of_b, *others), options | {"frozen": frozen}


def winning_positives(loss, dtype, rows, *_) -> Problems:
    """p is up to 1 - 1e-7 and more: relative accuracy of a loss and gradients near 0."""
    both = loss.call is both_directions
    # of e^-20, float16 holds no digit beside 1
    for gap in (3, 10) if both and dtype == F16 else (3, 10, 20, 30):
        tensors = winning(rows, gap)
        yield (*tensors, tensors[2] * 1.1) if both else tensors, loss.options(rows, rows)


def dominating_last(loss, dtype, *size) -> Problems:
    """What was summed before the last row or column underflows to 0, but the positives' terms in it
    must be kept.
    """
    for side in (0, 1):
        tensors, options = loss.drawn(*size)
        tensors[side][-1] = 400
        tensors[1 - side].add_(1)
        tensors[2].fill_(0.5)
        yield tensors, options


def far_negatives(loss, dtype, rows, columns, d) -> Problems:
    """The maximum of a row stays at the positive's logit while the gap is below 60; sums rise to
    e^gap.
    """
    for gap, weight, frozen in ((55, 1.0, ()), (55, 1e-30, (0,)), (70, 1.0, ()), (1000, 1.0, (0,))):
        (a, b, *taus), options = loss.drawn(rows, columns, d)
        a *= 0.01  # the product of two norms is then hardly above the logit
        a[:, 0] = gap * (0.3 if loss.square else taus[0])
        b[:, 1:] *= 0.1
        b[:, 0] = torch.linspace(0, 1, len(b), dtype=torch.float64)
        if not loss.square:
            b[:rows, 0] = 0
        weights = {"row_weight": torch.full((rows,), weight), "reduction": "sum", "frozen": frozen}
        yield (a, b, *taus), options | weights


def weights(loss, dtype, rows, *size) -> Problems:
    """Positive weights, and those of zero, may enter an exponent."""
    tensors, options = loss.drawn(rows, *size)
    weight = torch.linspace(0.1, 2, rows)
    some = torch.arange(rows) % 7 == 0
    for each in (
        weight.where(some, -weight),
        weight.where(some, 0 * weight),
        0 * weight,
        1e-25 * weight,
        1e25 * weight,
    ):
        yield tensors, options | {"row_weight": each, "reduction": "sum"}


def distant_rows(loss, dtype, rows, columns, d) -> Problems:
    """From 2^40 on, one factor would not keep all weights of the gradients in the range
    of float32.
    """
    for ratio in (1e6, 1e20, 1e30):
        (a, b, tau, *others), options = loss.drawn(rows, columns, d)
        far = torch.where(torch.arange(rows) % 2 == 0, 1.0, ratio).double()
        yield (a * far[:, None], b, tau * far, *(x * ratio for x in others)), options
        yield (a, b, tau, *others), options | {"row_weight": 1 / far}


def underflowing_squares(loss, dtype, rows, columns, d) -> Problems:
    (a, b, *taus), options = loss.drawn(rows, columns, d)
    if not loss.square:
        b[:rows] = 0  # the positives' logits are 0, others hundreds
    factor = 1e-6 if loss.square else 1e-8
    for of_a, of_b in ((1e18, 1e-24), (1e-24, 1e18)):
        yield (a * of_a, b * of_b, *(tau * factor for tau in taus)), options


def logits_of_ten_thousand(loss, dtype, rows, columns, d) -> Problems:
    for sign in (1, -1):  # the positive's logit is far above, or far below, all others
        a, b, tau = inputs(rows, columns, d)
        b[:rows] += sign * a * 10
        yield (a * 100, b, torch.full_like(tau, 0.1)), {"return_stats": True}


def small_probabilities(loss, dtype, rows, columns, d) -> Problems:
    """A uniform p of 1/3000, times weights from 1e-6 to 1, loses digits in float16 unless
    MAX_OFFSET raises it.
    """
    tensors, options = loss.drawn(rows, columns, d, scale=0.01)
    yield tensors, options | {"row_weight": torch.logspace(-6, 0, rows), "reduction": "sum"}


def largest_logits(loss, dtype, *size) -> Problems:
    """The largest of the documented range."""
    a, b, tau = inputs(*size)
    a *= (1e7 if dtype == F16 else 1e8) / (a @ b.T).abs().max()
    # operands of one magnitude: float16 ends at 65504
    share = (b.abs().max() / a.abs().max()) ** 0.5
    yield (a * share, b / share, torch.ones_like(tau)), {}


def logits_at_the_end_of_float32(loss, dtype, *size) -> Problems:
    for logit in (1e20, 1e37):
        a, b, tau = inputs(*size)
        a = a * (logit**0.5 / 10)
        b = b * (logit**0.5 / 10)
        yield (a, b, torch.ones_like(tau)), {}
        if logit < 1e30:  # else the gradient of tau overflows
            yield (a * 1e-12, b, torch.full_like(tau, 1e-12)), {}


def quotients_beyond_float16(loss, dtype, *size) -> Problems:
    """h_ctr / tau is beyond 65504, the largest number; the logits reach 1e6."""
    a, b, tau = inputs(*size)
    yield (a * 4096, b * 16, tau / 4), {}


def unlikely_negatives(loss, dtype, *_) -> Problems:
    """scale / tau times the anchor is 1e45, but the negatives' probability is about 1e-13."""
    one = torch.eye(8, dtype=torch.float64)
    tau = torch.ones(8, dtype=torch.float64)
    yield (one * 1e25, one * 30e-20, tau * 1e5), {}
    yield (
        (one * 1e30, one * 30e-30, tau),
        {"row_weight": torch.full((8,), 1e12), "reduction": "sum"},
    )


def small_weights_over_tau(loss, dtype, *size) -> Problems:
    """scale / tau is below float32's normal numbers."""
    a, b, tau = inputs(*size)
    yield (
        (a * 1e14, b * 1e14, tau * 1e28),
        {"row_weight": torch.full_like(tau, 1e-12), "reduction": "sum"},
    )


def few_negatives(loss, dtype, rows, columns, d) -> Problems:
    """More columns than a block has, of whose vectors most lanes are masked."""
    for kept in ([3, 700], [3, 20, 700], [700, 3, 899]):
        column_group = torch.ones(columns, dtype=torch.int64)
        column_group[kept] = 0
        groups = {"row_group": torch.ones(rows, dtype=torch.int64), "column_group": column_group}
        yield inputs(rows, columns, d), groups | {"positive_index": torch.full((rows,), 850)}


def many_positives(loss, dtype, rows, _, d) -> Problems:
    # With greater logits, a rounded 1 - p is a small part of the gradient.
    a, b, tau = inputs(rows, rows, d, scale=0.1)
    for number in (1, 25, rows):
        label = torch.arange(rows) % (rows // number)
        yield (a, b, torch.ones_like(tau)), {"positive_group": (label, label)}


def margins_of_winning_positives(loss, dtype, rows, *gaps) -> Problems:
    """exp(-gap) underflows in float32, but the margin brings the negatives back."""
    for gap in gaps[:1] if dtype == F64 else gaps:
        for margin in (gap / 2, gap + 20):
            yield winning(rows, gap), {"margin": margin, "return_stats": False}


def other_blocks(loss, dtype, *_) -> Problems:
    """A block that is smaller than the others, one row in it, blocks beyond those that the kernels
    hold.
    """
    for rows, d, block in (
        (2, 3, 1),
        (5, 8, 2),
        (10, 31, 3),
        (97, 17, 33),
        (130, 64, 64),
        (150, 16, 70),
    ):
        yield inputs(rows, rows, d), {"block": block, "return_stats": True}


def sigmoid_positives(loss, dtype, rows, columns, d) -> Problems:
    """Anywhere or nowhere, and with fewer candidates than rows."""
    nowhere = torch.full((rows,), -100)
    for positive in (
        positives(rows, columns),
        torch.arange(rows) + columns - rows,
        nowhere,
        0 * nowhere,
    ):
        yield draw_sigmoid(rows, columns, d), {"positive_index": positive}
    yield (
        draw_sigmoid(columns, rows, d),
        {"positive_index": positives(columns, rows), "reduction": "sum"},
    )


def sigmoid_scales(loss, dtype, *size) -> Problems:
    for scale, bias in product((1e-30, 100.0, 1e30), (-1e4, 0.0, 50.0)):
        if dtype == F16 and scale == 1e30:
            continue  # the gradients of h_ctr and h_cvr overflow float16
        a, b, *terms = draw_sigmoid(*size, scale, bias)
        # exact: a large scale would magnify rounding errors
        yield (a.sign() / 2, b.sign() / 2, *terms), {}


class Runs(NamedTuple):
    losses: tuple[str, ...]
    dtypes: tuple[torch.dtype, ...]
    size: tuple[int, ...]


class Extreme(NamedTuple):
    problems: Callable[..., Problems]
    cpu: Runs | None
    triton: Runs | None


PLAIN = ("plain",)
EACH = ("plain", "both", "blocks")
ONE_TEMPERATURE = (*EACH, "both, one temperature")
DIRECTIONS = ("plain", "both", "both, one temperature")
EXTREMES = {
    each.problems.__name__: each
    for each in (
        Extreme(
            temperatures,
            Runs(
                ("masks", "margin, smoothing", "positives, groups", *EACH, "both, masks"),
                (F32,),
                (130, 150, 32),
            ),
            Runs((*EACH, "margin, smoothing"), (F32, BF16), (40, 70, 32)),
        ),
        Extreme(
            magnitudes,
            Runs(("masks", "both", "blocks", "sigmoid"), (F32, BF16), (70, 500, 24)),
            Runs((*ONE_TEMPERATURE, "sigmoid", "masks"), (F32, BF16), (33, 40, 16)),
        ),
        Extreme(winning_positives, Runs(EACH, (F32,), (96,)), Runs(EACH, (F32, *HALF), (40,))),
        Extreme(dominating_last, Runs(("plain", "both"), (F64, F32, BF16), (130, 1000, 16)), None),
        Extreme(
            far_negatives,
            Runs(PLAIN, (F32, BF16), (130, 500, 16)),
            Runs(DIRECTIONS, (BF16,), (130, 192, 16)),  # whole blocks, of which one has no positive
        ),
        Extreme(
            weights, Runs(EACH, (F32,), (70, 90, 16)), Runs(ONE_TEMPERATURE, (BF16,), (70, 80, 16))
        ),
        Extreme(distant_rows, Runs(("both", "blocks"), (F32,), (130, 130, 24)), None),
        Extreme(underflowing_squares, None, Runs(DIRECTIONS, (BF16,), (70, 80, 16))),
        Extreme(
            logits_of_ten_thousand,
            Runs(PLAIN, (F32,), (64, 64, 16)),
            Runs(PLAIN, (F32,), (64, 64, 16)),
        ),
        Extreme(small_probabilities, None, Runs(PLAIN, (F16,), (40, 3000, 16))),
        Extreme(
            largest_logits,
            Runs(PLAIN, (F32, *HALF), (40, 70, 16)),
            Runs(PLAIN, (F32, *HALF), (40, 70, 16)),
        ),
        Extreme(logits_at_the_end_of_float32, Runs(PLAIN, (F32, BF16), (40, 500, 24)), None),
        Extreme(
            quotients_beyond_float16,
            Runs(PLAIN, (F16,), (40, 60, 24)),
            Runs(PLAIN, (F16,), (40, 60, 24)),
        ),
        Extreme(unlikely_negatives, Runs(PLAIN, (F32,), ()), None),
        Extreme(small_weights_over_tau, None, Runs(PLAIN, (F32, BF16), (40, 70, 16))),
        Extreme(few_negatives, Runs(PLAIN, (F64, F32, BF16), (5, 900, 8)), None),
        Extreme(
            many_positives,
            Runs(PLAIN, (F32, *HALF), (600, 600, 64)),
            Runs(PLAIN, HALF, (100, 100, 16)),
        ),
        Extreme(
            margins_of_winning_positives,
            Runs(PLAIN, (F32,), (48, 3, 30, 120)),
            Runs(PLAIN, (F64, F32), (32, 3, 30)),
        ),
        Extreme(other_blocks, Runs(("blocks",), DTYPES, ()), Runs(("blocks",), DTYPES, ())),
        Extreme(
            sigmoid_positives,
            Runs(("sigmoid",), (F64, F32), (90, 130, 24)),
            Runs(("sigmoid",), DTYPES, (40, 70, 16)),
        ),
        Extreme(
            sigmoid_scales,
            Runs(("sigmoid",), (F64, F32), (40, 60, 16)),
            Runs(("sigmoid",), DTYPES, (20, 40, 16)),
        ),
    )
}
