"""What the two InfoNCE kernels share: loading a block, the product of two blocks, the order of tiles, a row's terms.

Shapes: B rows, N columns, d hidden width (WIDTH: d rounded up to a multiple of 16), OWN the rows or columns a program
owns, TILE those that it streams past, DEPTH the width of a block in shared memory.
"""

import triton
import triton.language as tl

IGNORE = tl.constexpr(-100)
LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def load_block(ptr, stride, index, limit, start, WIDTH: tl.constexpr, DEPTH: tl.constexpr):
    """Entries ``start .. start + DEPTH`` of the rows ``index``; 0 outside of ``limit`` rows and WIDTH entries."""
    depth = start + tl.arange(0, DEPTH)
    mask = (index < limit)[:, None]
    if WIDTH % DEPTH != 0:
        mask = mask & (depth < WIDTH)[None, :]
    offset = index.to(tl.int64)[:, None] * stride + depth[None, :]
    return tl.load(ptr + offset, mask=mask, other=0.0)  # [index, DEPTH]


@triton.jit
def scores(x, x_source, x_index, y, y_source, y_index, WIDTH: tl.constexpr, PIECE: tl.constexpr, OPERAND: tl.constexpr,
           ACC: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """All products ``x_i . y_j``. Whole blocks where they fit (PIECE = 0), else both are read in pieces of PIECE."""
    s = tl.zeros([x_index.shape[0], y_index.shape[0]], ACC)
    if PIECE == 0:
        s = tl.dot(x.to(OPERAND), tl.trans(y.to(OPERAND)), s, input_precision=PRECISION, out_dtype=ACC)
    else:
        x_ptr, x_stride, x_limit = x_source
        y_ptr, y_stride, y_limit = y_source
        for start in range(0, WIDTH, PIECE):
            x_piece = load_block(x_ptr, x_stride, x_index, x_limit, start, WIDTH, PIECE).to(OPERAND)
            y_piece = load_block(y_ptr, y_stride, y_index, y_limit, start, WIDTH, PIECE).to(OPERAND)
            s = tl.dot(x_piece, tl.trans(y_piece), s, input_precision=PRECISION, out_dtype=ACC)
    return s


@triton.jit
def plan(first, last, full, diagonal_first, diagonal_last, ALL_SPECIAL: tl.constexpr):
    """Divide the tiles ``first .. last`` into plain ones, without a positive in them and whole, and special ones.

    Tiles from ``full`` on are ragged. Plain tiles are those of ``first .. end`` without ``low .. high``; special ones
    are ``low .. high`` and ``end .. last``. Each run is a plain loop over a counter, with one jump over a gap, so that
    loads are pipelined across it.
    """
    end = tl.minimum(last, tl.maximum(full, first))
    low, high = first, end
    if not ALL_SPECIAL:
        low = tl.minimum(tl.maximum(diagonal_first, first), end)
        high = tl.minimum(tl.maximum(diagonal_last, first), end)
    return low, high, end


@triton.jit
def row_terms(tau_ptr, positive_ptr, rows, B, N, HAS_POSITIVE: tl.constexpr, ACC: tl.constexpr):
    """Per row: its positive's column (within bounds), 1/tau in float64, whether it counts.

    1/tau is NaN, and with it all that the row yields, where tau is not positive and finite or the positive is out of
    range. Row terms are few, so that they afford float64: tau is rounded once.
    """
    inside = rows < B
    tau = tl.load(tau_ptr + rows, mask=inside, other=1.0).to(tl.float64)
    positive = rows.to(tl.int64)
    if HAS_POSITIVE:
        positive = tl.load(positive_ptr + rows, mask=inside, other=0)
    valid = positive != IGNORE
    right = (tau > 0) & (tau < float("inf")) & (positive >= 0) & (positive < N)
    inverse = tl.where(right, 1.0 / tau, float("nan"))
    inverse = tl.where(valid & inside, inverse, 1.0)  # rows that do not count are rows of zeros
    column = tl.minimum(tl.maximum(positive, 0), N - 1).to(tl.int32)
    return column, inverse, valid & inside
