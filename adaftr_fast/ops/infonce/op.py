"""``torch.ops.adaftr_fast.infonce``: adaptive InfoNCE and its gradients in one pass over the similarities.

Shapes: B rows (anchors a_r), N candidates b_j, d hidden width. Besides the loss, the op returns the gradients of
``loss = sum_r scale_r L_r``, because every backend can compute them while a similarity is in cache:

    d_anchors_r    = scale_r / tau_r (sum_j p_rj b_j - b_{y_r})
    d_candidates_j = sum_r scale_r / tau_r p_rj a_r - sum_{r: y_r = j} scale_r / tau_r a_r
    d_tau_r        = -(a_r . d_anchors_r) / tau_r

The gradients keep the accumulation type (float32, or float64), so that a loss scale applied upstream still acts on
their small values. autograd.py has the backward pass.

The same schema is registered three times: ``infonce`` (the dispatcher selects C++ on CPU, Triton on CUDA and the
reference elsewhere), ``infonce_reference`` and ``infonce_triton``. The ops ``infonce_targets...`` take a margin and
several targets besides, by targets.py, and share the autograd formulas. They are ops of their own because every
argument of an op costs microseconds. csrc/cpu/infonce/autograd repeats the formula of ``infonce`` and
``infonce_blocks`` for CPU, because Python's takes longer than a small call, and calls ``_infonce_gradients`` and
``_infonce_blocks_gradients`` for the rare cases. ``infonce_sweep``, in C++ alone, is ``infonce`` without autograd and
with what targets.py asks of a sweep: a margin, and a weight w_r of the positive, whose gradients are those of
L_r + (1 - w_r) z_{r, y_r}.
"""

import importlib.util
from typing import Any

import torch
from torch import Tensor

from adaftr_fast._extension import is_built
from adaftr_fast.ops.infonce.autograd import Formula, accumulation_dtype, in_its_types, reference_dtype
from adaftr_fast.ops.infonce.reference import IGNORE, InfoNCERows, infonce_gradients, infonce_rows, weighted
from adaftr_fast.ops.infonce.targets import Outputs, check_positives, with_targets
from adaftr_fast.ops.library import library

SCHEMA = (
    "(Tensor anchors, Tensor candidates, Tensor tau, Tensor? positive, Tensor? row_group, Tensor? column_group,"
    " Tensor scale, bool need_d_anchors, bool need_d_candidates, bool need_d_tau, bool need_stats,"
    " float? ignore_above=None, *, bool ieee=False) -> (Tensor loss, Tensor row_loss, Tensor lse,"
    " Tensor positive_logit, Tensor top1, Tensor entropy, Tensor d_anchors, Tensor d_candidates, Tensor d_tau)"
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


@in_its_types
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
    *,
    ieee: bool = False,
) -> Outputs:
    """Computes the op in plain PyTorch, which stores the B x N similarities."""
    if anchors.device.type == "cpu":  # on other devices, reading the values would wait for the device
        if row_label is not None and positive is not None:
            check_positives(positive)
        _check_values(tau, positive, candidates.shape[0])
    dtype = reference_dtype(anchors.dtype, ieee)
    inputs = anchors.to(dtype), candidates.to(dtype), tau.to(dtype)
    options: tuple[Any, ...] = (positive, row_group, column_group, ignore_above, margin)
    options += (label_smoothing, row_label, column_label)
    result = infonce_rows(*inputs, *options)
    needs = (need_d_anchors, need_d_candidates, need_d_tau)
    gradients = infonce_gradients(*inputs, scale, *options) if any(needs) else inputs
    return outputs_of(result, gradients, scale, needs, need_stats, accumulation_dtype(anchors.dtype))


def outputs_of(
    rows: InfoNCERows,
    gradients: tuple[Tensor, Tensor, Tensor],
    scale: Tensor,
    needs: tuple[bool, bool, bool],
    need_stats: bool,
    dtype: torch.dtype,
) -> Outputs:
    """Returns the outputs of an op, in its accumulation type, from all results of a reference."""
    loss, row_loss = weighted(rows.loss, scale).sum().to(dtype), rows.loss.to(dtype, copy=True)
    top1, entropy = (rows.top1, rows.entropy) if need_stats else (rows.top1.new_empty(0), rows.loss.new_empty(0))
    lse, logit, entropy = (x.to(dtype) for x in (rows.lse, rows.positive_logit, entropy))
    kept = (g if need else g.new_empty(0) for g, need in zip(gradients, needs))
    d_anchors, d_candidates, d_tau = (g.to(dtype) for g in kept)
    return loss, row_loss, lse, logit, top1, entropy, d_anchors, d_candidates, d_tau


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


def triton_kernel(*args: Any, **options: Any) -> Outputs:
    """Computes the op by the Triton kernels."""
    from adaftr_fast.kernels.infonce import infonce  # imports triton, which CPU users may not have installed

    outputs: Outputs = infonce(*args, **options)
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
    ieee: bool = False,
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


def _row_loss(*arguments: Any) -> Tensor:
    return infonce_rows(*arguments).loss


FORMULA = Formula(3, 3, True, _row_loss, infonce_gradients)


def _targets_by_cpp(*args: Any, **options: Any) -> Outputs:
    return with_targets(torch.ops.adaftr_fast.infonce_sweep, *args, **options)


def _targets_by_triton(*args: Any, **options: Any) -> Outputs:
    return with_targets(triton_kernel, *args, **options)


FORMULA.define_gradients("infonce", "float? ignore_above")
for _name in NAMES:
    FORMULA.define(_name, SCHEMA, fake)
    FORMULA.define(_name.replace("infonce", TARGETS), SCHEMA_OF_TARGETS, fake)
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
