"""Adaptive InfoNCE and its gradients on the GPU, in four products of size B N d and two sweeps of exponentials.

    row sweep     S = A B^T, online softmax, P B           row_sweep.py       2 products (1 without d_row)
    completion    loss, statistics, d_row, d_tau           combine.py         O(B d)
    column sweep  S again, P^T A with the finished sums    column_sweep.py    2 products, only for d_column

No B x N array, no atomics, every sum in a fixed order: the same inputs give the same bits on the same card. Nothing
is read back to the host, so the call can be captured in a CUDA graph.

Shapes: B rows, N columns, d hidden width. All types share the kernels: float64 accumulates in float64, the others in
float32. float32 products are IEEE by default; ``torch.set_float32_matmul_precision`` "high" and "medium" both choose
TF32 here (10 bits of mantissa; the softmax and its sums stay float32). bfloat16 and float16 round the softmax to the
input type for the second product.

What the tiling rests on:
* A program owns OWN rows (columns in the column sweep) and streams TILE of the others past them, both whole in width
  up to DEPTH, so that a tile is read once for two products. Registers bound OWN * DEPTH (the float32 accumulator: 128
  of 255 registers a thread at 128 x 256 with 8 warps) plus OWN * TILE; shared memory bounds
  (OWN + stages * TILE) * DEPTH. A wgmma reads its left block from shared memory once for TILE columns, which makes
  TILE = 32 shared-memory bound: 64 or more where registers allow.
* Where that does not fit (PIECE > 0) the first product reads both operands in pieces of the width from L2, and the
  width of the output is divided over programs, each of which forms the first product again: with half types beyond
  256 (512 on sm_80, whose matrix instruction is content with 32 rows) and with float32 beyond 64 (IEEE) and 128
  (TF32). IEEE float32 has no matrix unit, and Triton unrolls an FMA product over its whole depth, so pieces also
  bound compile time and registers.
* Tiles that hold a positive or stick out are taken last, by a second copy of the loop with masks; the first copy is
  free of compares. Explicit positives and groups always take the masked copy.
* Small B or N leaves multiprocessors idle: the streamed side is then split, and the parts are joined in order.
* Operands are read as rows of a multiple of 16 elements from 16-byte boundaries (copied there if need be: O(B d)),
  because anything else turns asynchronous 16-byte copies into 2-byte loads.
"""

from contextlib import nullcontext
from typing import NamedTuple

import torch
import triton
from adaftr_fast.kernels.infonce.column_sweep import infonce_column_kernel
from adaftr_fast.kernels.infonce.combine import infonce_finish_kernel
from adaftr_fast.kernels.infonce.config import (
    INTERPRETED,
    choose_row,
    choose_splits,
    constants,
    lift,
    product_kind,
)
from adaftr_fast.kernels.infonce.row_sweep import infonce_sweep_kernel
from torch import Tensor

IGNORE = -100
WIDTH_MULTIPLE = 16  # elements: the least depth of a half-precision product, and Triton's hint for vector loads
ASSUMED_PROCESSORS = 2  # under the interpreter: small test sizes then meet both one and several splits


