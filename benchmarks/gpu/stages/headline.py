"""The loss at B = 65,536 in bfloat16, d = 128 or 512, in each choice of its kernels, beside the
times of the model.

No time counts whose gradients are not right: all results are compared with float64, and those of
the other choices with those of the default.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple
from unittest import mock

import torch
from torch import Tensor

import adaftr_fast as af
from benchmarks.gpu.cells import Cell, Row, Setting
from benchmarks.gpu.stages import contestants as forms
from benchmarks.gpu.stages.loss import judge
from benchmarks.gpu.timing import figures
from tests.tolerances import error

LIMIT = 30  # seconds of a cell
ROWS = 65_536
PRECISION = "bfloat16"
DRY_ROWS = 64
DRY_WIDTH = 16
DRY_PRECISION = "float32"


def at_once(a: Tensor, b: Tensor, tau: Tensor) -> Tensor:
    """Both directions, by five products."""
    return af.adaptive_infonce(a, b, forms.TAU, symmetric=True)


def two_calls(a: Tensor, b: Tensor, tau: Tensor) -> Tensor:
    """Both directions, by eight products."""
    return (af.adaptive_infonce(a, b, forms.TAU) + af.adaptive_infonce(b, a, forms.TAU)) / 2


def five_products(a: Tensor, b: Tensor, tau: Tensor) -> Tensor:
    """The default beyond d = 256 where logits are not bounded, and of positives by index."""
    return af.adaptive_infonce(a, b, tau, positive_index=torch.arange(len(a), device=a.device))


class Choice(NamedTuple):
    """A choice of kernels.

    Attributes:
        modelled: the milliseconds that the model gives it (docs/gpu.md).
        variables: make the choice.
        loss: calls the kernels.
        default: calls those that the choice would replace.
        width: d.
    """

    modelled: tuple[float, ...]
    variables: dict[str, str]
    loss: forms.Loss = forms.ours
    default: forms.Loss = forms.ours
    width: int = 128


CHOICES = {
    "default": Choice((7.0,), {}),
    "narrow": Choice((4.7, 6.2), {forms.BLOCKS: "narrow"}),
    "gluon": Choice((5.0,), {forms.SWEEPS: "gluon"}),
    "both directions, two calls": Choice((13.9,), {}, two_calls, two_calls),
    "both directions at once": Choice((10.7,), {}, at_once, two_calls),
    "d = 512, five products": Choice((38.0,), {}, five_products, five_products, 512),
    "d = 512, bounded": Choice((29.0,), {}, forms.ours, five_products, 512),
}


def cells(setting: Setting) -> Iterator[Cell]:
    for name in CHOICES:
        yield Cell({"kernels": name}, measure, seconds=6)


def measure(key: Row, setting: Setting) -> Row:
    """Returns errors, the largest difference from the default's results and, where all is right,
    times.
    """
    choice = CHOICES[key["kernels"]]
    if (
        forms.SWEEPS in choice.variables
        and not setting.dry
        and torch.cuda.get_device_capability() != (9, 0)
    ):
        return {"skipped": "the sweeps in Gluon are for compute capability 9.0"}
    rows = ROWS
    width = choice.width
    precision = PRECISION
    if setting.dry:
        rows = DRY_ROWS
        width = DRY_WIDTH
        precision = DRY_PRECISION
    leaves = forms.problem(rows, width, precision, setting.device)
    one_way = forms.truth(leaves)
    is_both = choice.default is two_calls
    true = averaged(one_way, forms.truth((leaves[1], leaves[0], leaves[2]))) if is_both else one_way
    with selected({}):
        default = forms.step(choice.default, leaves)
    with selected(choice.variables):
        held = forms.step(choice.loss, leaves)
        found = {"modelled ms": list(choice.modelled)}
        found |= judge(
            forms.errors(held, true), forms.bounds(leaves, one_way, precision), ours=True
        )
        found["difference"] = {
            each: error(x, y.double())
            for each, x, y in zip(forms.NAMES, held, default)
            if x is not None
        }
        del held, default, true, one_way
        return (
            found
            if "wrong" in found
            else found | figures(lambda: forms.step(choice.loss, leaves), setting.device)
        )


def averaged(one: list[Tensor], other: list[Tensor]) -> list[Tensor]:
    """Returns loss, d h_ctr and d h_cvr of both directions, of the results of each."""
    return [(one[0] + other[0]) / 2, (one[1] + other[2]) / 2, (one[2] + other[1]) / 2]


@contextmanager
def selected(variables: dict[str, str]) -> Iterator[None]:
    """Sets the variables that choose kernels, and no others of them."""
    with mock.patch.dict(os.environ, variables):
        for name in {forms.SWEEPS, forms.BLOCKS} - set(variables):
            os.environ.pop(name, None)
        yield
