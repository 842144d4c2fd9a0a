"""``torch.ops.adaftr_fast.infonce``: adaptive InfoNCE and its gradients in one sweep over the similarities.

Shapes: B rows, N columns, d hidden width. The op returns, beside the loss, the gradients of
``loss = sum_r coefficient_r L_r``, because every backend has them at hand while a similarity is in cache:

    d_row_r    = coefficient_r / tau_r (sum_j p_rj b_j - b_{y_r})
    d_column_j = sum_r coefficient_r / tau_r p_rj a_r - sum_{r: y_r = j} coefficient_r / tau_r a_r
    d_tau_r    = -(a_r . d_row_r) / tau_r

They stay in the accumulation type (float32, or float64), so that a loss scale applied upstream still finds their
small values, and backward only multiplies by the upstream scalar. What is not needed comes back empty. Where
backward meets a gradient on ``rows`` (reduction="none"), it calls the op again with that as the coefficient.

The same schema is registered three times: ``infonce`` (the dispatcher picks C++ on CPU, Triton on CUDA, else the
reference), ``infonce_reference`` and ``infonce_triton``.
"""

import importlib.util

import torch
from torch import Tensor

from adaftr_fast.ops.infonce.reference import IGNORE, infonce_gradients, infonce_rows
from adaftr_fast.ops.library import library

SCHEMA = (
    "(Tensor h_row, Tensor h_column, Tensor tau, Tensor? positive, Tensor? row_group, Tensor? column_group,"
    " Tensor coefficient, bool need_row, bool need_column, bool need_tau, bool need_stats) -> (Tensor loss,"
    " Tensor rows, Tensor lse, Tensor positive_logit, Tensor top1, Tensor entropy,"
    " Tensor d_row, Tensor d_column, Tensor d_tau)"
)
NAMES = ("infonce", "infonce_reference", "infonce_triton")
Outputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 stays; everything narrower is accumulated in float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _reference(
    h_row,
    h_column,
    tau,
    positive,
    row_group,
    column_group,
    coefficient,
    need_row,
    need_column,
    need_tau,
    need_stats,
) -> Outputs:
    if h_row.device.type == "cpu":  # elsewhere a look at the values would wait for the device
        _check_values(tau, positive, h_column.shape[0])
    acc = accumulation_dtype(h_row.dtype)
    inputs = [x.to(acc) for x in (h_row, h_column, tau)]
    masks = (positive, row_group, column_group)
    result = infonce_rows(*inputs, *masks)
    gradients = infonce_gradients(*inputs, coefficient, *masks) if need_row or need_column or need_tau else inputs
    gradients = [g if need else g.new_empty(0) for g, need in zip(gradients, (need_row, need_column, need_tau))]
    stats = (result.top1, result.entropy) if need_stats else (result.top1.new_empty(0), result.loss.new_empty(0))
    loss = (coefficient * result.loss).sum()
    return (loss, result.loss.clone(), result.lse, result.positive_logit, *stats, *gradients)


def _check_values(tau: Tensor, positive: Tensor | None, columns: int) -> None:
    """The C++ kernel's checks of values, for the reference."""
    used = torch.ones_like(tau, dtype=torch.bool) if positive is None else positive != IGNORE
    bad = used & ~((tau > 0) & tau.isfinite())
    if bad.any():
        row = int(bad.nonzero()[0])
        raise RuntimeError(f"adaptive_infonce: tau must be positive and finite, got tau[{row}] = {tau[row].item()}")
    if positive is not None and (outside := used & ((positive < 0) | (positive >= columns))).any():
        row = int(outside.nonzero()[0])
        raise RuntimeError(
            f"adaptive_infonce: positive_index must be in [0, {columns}) or {IGNORE}, "
            f"got positive_index[{row}] = {positive[row].item()}"
        )


def _triton(*args) -> Outputs:
    from adaftr_fast.kernels.infonce import infonce  # imports triton, which CPU users need not have

    return infonce(*args)