def _operand(h: Tensor, ignored: Tensor | None = None) -> Tensor:
    """``h`` as rows of a multiple of 16 elements from 16-byte boundaries, ignored rows zeroed; a copy if need be."""
    width = h.shape[1]
    aligned = h.stride(1) == 1 and h.stride(0) % WIDTH_MULTIPLE == 0 and h.data_ptr() % 16 == 0
    if aligned and ignored is None and width % WIDTH_MULTIPLE == 0:
        return h
    out = h.new_zeros(h.shape[0], -(-width // WIDTH_MULTIPLE) * WIDTH_MULTIPLE)
    out[:, :width] = h if ignored is None else h.masked_fill(ignored[:, None], 0)
    return out


class _Problem(NamedTuple):
    """The operands as the kernels take them, and where they run."""

    a: Tensor  # [B, WIDTH]
    b: Tensor  # [N, WIDTH]
    positive: Tensor | None  # [B]
    row_group: Tensor | None  # [B]
    column_group: Tensor | None  # [N]
    d: int
    acc: torch.dtype
    capability: int
    processors: int

    def empty(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        return self.a.new_empty(shape, dtype=dtype or self.acc)

    def launch(self, sweep: str, wide: bool) -> tuple[tuple[int, int, int], dict]:
        """Grid (blocks owned, splits of what is streamed, chunks of the output's width) and options of a sweep."""
        kind, width = product_kind(self.a.dtype), self.a.shape[1]
        config = getattr(choose_row(kind, width, self.capability), sweep)
        own, streamed = (len(self.b), len(self.a)) if sweep == "columns" else (len(self.a), len(self.b))
        chunks = -(-width // config.depth) if wide else 1
        blocks, tiles = -(-own // config.own), -(-streamed // config.tile)
        options = {
            "HAS_POSITIVE": self.positive is not None,
            "HAS_GROUP": self.row_group is not None,
            "num_warps": config.num_warps,
            "num_stages": config.num_stages,
        }
        grid = (blocks, choose_splits(blocks * chunks, tiles, self.processors), chunks)
        return grid, options | constants(self.a.dtype, kind, width, config)


def _problem(h_row: Tensor, h_column: Tensor, positive, row_group, column_group) -> _Problem:
    grouped = row_group is not None and column_group is not None
    indices = [positive, row_group if grouped else None, column_group if grouped else None]
    positive, row_group, column_group = (x if x is None else x.contiguous() for x in indices)
    a, b = _operand(h_row, None if positive is None else positive == IGNORE), _operand(h_column)
    acc = torch.float64 if a.dtype == torch.float64 else torch.float32
    capability, processors = 80, ASSUMED_PROCESSORS
    if a.is_cuda:
        properties = torch.cuda.get_device_properties(a.device)
        capability, processors = properties.major * 10 + properties.minor, properties.multi_processor_count
        if capability >= 120:  # has the matrix instructions and the shared memory of sm_89, not those of sm_90
            capability = 89
    return _Problem(a, b, positive, row_group, column_group, h_row.shape[1], acc, capability, processors)


def infonce(
    h_row: Tensor,  # [B, d]
    h_column: Tensor,  # [N, d]
    tau: Tensor,  # [B]
    positive: Tensor | None,  # [B] int64, default arange(B); -100 ignores the row
    row_group: Tensor | None,  # [B] int64
    column_group: Tensor | None,  # [N] int64
    coefficient: Tensor,  # [B]
    need_row: bool,
    need_column: bool,
    need_tau: bool,
    need_stats: bool,
) -> tuple[Tensor, ...]:
    """The nine outputs of ``torch.ops.adaftr_fast.infonce``, on CUDA or under TRITON_INTERPRET=1.

    loss [], rows, lse, positive_logit [B], top1, entropy [B], d_row [B, d], d_column [N, d], d_tau [B] in the
    accumulation type; empty where not needed. Rows whose tau is not positive and finite, or whose positive is out of
    range, yield NaN, and d_column with them, because nothing is read back to check. Ignored rows yield zeros,
    whatever they hold.
    """
    if not h_row.is_cuda and not INTERPRETED:
        raise ValueError(f"kernels.infonce: h_row must be on CUDA without TRITON_INTERPRET=1, got {h_row.device}")
    B, N = h_row.shape[0], h_column.shape[0]
    if B == 0 or N == 0:
        return _nothing(h_row, h_column, need_row, need_column, need_tau, need_stats)
    with torch.cuda.device(h_row.device) if h_row.is_cuda else nullcontext():
        problem = _problem(h_row, h_column, positive, row_group, column_group)
        tau, coefficient = tau.to(problem.acc).contiguous(), coefficient.to(problem.acc).contiguous()
        *rows, slope, d_row, d_tau = _row_side(problem, tau, coefficient, need_row, need_column, need_tau, need_stats)
        d_column = _column_side(problem, slope) if need_column else problem.empty(0)
    return (coefficient * rows[0]).sum(), *rows, d_row, d_column, d_tau


def _nothing(h_row, h_column, need_row, need_column, need_tau, need_stats) -> tuple[Tensor, ...]:
    """No rows, or no columns (then every row is ignored): zeros."""
    B = h_row.shape[0]
    acc = torch.float64 if h_row.dtype == torch.float64 else torch.float32

    def zeros(*shape: int, needed: bool = True, dtype: torch.dtype = acc) -> Tensor:
        return h_row.new_zeros(shape if needed else 0, dtype=dtype)

    stats = zeros(B, needed=need_stats, dtype=torch.bool), zeros(B, needed=need_stats)
    gradients = (
        zeros(*h_row.shape, needed=need_row),
        zeros(*h_column.shape, needed=need_column),
        zeros(B, needed=need_tau),
    )
    return zeros(), zeros(B), zeros(B), zeros(B), *stats, *gradients


def _row_side(problem: _Problem, tau: Tensor, coefficient: Tensor, need_row, need_column, need_tau, need_stats):
    """Row sweep and completion: rows, lse, positive logit, top1, entropy, slope, d_row, d_tau."""
    a, b, empty = problem.a, problem.b, problem.empty
    B, width = a.shape
    strides = (a.stride(0), b.stride(0))
    need_moment = need_stats or (need_tau and not need_row)
    grid, options = problem.launch("moments" if need_moment else "rows", wide=need_row)
    splits = grid[1]
    score, sums = empty(B), empty(splits, 4, B)
    o = empty(splits, B, width) if need_row else empty(0)
    infonce_sweep_kernel[grid](
        a, b, tau, problem.positive, problem.row_group, problem.column_group, score, sums, o, B, len(b), *strides,
        NEED_ROW=need_row, NEED_MOMENT=need_moment,
        LIFT=lift(a.dtype), **options,
    )  # fmt: skip
    rows, lse, logit = empty(B), empty(B), empty(B)
    top1, entropy = empty(B if need_stats else 0, dtype=torch.bool), empty(B if need_stats else 0)
    slope = empty(5, B) if need_column else empty(0)
    d_row, d_tau = empty(B, problem.d) if need_row else empty(0), empty(B if need_tau else 0)
    own = 16
    infonce_finish_kernel[(-(-B // own),)](
        a, b, tau, problem.positive, coefficient, score, sums, o, rows, lse, logit, top1, entropy, slope, d_row, d_tau,
        B, len(b), splits, *strides, HAS_POSITIVE=problem.positive is not None, NEED_ROW=need_row,
        NEED_COLUMN=need_column, NEED_TAU=need_tau, NEED_STATS=need_stats, OWN=own, D=problem.d, WIDTH=width,
        DEPTH=min(128, triton.next_power_of_2(width)), ACC=options["ACC"],
    )  # fmt: skip
    return rows, lse, logit, top1, entropy, slope, d_row, d_tau


def _column_side(problem: _Problem, slope: Tensor) -> Tensor:
    """Column sweep: d_column [N, d]."""
    a, b = problem.a, problem.b
    grid, options = problem.launch("columns", wide=True)
    peak = torch.linalg.vector_norm(slope[4], float("inf")) * 2.0 ** -lift(a.dtype)  # 0-dim, stays on the device
    out = problem.empty(grid[1], len(b), problem.d)
    infonce_column_kernel[grid](
        a, b, problem.positive, problem.row_group, problem.column_group, slope, peak, out, len(a), len(b),
        a.stride(0), b.stride(0), D=problem.d, **options,
    )  # fmt: skip
    return out[0] if len(out) == 1 else out.sum(0)
