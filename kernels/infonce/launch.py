"""The host side of adaptive InfoNCE: prepares its inputs and launches the kernels.

The package's docstring gives the overview and defines shapes and names. All types share the kernels: float64
accumulates in float64, the others in float32. float32 products are IEEE by default, and with ``ieee`` always.
``torch.set_float32_matmul_precision`` "high" chooses three bfloat16 products of operands split in two (16 bits) on
sm_90, and TF32 (11 bits) elsewhere; "medium" chooses TF32. The softmax and its sums stay float32. bfloat16 and float16
round the softmax to the input type for the second product.
"""

from contextlib import nullcontext
from typing import NamedTuple

import torch
from adaftr_fast.kernels.infonce.column_sweep import infonce_column_sweep_kernel
from adaftr_fast.kernels.infonce.combine import infonce_combine_kernel
from adaftr_fast.kernels.infonce.config import Config, choose_gluon, chosen_blocks, max_offset
from adaftr_fast.kernels.infonce.operands import Operands, accumulation_dtype, check_device, prepare_operands
from adaftr_fast.kernels.infonce.plan import Given, Launch, Needs, Plan, Products, make_plan
from adaftr_fast.kernels.infonce.row_sweep import infonce_row_sweep_kernel
from adaftr_fast.kernels.infonce.tiles import IGNORE
from adaftr_fast.kernels.infonce.wide.anchor_sweep import infonce_anchor_sweep_kernel
from adaftr_fast.kernels.infonce.wide.bounded_sweep import (
    infonce_bounded_sweep_kernel,
    infonce_unbounded_anchor_sweep_kernel,
    infonce_unbounded_row_sweep_kernel,
)
from torch import Tensor

SMALL_PART = 2**17  # similarities for each multiprocessor, up to which a call is small: 16 tiles of 128 x 64
FEW_BLOCKS = 16  # that a column sweep streams unsplit: to join splits takes time too, in most types a launch


def infonce(
    anchors: Tensor,  # [B, d]
    candidates: Tensor,  # [N, d]
    tau: Tensor,  # [B]
    positive: Tensor | None,  # [B] int64, default arange(B); -100 ignores the row
    row_group: Tensor | None,  # [B] int64
    column_group: Tensor | None,  # [N] int64
    scale: Tensor,  # [B]
    need_d_anchors: bool,
    need_d_candidates: bool,
    need_d_tau: bool,
    need_stats: bool,
    ignore_above: float | None = None,
    margin: float = 0.0,
    positive_weight: Tensor | None = None,  # [B], default 1: of the positive in the target of the gradients
    *,
    ieee: bool = False,
) -> tuple[Tensor, ...]:
    """Computes the nine outputs of ``torch.ops.adaftr_fast.infonce``, on CUDA or under TRITON_INTERPRET=1.

    Returns loss [], rows, lse, positive_logit [B], top1, entropy [B], d_anchors [B, d], d_candidates [N, d] and
    d_tau [B] in the accumulation type; empty where not needed. Rows whose tau is not positive and finite, or whose
    positive is out of range, yield NaN, and d_candidates with them, because nothing is read back to check. Ignored
    rows yield zeros, whatever they hold.

    Raises:
        ValueError: the tensors are not on CUDA and kernels are not interpreted, or the GPU is older than compute
            capability 8.0.
    """
    check_device(anchors)
    needs = Needs(need_d_anchors, need_d_candidates, need_d_tau, need_stats)
    if anchors.shape[0] == 0 or candidates.shape[0] == 0:
        return _zeros(anchors, candidates, *needs)
    with torch.cuda.device(anchors.get_device()) if anchors.is_cuda else nullcontext():
        options = positive, row_group, column_group, ignore_above, margin, positive_weight
        problem = _prepare(anchors, candidates, tau, scale, *options, needs, ieee)
        *rows, row_terms, block_terms, arrivals, d_anchors, d_tau = _row_side(problem, needs)
        if need_d_candidates:
            loss, d_candidates = _column_side(problem, row_terms, block_terms, arrivals)
        else:
            loss, d_candidates = block_terms[2].sum(), d_anchors.new_empty(0)
    return loss, *rows, d_anchors, d_candidates, d_tau


class _Problem(NamedTuple):
    """The inputs as the kernels take them, and how these are launched."""

    operands: Operands
    plan: Plan
    gluon: Config | None  # of the sweeps in Gluon; None where they are not chosen or do not serve
    tau: Tensor  # [B] in the accumulation type, like the tensors of numbers that follow
    scale: Tensor  # [B]
    weight: Tensor | None  # [B]
    positive: Tensor | None  # [B]
    row_group: Tensor | None  # [B]
    column_group: Tensor | None  # [N]
    ignore_above: Tensor | None  # 0-dim; Triton's floats are not always of the accumulation type
    margin: Tensor | None  # 0-dim; None for 0


