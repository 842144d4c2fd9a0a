"""The host side of the symmetric loss: prepares its inputs and launches the kernels.

Products are formed as for InfoNCE (launch.py there): float64 accumulates in float64, the other types in float32, and
float32 products are IEEE or TF32.
"""

from contextlib import nullcontext
from typing import NamedTuple

import torch
from adaftr_fast.kernels.infonce.config import (
    TYPES,
    Config,
    cdiv,
    choose_splits,
    constants,
    max_offset,
    product_kind,
)
from adaftr_fast.kernels.infonce.operands import (
    Grid,
    Operands,
    accumulation_dtype,
    check_device,
    prepare_operands,
)
from adaftr_fast.kernels.infonce.symmetric.combine import TERMS, infonce_symmetric_combine_kernel
from adaftr_fast.kernels.infonce.symmetric.config import choose_symmetric_tiling, has_common
from adaftr_fast.kernels.infonce.symmetric.gradient import infonce_symmetric_gradient_kernel
from adaftr_fast.kernels.infonce.symmetric.sums import (
    infonce_symmetric_positives_kernel,
    infonce_symmetric_sums_kernel,
)
from torch import Tensor

POSITIVES_BLOCK = 64  # rows of a program that forms positives: the least that half types need, and 64 / B of a product
COMBINE_BLOCK = 64
MOST_WIDTH = 256  # beyond, a sweep takes the width in slices, each of which forms the scores again
MOST_ROWS = 131_072  # the columns' partials (sums.py) take B^2 / 16 bytes, and B^2 / 8 beyond d = 128


