"""``torch.ops.adaftr_fast.infonce``: adaptive InfoNCE and its gradients in one pass over the similarities.

Shapes: B rows (anchors a_r), N candidates b_j, d hidden width. Besides the loss, the op returns the gradients of
``loss = sum_r scale_r L_r``, because every backend can compute them while a similarity is in cache:

    d_anchors_r    = scale_r / tau_r (sum_j p_rj b_j - b_{y_r})
    d_candidates_j = sum_r scale_r / tau_r p_rj a_r - sum_{r: y_r = j} scale_r / tau_r a_r
    d_tau_r        = -(a_r . d_anchors_r) / tau_r

The gradients keep the accumulation type (float32, or float64), so that a loss scale applied upstream still acts on
their small values; backward only multiplies them by the upstream scalar. A gradient that is not needed is empty. When
backward receives a gradient of ``row_loss`` (reduction="none"), it calls the op again with that gradient as the scale.

The same schema is registered three times: ``infonce`` (the dispatcher selects C++ on CPU, Triton on CUDA and the
reference elsewhere), ``infonce_reference`` and ``infonce_triton``. The ops ``infonce_targets...`` take a margin and
several targets besides, by targets.py, and share the autograd formulas. They are ops of their own because every
argument of an op costs microseconds. csrc/cpu/infonce/autograd repeats the formula of ``infonce`` for CPU, because
Python's takes longer than a small call, and calls ``_infonce_gradients`` for the rare cases. ``infonce_sweep``, in
C++ alone, is ``infonce`` without autograd and with what targets.py asks of a sweep: a margin, and a weight w_r of the
positive, whose gradients are those of L_r + (1 - w_r) z_{r, y_r}.
"""

import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from adaftr_fast._extension import is_built
from adaftr_fast.ops.infonce.functional import Gradients, functional, loop
from adaftr_fast.ops.infonce.reference import IGNORE, infonce_gradients, infonce_rows, weighted
from adaftr_fast.ops.infonce.targets import Outputs, check_positives, with_targets
from adaftr_fast.ops.library import define, library

