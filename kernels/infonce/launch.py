"""The host side of adaptive InfoNCE: prepares its inputs and launches the three kernels.

The package's docstring gives the overview and defines shapes and names. All types share the kernels: float64
accumulates in float64, the others in float32. float32 products are IEEE by default.
``torch.set_float32_matmul_precision`` "high" chooses three bfloat16 products of operands split in two (16 bits) on
sm_90, and TF32 (11 bits) elsewhere; "medium" chooses TF32. The softmax and its sums stay float32. bfloat16 and float16
round the softmax to the input type for the second product.
"""

from contextlib import nullcontext
from typing import NamedTuple

import torch
import triton
from adaftr_fast.kernels.infonce.column_sweep import infonce_column_sweep_kernel
from adaftr_fast.kernels.infonce.combine import infonce_combine_kernel
from adaftr_fast.kernels.infonce.config import (
    TYPES,
    Config,
    cdiv,
    choose_gluon,
    folds_scale,
    has_fixed_max,
    max_offset,
)
from adaftr_fast.kernels.infonce.operands import (
    Grid,
    Operands,
    Sweep,
    accumulation_dtype,
    check_device,
    prepare_operands,
)
from adaftr_fast.kernels.infonce.row_sweep import infonce_row_sweep_kernel
from adaftr_fast.kernels.infonce.tiles import IGNORE
from torch import Tensor

SMALL_PART = 2**17  # similarities for each multiprocessor, up to which a call is small: 16 tiles of 128 x 64
COMBINE_BLOCK_M = 16  # rows a program of the combine kernel: O(d) work each, so small blocks spread over the GPU
COMBINE_BLOCK_D = {torch.bfloat16: 64, torch.float16: 64, torch.float32: 128, torch.float64: 128}  # others spill


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
    needs = (need_d_anchors, need_d_candidates, need_d_tau, need_stats)
    if anchors.shape[0] == 0 or candidates.shape[0] == 0:
        return _zeros(anchors, candidates, *needs)
    with torch.cuda.device(anchors.device) if anchors.is_cuda else nullcontext():
        problem = _prepare(anchors, candidates, positive, row_group, column_group, ignore_above, margin)
        acc_dtype = problem.operands.acc_dtype
        tau, scale = tau.to(acc_dtype).contiguous(), scale.to(acc_dtype)
        weight = None if positive_weight is None else positive_weight.to(acc_dtype).contiguous()
        *rows, row_terms, block_terms, d_anchors, d_tau = _row_side(problem, tau, scale, weight, *needs)
        if need_d_candidates:
            loss, d_candidates = _column_side(problem, row_terms, block_terms)
        else:
            loss, d_candidates = block_terms[2].sum(), problem.operands.empty(0)
    return loss, *rows, d_anchors, d_candidates, d_tau


class _Problem(NamedTuple):
    """The operands and what decides on each row's candidates, as the kernels take them."""

    operands: Operands
    positive: Tensor | None  # [B]
    row_group: Tensor | None  # [B]
    column_group: Tensor | None  # [N]
    ignore_above: Tensor | None  # 0-dim in the accumulation type, which Triton's floats are not always; margin too
    margin: Tensor | None  # None for 0

    @property
    def is_masked(self) -> bool:
        """Whether anything but the diagonal decides on a row's positive and negatives."""
        return any(x is not None for x in (self.positive, self.row_group, self.ignore_above))

    @property
    def is_small(self) -> bool:
        """Whether launches take a considerable part of the call."""
        return SMALL_PART * self.operands.processors >= len(self.operands.anchors) * len(self.operands.candidates)

    def gluon_config(self) -> Config | None:
        """Returns the config of the sweeps in Gluon, or None where they are not chosen or do not serve."""
        a, b = self.operands.anchors, self.operands.candidates
        width = a.shape[1]
        config = choose_gluon(a.dtype, width, self.operands.capability)
        # TMA steps from row to row: rows of an expanded tensor lie at one address.
        return None if self.is_masked or min(a.stride(0), b.stride(0)) < width else config

    def launch_options(self, sweep: Sweep, divide_width: bool) -> tuple[Grid, dict]:
        """Returns a sweep's grid and its options, as Operands does, and which masks there are."""
        grid, options = self.operands.launch_options(sweep, divide_width)
        masks = {
            "HAS_POSITIVE": self.positive is not None,
            "HAS_GROUP": self.row_group is not None,
            "IGNORES": self.ignore_above is not None,
        }
        return grid, options | masks