def infonce_symmetric(
    anchors: Tensor,  # [B, d]
    candidates: Tensor,  # [B, d]
    tau_row: Tensor,  # [B]
    tau_column: Tensor,  # [B]
    row_group: Tensor | None,  # [B] int64
    column_group: Tensor | None,  # [B] int64
    scale: Tensor,  # [B]
    need_d_anchors: bool,
    need_d_candidates: bool,
    need_d_tau_row: bool,
    need_d_tau_column: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Computes InfoNCE averaged over both directions, on CUDA or under TRITON_INTERPRET=1.

    Row r's positive is column r, and the reverse. With L_r and L'_r the losses of row r and column r,

        loss = sum_r scale_r row_loss_r        row_loss_r = (L_r + L'_r) / 2

    Returns loss [], row_loss [B], d_anchors [B, d], d_candidates [B, d], d_tau_row [B] and d_tau_column [B] in the
    accumulation type; gradients are empty where not needed. A tau that is not positive and finite yields NaN in its
    row's loss and in the gradients, because nothing is read back to check.

    Raises:
        ValueError: the shapes differ, the tensors are not on CUDA and kernels are not interpreted, or the GPU is older
            than compute capability 8.0.
    """
    check_device(anchors)
    if anchors.shape != candidates.shape:
        raise ValueError(
            f"infonce_symmetric: candidates must have anchors' shape {tuple(anchors.shape)}, "
            f"got {tuple(candidates.shape)}"
        )
    needs = (need_d_anchors, need_d_candidates, need_d_tau_row, need_d_tau_column)
    if len(anchors) == 0:
        return _zeros(anchors, *needs)
    with torch.cuda.device(anchors.device) if anchors.is_cuda else nullcontext():
        problem = _prepare(anchors, candidates, tau_row, tau_column, row_group, column_group)
        scale = scale.to(problem.operands.acc_dtype).contiguous()
        row_loss, terms = _losses(problem, scale)
        d_anchors, d_tau_row = _gradients(problem, terms, 0, need_d_anchors, need_d_tau_row)
        d_candidates, d_tau_column = _gradients(problem, terms, 1, need_d_candidates, need_d_tau_column)
    return (scale * row_loss).sum(), row_loss, d_anchors, d_candidates, d_tau_row, d_tau_column


def serves_symmetric(anchors: Tensor, tau_row: Tensor, tau_column: Tensor, row_group: Tensor | None) -> bool:
    """Whether :func:`infonce_symmetric` should take the place of two calls of ``infonce`` for these inputs.

    It should for half types up to a width of 256, whose kernels compile without spills under Triton 3.6 and 3.9, and
    while the columns' partials take up to 1 GiB, beyond d = 128 2 GiB. On sm_90 up to d = 128, where exponentials take
    as long as products, it should without groups and for one temperature alone, given as one expanded tensor [B]: one
    exponential a pair then serves both directions.
    """
    rows, width = anchors.shape
    if product_kind(anchors.dtype) != "half" or width > MOST_WIDTH or rows > MOST_ROWS:
        return False
    if row_group is None and tau_row.stride(0) == 0 and tau_row.data_ptr() == tau_column.data_ptr():
        return True
    return width > 128 or not anchors.is_cuda or torch.cuda.get_device_capability(anchors.device) < (9, 0)


class _Problem(NamedTuple):
    """The inputs as the kernels take them. Pairs are of rows and of columns."""

    operands: Operands
    tau: tuple[Tensor, Tensor]  # [B] each
    groups: tuple[Tensor | None, Tensor | None]  # [B] each

    def config(self, sweep: str) -> Config:
        a = self.operands.anchors
        tiling = choose_symmetric_tiling(self.operands.kind, a.shape[1], self.operands.capability)
        config: Config = getattr(tiling, sweep)
        return config

    def launch_options(self, sweep: str, divide_width: bool) -> tuple[Grid, dict]:
        """Returns a sweep's grid (owned blocks, splits of the streamed side, slices of the width) and its options."""
        a = self.operands.anchors
        B, width = a.shape
        config = self.config(sweep)
        owned = cdiv(B, config.block_m)
        slices = cdiv(width, config.block_d) if divide_width else 1
        processors = self.operands.processors * config.programs
        splits = choose_splits(owned * slices, cdiv(B, config.block_n), processors)
        options = {"num_warps": config.num_warps, "num_stages": config.num_stages}
        options |= constants(a.dtype, self.operands.kind, width, config)
        grouped = self.groups[0] is not None
        masks = {"HAS_GROUP": grouped, "COMMON": has_common(a.dtype, sweep, config, grouped)}
        return (owned, splits, slices), options | masks


def _prepare(anchors: Tensor, candidates: Tensor, tau_row, tau_column, row_group, column_group) -> _Problem:
    """Prepares the operands and drops groups that are given for one side only."""
    grouped = row_group is not None and column_group is not None
    groups = (row_group.contiguous(), column_group.contiguous()) if grouped else (None, None)
    tau = tuple(x.to(accumulation_dtype(anchors)).contiguous() for x in (tau_row, tau_column))
    return _Problem(prepare_operands(anchors, candidates), tau, groups)


class _Terms(NamedTuple):
    """What the gradient sweeps read."""

    terms: Tensor  # [2, B, TERMS], see combine.py
    positive_score: Tensor  # [B]
    residual: Tensor  # [B]
    bounds: Tensor | None  # [6], see common() of sums.py
    descale: Tensor  # []: the unit of W in half precision


def _losses(problem: _Problem, scale: Tensor) -> tuple[Tensor, _Terms]:
    """Returns row_loss [B], and what the gradient sweeps read: see _Terms."""
    a, b, *_ = problem.operands
    empty = problem.operands.empty
    B, strides = len(a), (a.stride(0), b.stride(0))
    grid, options = problem.launch_options("sums", divide_width=False)
    positive_score, scales = _positives(problem, options)
    bounds = _bounds(a, b, scales, positive_score) if options["COMMON"] else None
    row_partials, column_partials = empty(grid[1], 2, B), empty(grid[0], 2, B)
    infonce_symmetric_sums_kernel[grid[:2]](
        a, b, positive_score, scales, *problem.groups, bounds, row_partials, column_partials, B, *strides, **options
    )
    row_loss, terms, sizes, residual = empty(B), empty(2, B, TERMS.value), empty(2, B), empty(B)
    infonce_symmetric_combine_kernel[(cdiv(B, COMBINE_BLOCK),)](
        row_partials, column_partials, *problem.tau, scales, positive_score, scale, bounds, row_loss, terms, sizes,
        residual, B, grid[1], grid[0], COMMON=options["COMMON"], BLOCK_M=COMBINE_BLOCK,
        ACC_DTYPE=TYPES[problem.operands.acc_dtype],
    )  # fmt: skip
    # The largest |grad_scale| of both sides, at least 2^-100, becomes 2^MAX_OFFSET.
    descale = torch.linalg.vector_norm(sizes, float("inf")) * 2.0 ** -max_offset(a.dtype)
    return row_loss, _Terms(terms, positive_score, residual, bounds, descale)


def _positives(problem: _Problem, options: dict) -> tuple[Tensor, Tensor]:
    """Returns positive_score [B] and softmax_scale_log2 of both sides [2, B]."""
    a, b, *_ = problem.operands
    positive_score, scales = problem.operands.empty(len(a)), problem.operands.empty(2, len(a))
    block_k = options["BLOCK_K"] or min(options["BLOCK_D"], 64)
    shared = {name: options[name] for name in ("D_PADDED", "OPERAND_DTYPE", "ACC_DTYPE", "INPUT_PRECISION")}
    infonce_symmetric_positives_kernel[(cdiv(len(a), POSITIVES_BLOCK),)](
        a, b, *problem.tau, positive_score, scales, len(a), a.stride(0), b.stride(0), BLOCK_M=POSITIVES_BLOCK,
        BLOCK_K=block_k, **shared,
    )  # fmt: skip
    return positive_score, scales


def _bounds(a: Tensor, b: Tensor, scales: Tensor, positive_score: Tensor) -> Tensor:
    """Returns the bounds [6] that common() of sums.py reads."""
    norms = (torch.linalg.vector_norm(x, dim=1, dtype=scales.dtype).amax() for x in (a, b))
    return torch.stack([*torch.aminmax(scales), *torch.aminmax(positive_score), *norms])


def _gradients(problem: _Problem, terms: _Terms, side: int, need_d_x: bool, need_d_tau: bool) -> tuple[Tensor, Tensor]:
    """Sweeps past the owned ``side``, 0 for rows; returns d_x [B, d] and d_tau [B], empty where not needed."""
    empty = problem.operands.empty
    if not (need_d_x or need_d_tau):
        return empty(0), empty(0)
    other = 1 - side
    sides = problem.operands.anchors, problem.operands.candidates
    x, y = sides[side], sides[other]
    B, d = len(x), problem.operands.d
    grid, options = problem.launch_options("gradient", divide_width=need_d_x)
    d_x = empty(grid[1], B, d) if need_d_x else empty(0)
    d_tau = empty(grid[1], B) if need_d_tau else empty(0)
    infonce_symmetric_gradient_kernel[grid](
        x, y, terms.terms[side], terms.terms[other], terms.positive_score, terms.residual, problem.groups[side],
        problem.groups[other], terms.bounds, terms.descale, d_x, d_tau, B, x.stride(0), y.stride(0),
        NEED_GRADIENT=need_d_x, NEED_D_TAU=need_d_tau, D=d, **options,
    )  # fmt: skip
    return _joined(d_x, need_d_x), _joined(d_tau, need_d_tau)


def _joined(splits: Tensor, needed: bool) -> Tensor:
    """Returns the sum of the splits, in order."""
    if not needed:
        return splits
    return splits[0] if len(splits) == 1 else splits.sum(0)


def _zeros(
    anchors: Tensor, need_d_anchors: bool, need_d_candidates: bool, need_d_tau_row: bool, need_d_tau_column: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Returns the outputs for no rows."""
    dtype = accumulation_dtype(anchors)
    d = anchors.shape[1]
    d_x = tuple(
        anchors.new_zeros((0, d) if need else (0,), dtype=dtype) for need in (need_d_anchors, need_d_candidates)
    )
    loss, row_loss, *d_tau = (anchors.new_zeros(shape, dtype=dtype) for shape in ((), 0, 0, 0))
    return loss, row_loss, *d_x, *d_tau