SCHEMA = (
    "(Tensor anchors, Tensor candidates, Tensor tau, Tensor? positive, Tensor? row_group, Tensor? column_group,"
    " Tensor scale, bool need_d_anchors, bool need_d_candidates, bool need_d_tau, bool need_stats,"
    " float? ignore_above=None) -> (Tensor loss, Tensor row_loss, Tensor lse, Tensor positive_logit, Tensor top1,"
    " Tensor entropy, Tensor d_anchors, Tensor d_candidates, Tensor d_tau)"
)
SCHEMA_OF_SWEEP = SCHEMA.replace(
    "ignore_above=None", "ignore_above=None, float margin=0.0, Tensor? positive_weight=None"
)
SCHEMA_OF_TARGETS = SCHEMA.replace(
    "ignore_above=None",
    "ignore_above=None, float margin=0.0, float label_smoothing=0.0, Tensor? row_label=None, Tensor? column_label=None",
)
NAMES = ("infonce", "infonce_reference", "infonce_triton")
TARGETS = "infonce_targets"  # the prefix of the ops of targets.py
NO_TARGETS = (0.0, 0.0, None, None)  # margin, label_smoothing, row_label and column_label of the ops without them


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """Returns float64 for float64 and float32 for every narrower type."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def reference(
    anchors: Tensor,
    candidates: Tensor,
    tau: Tensor,
    positive: Tensor | None,
    row_group: Tensor | None,
    column_group: Tensor | None,
    scale: Tensor,
    need_d_anchors: bool,
    need_d_candidates: bool,
    need_d_tau: bool,
    need_stats: bool,
    ignore_above: float | None = None,
    margin: float = 0.0,
    label_smoothing: float = 0.0,
    row_label: Tensor | None = None,
    column_label: Tensor | None = None,
) -> Outputs:
    """Computes the op in plain PyTorch, which stores the B x N similarities."""
    if anchors.device.type == "cpu":  # on other devices, reading the values would wait for the device
        if row_label is not None and positive is not None:
            check_positives(positive)
        _check_values(tau, positive, candidates.shape[0])
    acc = accumulation_dtype(anchors.dtype)
    inputs = anchors.to(acc), candidates.to(acc), tau.to(acc)
    options: tuple[Any, ...] = (positive, row_group, column_group, ignore_above, margin)
    options += (label_smoothing, row_label, column_label)
    result = infonce_rows(*inputs, *options)
    needs = (need_d_anchors, need_d_candidates, need_d_tau)
    gradients = infonce_gradients(*inputs, scale, *options) if any(needs) else inputs
    d_anchors, d_candidates, d_tau = (g if need else g.new_empty(0) for g, need in zip(gradients, needs))
    stats = (result.top1, result.entropy) if need_stats else (result.top1.new_empty(0), result.loss.new_empty(0))
    loss = weighted(result.loss, scale).sum()
    return loss, result.loss.clone(), result.lse, result.positive_logit, *stats, d_anchors, d_candidates, d_tau


def _check_values(tau: Tensor, positive: Tensor | None, num_candidates: int) -> None:
    """Checks the values of tau and positive, as the C++ kernel does."""
    used = torch.ones_like(tau, dtype=torch.bool) if positive is None else positive != IGNORE
    check_tau(tau, used)
    if positive is not None and (outside := used & ((positive < 0) | (positive >= num_candidates))).any():
        row = int(outside.nonzero()[0])
        raise RuntimeError(
            f"adaptive_infonce: positive_index must be in [0, {num_candidates}) or {IGNORE}, "
            f"got positive_index[{row}] = {positive[row].item()}"
        )


def check_tau(tau: Tensor, used: Tensor, of: str = "") -> None:
    """Checks the temperatures of the rows that are used."""
    bad = used & ~((tau > 0) & tau.isfinite())
    if bad.any():
        row = int(bad.nonzero()[0])
        raise RuntimeError(f"adaptive_infonce: tau{of} must be positive and finite, got tau[{row}] = {tau[row].item()}")


def triton_kernel(*args: Any) -> Outputs:
    """Computes the op by the Triton kernels."""
    from adaftr_fast.kernels.infonce import infonce  # imports triton, which CPU users may not have installed

    outputs: Outputs = infonce(*args)
    return outputs


def fake(
    anchors: Tensor,
    candidates: Tensor,
    tau: Tensor,
    positive: Tensor | None,
    row_group: Tensor | None,
    column_group: Tensor | None,
    scale: Tensor,
    need_d_anchors: bool,
    need_d_candidates: bool,
    need_d_tau: bool,
    need_stats: bool,
    *_: Any,
) -> Outputs:
    """Returns empty outputs of the right shapes and types."""
    acc = accumulation_dtype(anchors.dtype)
    row_loss = anchors.new_empty(anchors.shape[0], dtype=acc)

    def empty_unless(needed: bool, like: Tensor, dtype: torch.dtype = acc) -> Tensor:
        return like.new_empty(like.shape if needed else (0,), dtype=dtype)

    return (
        row_loss.new_empty(()),
        row_loss,
        torch.empty_like(row_loss),
        torch.empty_like(row_loss),
        empty_unless(need_stats, row_loss, torch.bool),
        empty_unless(need_stats, row_loss),
        empty_unless(need_d_anchors, anchors),
        empty_unless(need_d_candidates, candidates),
        empty_unless(need_d_tau, row_loss),
    )


def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Outputs) -> None:
    """Saves what the backward pass needs."""
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*output[2:])
    ctx.arguments = len(inputs)
    ignore_above, margin, label_smoothing, *labels = (*inputs[11:], *NO_TARGETS)[:5]
    ctx.numbers = (ignore_above, margin, label_smoothing)
    _, row_loss, _, _, _, _, d_anchors, d_candidates, d_tau = output
    ctx.save_for_backward(*inputs[:7], *labels, row_loss, d_anchors, d_candidates, d_tau)
    ctx.computed = inputs[7:10]


def backward_of(name: str) -> Callable[..., Gradients]:
    """Returns the autograd formula of op ``name``; a recomputation calls the same op."""

    def backward(ctx: Any, g_loss: Tensor | None, g_row_loss: Tensor | None, *_: Tensor | None) -> Gradients:
        if g_loss is None and g_row_loss is None:
            return (None,) * ctx.arguments
        # With create_graph=True, and always under torch.func, the gradients are differentiable themselves.
        gradients = _Gradients.apply if torch.is_grad_enabled() else _Gradients.forward
        needs = tuple(ctx.needs_input_grad[i] for i in (0, 1, 2, 6))
        d_anchors, d_candidates, d_tau, d_scale = gradients(
            name, needs, ctx.computed, ctx.numbers, g_loss, g_row_loss, *ctx.saved_tensors
        )
        return d_anchors, d_candidates, d_tau, None, None, None, d_scale, *(None,) * (ctx.arguments - 7)

    return backward


class _Gradients(torch.autograd.Function):
    """The gradients by the op, in anchors, candidates, tau and scale; None where not needed.

    Their own derivatives differentiate the reference, which stores the B x N similarities.
    """

    @staticmethod
    def forward(
        name: str,
        needs: tuple[bool, ...],
        computed: tuple[bool, ...],
        numbers: tuple[float | None, ...],
        g_loss: Tensor | None,
        g_row_loss: Tensor | None,
        *saved: Any,
    ) -> Gradients:
        *inputs, row_label, column_label, row_loss, d_anchors, d_candidates, d_tau = saved
        wanted = needs[:3]
        gradients, upstream = (d_anchors, d_candidates, d_tau), g_loss
        if g_row_loss is not None or any(w and not c for w, c in zip(wanted, computed)):
            scale = inputs[6] * g_loss if g_loss is not None else torch.zeros_like(inputs[6])
            scale = scale if g_row_loss is None else scale + g_row_loss
            op = getattr(torch.ops.adaftr_fast, name)
            options = (*numbers, row_label, column_label) if name.startswith(TARGETS) else numbers[:1]
            gradients, upstream = op(*inputs[:6], scale, *wanted, False, *options)[6:], None
        scaled = (g if upstream is None else g * upstream for g in gradients)
        cast = [g.to(x.dtype) if w else None for g, x, w in zip(scaled, inputs, wanted)]
        return (*cast, g_loss * row_loss if needs[3] and g_loss is not None else None)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Gradients) -> None:
        _, ctx.needs, _, ctx.numbers, g_loss, g_row_loss, *saved = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(g_loss, g_row_loss, *saved[:9])

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor | None) -> Gradients:
        g_loss, g_row_loss, anchors, candidates, tau, *masks, scale, row_label, column_label = ctx.saved_tensors
        options = (*masks, *ctx.numbers, row_label, column_label)

        def closed_form(*x: Tensor) -> tuple[Tensor, ...]:
            """The gradients as functions of g_loss, g_row_loss, anchors, candidates, tau and scale."""
            anchors, candidates, tau = (each.to(accumulation_dtype(each.dtype)) for each in x[2:5])
            row_scale = x[5] * x[0] + x[1]  # [B]
            first = infonce_gradients(anchors, candidates, tau, row_scale, *options)
            return *first, x[0] * infonce_rows(anchors, candidates, tau, *options).loss

        g_loss = tau.new_zeros(()) if g_loss is None else g_loss
        g_row_loss = torch.zeros_like(tau) if g_row_loss is None else g_row_loss
        inputs = (g_loss, g_row_loss, anchors, candidates, tau, scale)
        values, pull = torch.func.vjp(closed_form, *inputs)[:2]  # mypy: it may return three
        d = pull(tuple(torch.zeros_like(v) if g is None else g.to(v.dtype) for g, v in zip(upstream, values)))
        found = (*d[:5], None, None, None, d[5], *(None,) * 6)  # g_loss to d_tau
        needed = (g if need else None for g, need in zip(found, ctx.needs_input_grad[4:]))
        return None, None, None, None, *needed

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Gradients, tuple[int | None, ...]]:
        return loop(_Gradients, info.batch_size, in_dims, args)


FunctionalInfoNCE = functional(setup_context, backward_of)


def _targets_by_cpp(*args: Any) -> Outputs:
    return with_targets(torch.ops.adaftr_fast.infonce_sweep, *args)


def _targets_by_triton(*args: Any) -> Outputs:
    return with_targets(triton_kernel, *args)


def _gradients(
    needs: list[bool],
    computed: list[bool],
    ignore_above: float | None,
    g_loss: Tensor | None,
    g_row_loss: Tensor | None,
    saved: list[Tensor | None],
) -> Gradients:
    """Computes the gradients for csrc/cpu/infonce/autograd where they are not those of the forward pass."""
    gradients = _Gradients.apply if torch.is_grad_enabled() else _Gradients.forward
    numbers = (ignore_above, *NO_TARGETS[:2])
    found: Gradients = gradients(
        "infonce", tuple(needs), tuple(computed), numbers, g_loss, g_row_loss, *saved[:7], *NO_TARGETS[2:], *saved[7:]
    )
    return found


library.define(
    "_infonce_gradients(bool[] needs, bool[] computed, float? ignore_above, Tensor? g_loss, Tensor? g_row_loss,"
    " Tensor?[] saved) -> (Tensor, Tensor, Tensor, Tensor)"
)
library.impl("_infonce_gradients", _gradients, "CompositeImplicitAutograd")
for _name in NAMES:
    define(_name, SCHEMA, fake, setup_context, backward_of)
    define(_name.replace("infonce", TARGETS), SCHEMA_OF_TARGETS, fake, setup_context, backward_of)
library.define("infonce_sweep" + SCHEMA_OF_SWEEP)
if is_built():
    library.impl("infonce_targets", _targets_by_cpp, "CPU")
library.impl("infonce_targets", reference, "CompositeExplicitAutograd")
library.impl("infonce_targets_reference", reference, "CompositeExplicitAutograd")
library.impl("infonce_targets_triton", _targets_by_triton, "CompositeExplicitAutograd")
library.impl("infonce", reference, "CompositeExplicitAutograd")
library.impl("infonce_reference", reference, "CompositeExplicitAutograd")
library.impl("infonce_triton", triton_kernel, "CompositeExplicitAutograd")
if importlib.util.find_spec("triton") is not None:
    library.impl("infonce", triton_kernel, "CUDA")
    library.impl("infonce_targets", _targets_by_triton, "CUDA")