def _prepare(anchors: Tensor, candidates: Tensor, positive, row_group, column_group, ignore_above, margin) -> _Problem:
    """Prepares the operands and drops groups that are given for one side only."""
    grouped = row_group is not None and column_group is not None
    indices = [positive, row_group if grouped else None, column_group if grouped else None]
    positive, row_group, column_group = (x if x is None else x.contiguous() for x in indices)
    numbers = ignore_above, margin or None
    ignore_above, margin = (
        x if x is None else anchors.new_full((), x, dtype=accumulation_dtype(anchors)) for x in numbers
    )
    ignored = None if positive is None else positive == IGNORE.value
    operands = prepare_operands(anchors, candidates, ignored, splits=True)
    return _Problem(operands, positive, row_group, column_group, ignore_above, margin)


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


def _row_side(problem: _Problem, tau, scale, weight, need_d_anchors, need_d_candidates, need_d_tau, need_stats):
    """Sweeps the rows and combines the splits.

    Returns rows, lse, positive_logit, top1, entropy, row_terms, block_terms, d_anchors and d_tau.
    """
    a, b, d = problem.operands.anchors, problem.operands.candidates, problem.operands.d
    empty = problem.operands.empty
    B, width = a.shape
    strides = (a.stride(0), b.stride(0))
    need_sum_pz = need_stats or (need_d_tau and not need_d_anchors)
    positive_score, partials, acc = _sweep_rows(problem, tau, need_d_anchors, need_sum_pz)
    rows, lse, positive_logit = empty(B), empty(B), empty(B)
    top1, entropy = empty(B if need_stats else 0, dtype=torch.bool), empty(B if need_stats else 0)
    row_terms = empty(5 + (problem.ignore_above is not None), B) if need_d_candidates else empty(0)
    block_terms = empty(3, cdiv(B, COMBINE_BLOCK_M))
    d_anchors, d_tau = empty(B, d) if need_d_anchors else empty(0), empty(B if need_d_tau else 0)
    infonce_combine_kernel[(block_terms.shape[1],)](
        a, b, tau, problem.positive, scale, positive_score, problem.margin, weight, partials, acc,
        rows, lse, positive_logit, top1, entropy, row_terms, block_terms, d_anchors, d_tau,
        B, b.shape[0], partials.shape[0], *strides, scale.stride(0),
        HAS_POSITIVE=problem.positive is not None, HAS_MARGIN=problem.margin is not None,
        HAS_WEIGHT=weight is not None, NEED_D_ANCHORS=need_d_anchors, NEED_D_CANDIDATES=need_d_candidates,
        NEED_D_TAU=need_d_tau, NEED_STATS=need_stats, BLOCK_M=COMBINE_BLOCK_M,
        BLOCK_D=min(COMBINE_BLOCK_D[a.dtype], triton.next_power_of_2(width)), D=d, D_PADDED=width,
        ACC_DTYPE=TYPES[problem.operands.acc_dtype],
    )  # fmt: skip
    if need_d_candidates and problem.ignore_above is not None:
        torch.add(positive_score, problem.ignore_above, out=row_terms[5])
    return rows, lse, positive_logit, top1, entropy, row_terms, block_terms, d_anchors, d_tau