def _prepare(
    anchors, candidates, tau, scale, positive, row_group, column_group, ignore_above, margin, weight, needs: Needs, ieee
) -> _Problem:
    """Prepares the inputs, without groups that are given for one side only, and finds the plan."""
    acc_dtype = accumulation_dtype(anchors)
    tau, scale = _cast(tau, acc_dtype).contiguous(), _cast(scale, acc_dtype)
    weight = None if weight is None else _cast(weight, acc_dtype).contiguous()
    positive = None if positive is None else positive.contiguous()
    if row_group is None or column_group is None:
        row_group = column_group = None
    else:
        row_group, column_group = row_group.contiguous(), column_group.contiguous()
    ignore_above = None if ignore_above is None else tau.new_full((), ignore_above)
    margin = tau.new_full((), margin) if margin else None
    ignored = None if positive is None else positive == IGNORE.value
    operands = prepare_operands(anchors, candidates, ignored, splits=True, ieee=ieee)
    a, b, _, kind, d, _, capability, processors = operands
    (B, width), N = a.shape, b.shape[0]
    given = Given(*(x is not None for x in (positive, row_group, ignore_above, margin, weight)))
    products = Products(kind, a.dtype, acc_dtype, B, N, d, width, capability, processors)
    plan = make_plan(products, given, needs, SMALL_PART * processors >= B * N, FEW_BLOCKS, chosen_blocks())
    gluon = choose_gluon(a.dtype, width, capability)
    # TMA steps from row to row: rows of an expanded tensor lie at one address.
    if given.masks or min(a.stride(0), b.stride(0)) < width:
        gluon = None
    return _Problem(operands, plan, gluon, tau, scale, weight, positive, row_group, column_group, ignore_above, margin)


def _cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x if x.dtype == dtype else x.to(dtype)  # to() takes a microsecond to find that


def _zeros(anchors, candidates, need_d_anchors, need_d_candidates, need_d_tau, need_stats) -> tuple[Tensor, ...]:
    """Returns zeros: the outputs for no rows, or for no columns (every row is then ignored)."""
    B, acc_dtype = anchors.shape[0], accumulation_dtype(anchors)

    def zeros(*shape: int, needed: bool = True, dtype: torch.dtype = acc_dtype) -> Tensor:
        return anchors.new_zeros(shape if needed else 0, dtype=dtype)

    stats = zeros(B, needed=need_stats, dtype=torch.bool), zeros(B, needed=need_stats)
    gradients = (
        zeros(*anchors.shape, needed=need_d_anchors),
        zeros(*candidates.shape, needed=need_d_candidates),
        zeros(B, needed=need_d_tau),
    )
    return zeros(), zeros(B), zeros(B), zeros(B), *stats, *gradients


def _row_side(problem: _Problem, needs: Needs) -> tuple[Tensor, ...]:
    """Sweeps the rows and combines the splits.

    Returns rows, lse, positive_logit, top1, entropy, row_terms, block_terms, arrivals, d_anchors and d_tau.
    """
    operands, plan, _, tau, scale, weight, positive, *_, ignore_above, margin = problem
    a, b = operands.anchors, operands.candidates
    B, empty = a.shape[0], tau.new_empty
    positive_score, partials, acc = _sweep_rows(problem, needs.d_anchors)
    grid, options = plan.combine
    rows, lse, positive_logit = empty(B), empty(B), empty(B)
    top1, entropy = tau.new_empty(B if needs.stats else 0, dtype=torch.bool), empty(B if needs.stats else 0)
    row_terms = empty(5 if ignore_above is None else 6, B) if needs.d_candidates else empty(0)
    block_terms = empty(3, grid[0])
    arrivals = empty(plan.arrivals, dtype=torch.int32) if plan.arrivals else None
    d_anchors = empty(B, operands.d) if needs.d_anchors else empty(0)
    d_tau = empty(B if needs.d_tau else 0)
    infonce_combine_kernel[grid](
        a, b, tau, positive, scale, positive_score, margin, weight, partials, acc, rows, lse, positive_logit, top1,
        entropy, row_terms, block_terms, arrivals, d_anchors, d_tau, B, b.shape[0], partials.shape[0], plan.arrivals,
        a.stride(0), b.stride(0), scale.stride(0), **options,
    )  # fmt: skip
    if needs.d_candidates and ignore_above is not None:
        torch.add(positive_score, ignore_above, out=row_terms[5])
    return rows, lse, positive_logit, top1, entropy, row_terms, block_terms, arrivals, d_anchors, d_tau


