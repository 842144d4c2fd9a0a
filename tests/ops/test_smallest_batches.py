"""Every public loss with at most one row and one candidate, or none of either, with gradients and
without.
"""

from functools import partial
from itertools import product

import pytest
import torch

import adaftr_fast as af
from adaftr_fast.nn import contrast, losses
from tests.ops.marks import on_kernels

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
SIZES = [(0, 0), (0, 3), (3, 0), (1, 1)]


def options_of(rows, columns):
    """Returns options of adaptive_infonce; a row without a candidate is ignored."""
    label = torch.full((rows,), 3 if rows <= columns else -100)
    column = torch.full((columns,), 3)
    index = {} if rows <= columns else {"positive_index": label}
    others = (
        {},
        *([{"block": 4}] if rows == columns else []),
        {"symmetric": True},
        {"symmetric": True, "row_weight": torch.ones(rows)},
        {"row_group": label, "column_group": column},
        {"label_smoothing": 0.1},
        {"margin": 0.2},
        {"column_bias": torch.ones(columns)},
        {"ignore_above": 0.5},
    )
    return [{"positive_group": (label, column)}, *(index | each for each in others)]


LABELS = torch.zeros(1).long()
RELATEDNESS = torch.ones(1)
MODULES = {
    "NTXentLoss": lambda a, b: losses.NTXentLoss()(a, b),
    "SupConLoss": lambda a, b: losses.SupConLoss()(a, LABELS[: len(a)]),
    "CLIPLoss": lambda a, b: losses.CLIPLoss()(a, b),
    "SigLIPLoss": lambda a, b: losses.SigLIPLoss()(0 * a, b, 10.0),
    "MultipleNegativesRankingLoss": lambda a, b: losses.MultipleNegativesRankingLoss()([a, b]),
    "symmetric ranking": lambda a, b: losses.MultipleNegativesRankingLoss(symmetric=True)([a, b]),
    "AdaptiveInfoNCE": lambda a, b: af.AdaptiveInfoNCE(symmetric=True)(a, b, RELATEDNESS[: len(a)]),
    **{
        name: lambda a, b, loss=loss: loss(a, b).sum() for name, loss in contrast.ALIGNMENTS.items()
    },
}


def pair(rows, columns, dtype, grad):
    return [torch.randn(n, 8, dtype=dtype).requires_grad_(grad) for n in (rows, columns)]


def results(loss, leaves):
    """Returns the loss and the gradients of its sum."""
    value = loss(*leaves)
    needed = [x for x in leaves if x.requires_grad]
    gradients = torch.autograd.grad(value.sum(), needed, allow_unused=True) if needed else ()
    return [value.detach(), *(g for g in gradients if g is not None)]


def assert_as_the_reference(loss, sizes, dtype, backend="auto"):
    for grad in (False, True):
        leaves = pair(*sizes, dtype, grad)
        found, expected = (
            results(partial(loss, backend=each), leaves) for each in (backend, "reference")
        )
        torch.testing.assert_close(found, expected)
        if 0 in sizes:
            assert not any(x.any() for x in found)


@on_kernels("infonce", *DTYPES)
def test_adaptive_infonce(dtype, instruction_set):
    for sizes in SIZES:
        for options, reduction in product(options_of(*sizes), ("mean", "none")):
            loss = partial(af.adaptive_infonce, tau=0.5, reduction=reduction, **options)
            assert_as_the_reference(loss, sizes, dtype)


@on_kernels("sigmoid", *DTYPES)
def test_sigmoid_contrast(dtype, instruction_set):
    for rows, columns in SIZES:
        options = {} if rows <= columns else {"positive_index": torch.full((rows,), -100)}
        for reduction in ("mean", "sum"):
            loss = partial(
                af.sigmoid_contrast, logit_scale=2.0, logit_bias=1.0, reduction=reduction, **options
            )
            assert_as_the_reference(loss, (rows, columns), dtype)


@pytest.mark.parametrize("module", MODULES)
def test_modules(module):
    for dtype, grad in product(DTYPES, (False, True)):
        loss, *gradients = results(MODULES[module], pair(0, 0, dtype, grad))
        assert loss == 0
        assert all(g.shape == (0, 8) for g in gradients)
        loss, *gradients = results(MODULES[module], pair(1, 1, dtype, grad))
        assert loss.isfinite()
        assert all(g.isfinite().all() for g in gradients)