def _fake(
    h_row,
    h_column,
    tau,
    positive,
    row_group,
    column_group,
    coefficient,
    need_row,
    need_column,
    need_tau,
    need_stats,
) -> Outputs:
    acc = accumulation_dtype(h_row.dtype)
    rows = h_row.new_empty(h_row.shape[0], dtype=acc)

    def empty_unless(needed: bool, like: Tensor, dtype: torch.dtype = acc) -> Tensor:
        return like.new_empty(like.shape if needed else (0,), dtype=dtype)

    return (
        rows.new_empty(()),
        rows,
        torch.empty_like(rows),
        torch.empty_like(rows),
        empty_unless(need_stats, rows, torch.bool),
        empty_unless(need_stats, rows),
        empty_unless(need_row, h_row),
        empty_unless(need_column, h_column),
        empty_unless(need_tau, rows),
    )


def _setup_context(ctx, inputs, output) -> None:
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*output[2:])
    *tensors, need_row, need_column, need_tau, _ = inputs
    _, rows, _, _, _, _, d_row, d_column, d_tau = output
    ctx.save_for_backward(*tensors, rows, d_row, d_column, d_tau)
    ctx.computed = (need_row, need_column, need_tau)


def _backward_of(name: str):
    """The autograd formula of op ``name``; a recomputation goes through the same op."""

    def backward(ctx, g_loss, g_rows, *_):
        *inputs, rows, d_row, d_column, d_tau = ctx.saved_tensors
        if g_loss is None and g_rows is None:
            return (None,) * 11
        needs = ctx.needs_input_grad
        if torch.is_grad_enabled():  # create_graph=True: the graph of the reference, so that double backward is right
            return _differentiable_gradients(inputs, g_loss, g_rows, needs)
        g_coefficient = g_loss * rows if needs[6] and g_loss is not None else None
        wanted = needs[:3]
        gradients, scale = (d_row, d_column, d_tau), g_loss
        if g_rows is not None or any(w and not c for w, c in zip(wanted, ctx.computed)):
            coefficient = inputs[6] * g_loss if g_loss is not None else torch.zeros_like(inputs[6])
            coefficient = coefficient if g_rows is None else coefficient + g_rows
            op = getattr(torch.ops.adaftr_fast, name)
            gradients, scale = op(*inputs[:6], coefficient, *wanted, False)[6:], None
        scaled = (g if scale is None else g * scale for g in gradients)
        cast = [g.to(x.dtype) if w else None for g, x, w in zip(scaled, inputs, wanted)]
        return (*cast, None, None, None, g_coefficient, None, None, None, None)

    return backward


def _differentiable_gradients(inputs, g_loss, g_rows, needs) -> tuple:
    # Aliases: one input may be another, or be made from it, and what flows there is the outer graph's to add.
    inputs = [x.view_as(x) if i in (0, 1, 2, 6) else x for i, x in enumerate(inputs)]
    acc = accumulation_dtype(inputs[0].dtype)
    rows = infonce_rows(*(x.to(acc) for x in inputs[:3]), *inputs[3:6]).loss  # [B]
    total = rows.new_zeros(())
    if g_loss is not None:
        total = total + g_loss * (inputs[6] * rows).sum()
    if g_rows is not None:
        total = total + (g_rows * rows).sum()
    places = [i for i in (0, 1, 2, 6) if needs[i]]
    found = torch.autograd.grad(total, [inputs[i] for i in places], create_graph=True, allow_unused=True)
    gradients = [None] * 11
    for place, gradient in zip(places, found):
        gradients[place] = gradient
    return tuple(gradients)


for _name in NAMES:
    library.define(_name + SCHEMA)
    torch.library.register_fake(f"adaftr_fast::{_name}", _fake, lib=library)
    torch.library.register_autograd(
        f"adaftr_fast::{_name}", _backward_of(_name), setup_context=_setup_context, lib=library
    )
library.impl("infonce", _reference, "CompositeExplicitAutograd")
library.impl("infonce_reference", _reference, "CompositeExplicitAutograd")
library.impl("infonce_triton", _triton, "CompositeExplicitAutograd")
if importlib.util.find_spec("triton") is not None:
    library.impl("infonce", _triton, "CUDA")