def _sweep_rows(problem: _Problem, need_d_anchors: bool) -> tuple[Tensor, ...]:
    """Returns positive_score [B], partials [S, 4, B] and acc [S, B, D_PADDED], empty unless needed."""
    operands, plan, gluon, tau, *_, positive, row_group, column_group, ignore_above, margin = problem
    if gluon is not None and margin is None and not plan.need_sum_pz:
        from adaftr_fast.kernels.infonce.gluon_row import gluon_row_sweep  # imports Gluon, which Triton may lack

        return gluon_row_sweep(operands, gluon, tau, need_d_anchors)
    a, b = operands.swept
    B, width = operands.anchors.shape
    grid, options = plan.rows
    max_norm = _max_norm(operands) if plan.bounds_logits else None
    positive_score, partials = tau.new_empty(B), tau.new_empty(grid[1], 4, B)
    acc = tau.new_empty(grid[1], B, width) if need_d_anchors else tau.new_empty(0)
    if plan.bounded is not None:
        _sweep_bounded(plan.bounded, plan.anchors, a, b, tau, margin, max_norm, positive_score, partials, acc)
        return positive_score, partials, acc
    infonce_row_sweep_kernel[grid](
        a, b, tau, positive, row_group, column_group, ignore_above, margin, max_norm, positive_score, partials, acc, B,
        b.shape[0], a.stride(0), b.stride(0), **options,
    )  # fmt: skip
    if plan.anchors is not None:
        grid, options = plan.anchors
        infonce_anchor_sweep_kernel[grid](
            a, b, tau, positive, row_group, column_group, ignore_above, positive_score, partials, acc, B, b.shape[0],
            a.stride(0), b.stride(0), **options,
        )  # fmt: skip
    return positive_score, partials, acc


def _sweep_bounded(
    bounded: Launch, anchors: Launch, a, b, tau, margin, max_norm, positive_score, partials, acc
) -> None:
    """Sweeps the blocks of rows whose logits are bounded, and then the others; writes the last three tensors."""
    grid, options = bounded
    swept = tau.new_empty(grid[0], dtype=torch.int32)
    shape = a.shape[0], b.shape[0], a.stride(0), b.stride(0)
    infonce_bounded_sweep_kernel[grid](
        a, b, tau, margin, max_norm, swept, positive_score, partials, acc, *shape, **options
    )
    infonce_unbounded_row_sweep_kernel[grid](a, b, tau, margin, swept, positive_score, partials, *shape, **options)
    infonce_unbounded_anchor_sweep_kernel[grid](a, b, tau, swept, partials, acc, *shape, **anchors.options)


def _max_norm(operands: Operands) -> Tensor:
    return torch.linalg.vector_norm(operands.candidates, dim=1, dtype=operands.acc_dtype).amax()


def _column_side(problem: _Problem, row_terms, block_terms, arrivals: Tensor | None) -> tuple[Tensor, Tensor]:
    """Sweeps the columns; returns the loss [] and d_candidates [N, d]."""
    gluon = problem.gluon
    if gluon is None and problem.plan.reduces:
        loss = row_terms.new_empty(())
        return loss, _sweep_columns(problem, row_terms, block_terms, arrivals, loss)
    # The reduction within the sweep takes 21 instructions a tile: its results are not known to be uniform.
    loss, largest = block_terms[2].sum(), block_terms[:2].amax(1)
    if gluon is None:
        return loss, _sweep_columns(problem, row_terms, largest, None, None)
    from adaftr_fast.kernels.infonce.gluon_column import gluon_column_sweep  # as for the rows

    scales = largest * 2.0 ** -max_offset(problem.operands.anchors.dtype)
    return loss, _join(gluon_column_sweep(problem.operands, gluon, row_terms, scales))


def _sweep_columns(problem: _Problem, row_terms, block_terms, arrivals: Tensor | None, loss: Tensor | None) -> Tensor:
    """Launches the column sweep, which writes ``loss`` if it is given; returns d_candidates [N, d]."""
    a, b = problem.operands.swept
    N, d, (grid, options) = b.shape[0], problem.operands.d, problem.plan.columns
    partials = row_terms.new_empty(grid[1], N, d)
    d_candidates = None if arrivals is None else row_terms.new_empty(N, d)
    infonce_column_sweep_kernel[grid](
        a, b, problem.positive, problem.row_group, problem.column_group, row_terms, block_terms, arrivals, loss,
        partials, d_candidates, a.shape[0], N, block_terms.shape[-1], a.stride(0), b.stride(0), **options,
    )  # fmt: skip
    return _join(partials) if d_candidates is None else d_candidates


def _join(partials: Tensor) -> Tensor:
    return partials[0] if partials.shape[0] == 1 else partials.sum(0)
