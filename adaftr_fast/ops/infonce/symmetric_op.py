"""``torch.ops.adaftr_fast.infonce_symmetric``: adaptive InfoNCE in both directions, which share the similarities.

Shapes: B rows (anchors a_r) and B candidates b_j, d hidden width. Row r and candidate r are each other's positive.
With the loss L_r of row r over the candidates and the loss L'_r of candidate r over the rows, each with temperatures of
its own, the op returns ``row_loss_r = (L_r + L'_r) / 2`` and ``loss = sum_r scale_r row_loss_r``. As ``infonce`` does,
it returns the gradients of ``loss`` too, in the accumulation type, empty where not needed:

    W_rj           = scale_r / (2 tau_r) (p_rj - [j = r]) + scale_j / (2 tau'_j) (p'_jr - [j = r])
    d_anchors_r    = sum_j W_rj b_j
    d_candidates_j = sum_r W_rj a_r
    d_tau_row_r    = -scale_r / (2 tau_r^2) sum_j (p_rj - [j = r]) a_r . b_j, and d_tau_column likewise

The same schema is registered three times: ``infonce_symmetric`` (the dispatcher selects C++ on CPU, Triton on CUDA and
the reference elsewhere), ``infonce_symmetric_reference`` and ``infonce_symmetric_triton``.
"""

import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from adaftr_fast.ops.infonce.autograd import Formula, accumulation_dtype, in_its_types, reference_dtype
from adaftr_fast.ops.infonce.op import check_tau, triton_kernel
from adaftr_fast.ops.infonce.reference import infonce_gradients, infonce_rows, weighted
from adaftr_fast.ops.library import library

SCHEMA = (
    "(Tensor anchors, Tensor candidates, Tensor tau_row, Tensor tau_column, Tensor? row_group, Tensor? column_group,"
    " Tensor scale, bool need_d_anchors, bool need_d_candidates, bool need_d_tau_row, bool need_d_tau_column,"
    " *, bool ieee=False)"
    " -> (Tensor loss, Tensor row_loss, Tensor d_anchors, Tensor d_candidates, Tensor d_tau_row, Tensor d_tau_column)"
)
NAMES = ("infonce_symmetric", "infonce_symmetric_reference", "infonce_symmetric_triton")
Outputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def both_directions(
    op: Callable[..., Any],
    inputs: tuple[Tensor, Tensor, Tensor, Tensor],
    row_group: Tensor | None,
    column_group: Tensor | None,
    scale: Tensor,
    reduction: str,
) -> Tensor:
    """Computes the loss of h_ctr, h_cvr and both temperatures by an op of this file.

    With reduction "none" the gradients depend on the upstream gradient, so backward computes them.
    """
    with_gradients = torch.is_grad_enabled() and reduction != "none"
    needs = (with_gradients and x.requires_grad for x in inputs)
    loss, row_loss = op(*inputs, row_group, column_group, scale, *needs)[:2]
    result: Tensor = weighted(row_loss, scale) if reduction == "none" else loss
    return result


def _row_loss(*inputs: Any) -> Tensor:
    """Computes the mean of both directions' losses [B] by the reference."""
    anchors, candidates, tau_row, tau_column, row_group, column_group = inputs
    forward = infonce_rows(anchors, candidates, tau_row, None, row_group, column_group).loss
    return (forward + infonce_rows(candidates, anchors, tau_column, None, column_group, row_group).loss) / 2


def _closed_form(*inputs: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Computes the gradients of ``sum_r scale_r row_loss_r`` by the reference."""
    anchors, candidates, tau_row, tau_column, scale, row_group, column_group = inputs
    half = scale / 2
    d_a, d_b, d_tau_row = infonce_gradients(anchors, candidates, tau_row, half, None, row_group, column_group)
    e_b, e_a, d_tau_column = infonce_gradients(candidates, anchors, tau_column, half, None, column_group, row_group)
    return d_a + e_a, d_b + e_b, d_tau_row, d_tau_column


@in_its_types
def _reference(*args: Any, ieee: bool = False) -> Outputs:
    """Computes the op in plain PyTorch, which stores the B x B similarities."""
    (anchors, candidates, tau_row, tau_column, row_group, column_group, scale), needs = args[:7], args[7:]
    if anchors.device.type == "cpu":  # on other devices, reading the values would wait for the device
        for tau, of in ((tau_row, ""), (tau_column, " (per column)")):
            check_tau(tau, torch.ones_like(tau, dtype=torch.bool), of)
    acc, dtype = accumulation_dtype(anchors.dtype), reference_dtype(anchors.dtype, ieee)
    inputs = [x.to(dtype) for x in (anchors, candidates, tau_row, tau_column)]
    row_loss = _row_loss(*inputs, row_group, column_group)
    gradients = _closed_form(*inputs, scale, row_group, column_group) if any(needs) else inputs
    d = (g.to(acc) if need else g.new_empty(0, dtype=acc) for g, need in zip(gradients, needs))
    return weighted(row_loss, scale).sum().to(acc), row_loss.to(acc), *d


def _two_sweeps(infonce: Callable[..., Any], *args: Any, **options: Any) -> Outputs:
    """Computes the op by two calls of one with the arguments of ``infonce``."""
    a, b, tau_row, tau_column, row_group, column_group, scale, need_a, need_b, need_row, need_column = args
    half = scale / 2
    one = infonce(a, b, tau_row, None, row_group, column_group, half, need_a, need_b, need_row, False, **options)
    two = infonce(b, a, tau_column, None, column_group, row_group, half, need_b, need_a, need_column, False, **options)
    return one[0] + two[0], (one[1] + two[1]) / 2, one[6] + two[7], one[7] + two[6], one[8], two[8]


def _triton(*args: Any, **options: Any) -> Outputs:
    from adaftr_fast.kernels.infonce import infonce_symmetric, serves_symmetric  # imports triton

    if not serves_symmetric(args[0], *args[2:5]):
        return _two_sweeps(triton_kernel, *args, **options)
    outputs: Outputs = infonce_symmetric(*args)  # of half types, for which ieee means nothing
    return outputs


def _fake(*args: Any, **_: Any) -> Outputs:
    anchors, candidates = args[:2]
    acc = accumulation_dtype(anchors.dtype)
    row_loss = anchors.new_empty(anchors.shape[0], dtype=acc)
    like = (anchors, candidates, row_loss, row_loss)
    d = (x.new_empty(x.shape if need else (0,), dtype=acc) for x, need in zip(like, args[7:]))
    return row_loss.new_empty(()), row_loss, *d


FORMULA = Formula(4, 2, False, _row_loss, _closed_form)

for _name in NAMES:
    FORMULA.define(_name, SCHEMA, _fake)
    library.impl(_name, _triton if _name.endswith("_triton") else _reference, "CompositeExplicitAutograd")
if importlib.util.find_spec("triton") is not None:
    library.impl("infonce_symmetric", _triton, "CUDA")