def _sweep_rows(problem: _Problem, tau, need_d_anchors: bool, need_sum_pz: bool) -> tuple[Tensor, ...]:
    """Returns positive_score [B], partials [S, 4, B] and acc [S, B, D_PADDED], empty unless needed."""
    a, b = problem.operands.swept
    N, empty = b.shape[0], problem.operands.empty
    B, width = problem.operands.anchors.shape
    strides = (a.stride(0), b.stride(0))
    dtype, gluon = problem.operands.anchors.dtype, problem.gluon_config()
    if gluon is not None and problem.margin is None and not need_sum_pz:
        from adaftr_fast.kernels.infonce.gluon_row import gluon_row_sweep  # imports Gluon, which Triton may lack

        return gluon_row_sweep(problem.operands, gluon, tau, need_d_anchors)
    sweep = "row_sweep_pz" if need_sum_pz else "row_sweep_explicit" if problem.is_masked else "row_sweep"
    grid, options = problem.launch_options(sweep, divide_width=need_d_anchors)
    # The largest norm takes two launches, which cost a small call more than the fixed maximum saves.
    config = problem.operands.config(sweep)
    fixed_max = not (problem.is_small or problem.is_masked) and has_fixed_max(dtype, config, need_sum_pz)
    max_norm = _max_norm(problem.operands) if fixed_max else None
    positive_score, partials = empty(B), empty(grid[1], 4, B)
    acc = empty(grid[1], B, width) if need_d_anchors else empty(0)
    infonce_row_sweep_kernel[grid](
        a, b, tau, problem.positive, problem.row_group, problem.column_group, problem.ignore_above,
        problem.margin, max_norm, positive_score, partials, acc, B, N, *strides,
        HAS_MARGIN=problem.margin is not None, FIXED_MAX=fixed_max, NEED_D_ANCHORS=need_d_anchors,
        NEED_SUM_PZ=need_sum_pz, MAX_OFFSET=max_offset(a.dtype), **options,
    )  # fmt: skip
    return positive_score, partials, acc


def _max_norm(operands: Operands) -> Tensor:
    return torch.linalg.vector_norm(operands.candidates, dim=1, dtype=operands.acc_dtype).amax()


def _column_side(problem: _Problem, row_terms: Tensor, block_terms: Tensor) -> tuple[Tensor, Tensor]:
    """Sweeps the columns; returns the loss [] and d_candidates [N, d]."""
    gluon = problem.gluon_config()
    if gluon is None and problem.is_small:
        loss = problem.operands.empty()
        d_candidates = _sweep_columns(problem, row_terms, block_terms, loss)
    else:  # the reduction within the sweep takes 21 instructions a tile: its results are not known to be uniform
        loss, largest = block_terms[2].sum(), block_terms[:2].amax(1)
        if gluon is None:
            d_candidates = _sweep_columns(problem, row_terms, largest, None)
        else:
            from adaftr_fast.kernels.infonce.gluon_column import gluon_column_sweep  # as for the rows

            scales = largest * 2.0 ** -max_offset(problem.operands.anchors.dtype)
            d_candidates = gluon_column_sweep(problem.operands, gluon, row_terms, scales)
    return loss, d_candidates[0] if d_candidates.shape[0] == 1 else d_candidates.sum(0)


def _sweep_columns(problem: _Problem, row_terms: Tensor, block_terms: Tensor, loss: Tensor | None) -> Tensor:
    """Launches the column sweep, which writes ``loss`` if it is given; returns the splits' d_candidates [S, N, d]."""
    (a, b), d = problem.operands.swept, problem.operands.d
    B, N = a.shape[0], b.shape[0]
    grid, options = problem.launch_options("column_sweep", divide_width=True)
    folded = not problem.is_masked and folds_scale(a.dtype, problem.operands.config("column_sweep"))
    d_candidates = problem.operands.empty(grid[1], N, d)
    infonce_column_sweep_kernel[grid](
        a, b, problem.positive, problem.row_group, problem.column_group, row_terms, block_terms, loss,
        d_candidates, B, N, block_terms.shape[-1], a.stride(0), b.stride(0), FOLDED=folded, D=d,
        MAX_OFFSET=max_offset(a.dtype), REDUCES=loss is not None, **options,
    )  # fmt: skip
    return d_candidates
