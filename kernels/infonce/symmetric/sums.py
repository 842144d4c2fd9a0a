"""The first sweep of the symmetric loss: forms the scores once and sums the softmax of every row and every column.

The packages' docstrings define shapes and names. A program owns a block of rows and streams all columns past it. It
keeps (m_r, l_r) of its rows, as the row sweep does. Of a column it sees its own rows alone, so it writes for each
streamed block the columns' partials, over the rows r of its block without row j:

    m'_j = max_r z'_jr        l'_j = sum_r 2^(z'_jr - m'_j)

Their array [row blocks, 2, B] takes 8 B^2 / BLOCK_M bytes in float32: B^2 / 16 at 128 rows a block, 268 MB at
B = 65,536, where the matrix in bfloat16 takes 8.6 GB. It is twice that at 64 rows a block, beyond d = 128.

The scores are formed transposed, [columns, rows]: a thread then sums columns by itself but for four lanes, and holds
its part of the rows' sums until the end, so that the loop with COMMON exchanges nothing between warps.

With COMMON, blocks without masks take one exponential a pair, 2^(z_rj - center), for both directions, if one
temperature serves all rows and columns and if norms and positives bound the logits so that no sum overflows or
vanishes beside its positive (``common``). Other blocks have running maxima, and an exponential for each direction.
"""

# ruff: noqa: E741
# l is the running sum, as in FlashAttention.

import triton
import triton.language as tl
from adaftr_fast.kernels.infonce.tiles import (
    LOG2_E,
    load_block,
    load_row_parameters,
    partition_blocks,
    scores,
    split_blocks,
)

LOWEST = tl.constexpr(-3.0e38)  # the maximum where a block holds no negative of a column
SMALLEST_NORM = tl.constexpr(2.0**-50)  # squares below 2^-126 are flushed to 0, which would make a norm too small
MOST_BELOW = tl.constexpr(40.0)  # of a positive's logit below and above the center, in base 2
MOST_ABOVE = tl.constexpr(60.0)  # of any logit above it: 2^31 terms of 2^60 stay far below 2^126


@triton.jit(do_not_specialize=["B"])
def infonce_symmetric_positives_kernel(
    anchors_ptr,  # [B, D_PADDED]
    candidates_ptr,  # [B, D_PADDED]
    tau_row_ptr,  # [B]
    tau_column_ptr,  # [B]
    positive_score_ptr,  # [B] out: a_r . b_r
    scales_ptr,  # [2, B] out: softmax_scale_log2 of rows and of columns
    B,
    anchors_stride,
    candidates_stride,
    META: tl.constexpr,
):
    """Grid: (blocks of rows,). The positives' scores are the diagonal of a product, summed in the sweeps' order."""
    local = tl.arange(0, META.BLOCK_M)
    rows = tl.program_id(0) * META.BLOCK_M + local  # [BLOCK_M]
    a_desc = (anchors_ptr, anchors_stride, B)
    b_desc = (candidates_ptr, candidates_stride, B)
    s = scores(rows, a_desc, rows, rows, b_desc, rows, META.BLOCK_K, META)  # [BLOCK_M, BLOCK_M]
    inside = rows < B
    tl.store(positive_score_ptr + rows, tl.sum(tl.where(local[:, None] == local[None, :], s, 0.0), 1), mask=inside)
    _, row_scale, _ = load_row_parameters(tau_row_ptr, tau_row_ptr, rows, B, B, False)
    _, column_scale, _ = load_row_parameters(tau_column_ptr, tau_column_ptr, rows, B, B, False)
    tl.store(scales_ptr + rows, (row_scale * LOG2_E).to(META.ACC_DTYPE), mask=inside)
    tl.store(scales_ptr + B + rows, (column_scale * LOG2_E).to(META.ACC_DTYPE), mask=inside)


@triton.jit
def logits(s, scale, m):
    """z - m as one fused multiply-add of blocks that broadcast to ``s``."""
    return tl.fma(s, tl.broadcast_to(scale, s.shape), tl.broadcast_to(-m, s.shape))


@triton.jit
def common(bounds_ptr):
    """Returns whether one exponential serves both directions, softmax_scale_log2, and the center of the logits.

    ``bounds`` [6]: least and greatest softmax_scale_log2 of both sides, least and greatest score of a positive, and the
    largest norms of both sides. A NaN among them compares false. The factor leaves room for rounding.
    """
    scale = tl.load(bounds_ptr)
    low, high = tl.load(bounds_ptr + 2) * scale, tl.load(bounds_ptr + 3) * scale
    center = 0.5 * (low + high)
    norms = tl.maximum(tl.load(bounds_ptr + 4), SMALLEST_NORM) * tl.maximum(tl.load(bounds_ptr + 5), SMALLEST_NORM)
    fits = (high - center <= MOST_BELOW) & (norms * scale * 1.004 - center <= MOST_ABOVE)
    fits = fits & (scale == tl.load(bounds_ptr + 1)) & (scale > 0)
    return fits.to(tl.int32), scale, center


@triton.jit
def _by_place(p):
    """[N, M] -> [N / 16, 8, M]: adds what a thread of the matrix instructions holds of a column, rows 8 apart."""
    return tl.sum(tl.reshape(p, [p.shape[0] // 16, 2, 8, p.shape[1]]), 1)


@triton.jit
def _stream(state, a, a_desc, rows, b_desc, row_scale, column_scale_ptr, group, column_group_ptr, column_partials_ptr,
            center, first, count, gap_at, gap, MASKED: tl.constexpr, HAS_GROUP: tl.constexpr, COMMON: tl.constexpr,
            META: tl.constexpr):  # fmt: skip
    """Streams ``count`` blocks of columns past the rows, from block ``first`` on; skips ``gap`` after ``gap_at``.

    With COMMON, row_scale is that of all, and l is of places: [BLOCK_N / 16, 8, BLOCK_M].
    """
    m, l = state
    B = b_desc[2]
    for i in range(count):
        block = first + i + tl.where(i >= gap_at, gap, 0)
        columns = block * META.BLOCK_N + tl.arange(0, META.BLOCK_N)  # [BLOCK_N]
        inside = columns < B
        b = load_block(b_desc, columns, 0, META.D_PADDED, META.BLOCK_D, not MASKED)  # [BLOCK_N, BLOCK_D]
        s = scores(b, b_desc, columns, a, a_desc, rows, META.BLOCK_K, META)  # [BLOCK_N, BLOCK_M]
        if MASKED:
            s = tl.where(inside[:, None] & (rows < B)[None, :], s, float("-inf"))
            s = tl.where(columns[:, None] == rows[None, :], float("-inf"), s)
            if HAS_GROUP:
                column_group = tl.load(column_group_ptr + columns, mask=inside, other=0)
                s = tl.where(column_group[:, None] == group[None, :], float("-inf"), s)
        if COMMON:
            p = tl.exp2(tl.fma(s, tl.broadcast_to(row_scale, s.shape), tl.broadcast_to(-center, s.shape)))
            l += _by_place(p)
            column_m = tl.zeros([META.BLOCK_N], META.ACC_DTYPE) + center
        else:
            m_new = tl.maximum(m, tl.max(s, 0) * row_scale)  # [BLOCK_M]
            p = tl.exp2(logits(s, row_scale[None, :], m_new[None, :]))  # [BLOCK_N, BLOCK_M]
            l = l * tl.exp2(m - m_new) + tl.sum(p, 0)
            m = m_new
            column_scale = tl.load(column_scale_ptr + columns, mask=inside, other=1.0)
            column_m = tl.maximum(tl.max(s, 1) * column_scale, LOWEST)  # [BLOCK_N]
            p = tl.exp2(logits(s, column_scale[:, None], column_m[:, None]))  # [BLOCK_N, BLOCK_M]
        tl.store(column_partials_ptr + columns, column_m, mask=inside)
        tl.store(column_partials_ptr + B + columns, tl.sum(p, 1), mask=inside)
    return m, l


@triton.jit(do_not_specialize=["B"])
def infonce_symmetric_sums_kernel(
    anchors_ptr,  # [B, D_PADDED]
    candidates_ptr,  # [B, D_PADDED]
    positive_score_ptr,  # [B]
    scales_ptr,  # [2, B]
    row_group_ptr,  # [B] int64
    column_group_ptr,  # [B] int64
    bounds_ptr,  # [6], see common(); read with COMMON
    row_partials_ptr,  # [S, 2, B] out: m, l
    column_partials_ptr,  # [row blocks, 2, B] out: m, l
    B,
    anchors_stride,
    candidates_stride,
    HAS_GROUP: tl.constexpr,
    COMMON: tl.constexpr,
    META: tl.constexpr,
):
    """Grid: (blocks of rows, splits of the columns)."""
    row_block = tl.program_id(0)
    split = tl.program_id(1)
    row_start = row_block * META.BLOCK_M
    rows = row_start + tl.arange(0, META.BLOCK_M)  # [BLOCK_M]
    inside = rows < B
    row_scale = tl.load(scales_ptr + rows, mask=inside, other=1.0)
    group = rows
    if HAS_GROUP:
        group = tl.load(row_group_ptr + rows, mask=inside, other=0)
    a_desc = (anchors_ptr, anchors_stride, B)
    b_desc = (candidates_ptr, candidates_stride, B)
    a = load_block(a_desc, rows, 0, META.D_PADDED, META.BLOCK_D)  # [BLOCK_M, BLOCK_D]

    first, last = split_blocks(B, META.BLOCK_N)
    full = tl.where(row_start + META.BLOCK_M <= B, B // META.BLOCK_N, 0)  # no block is full beside rows beyond the last
    diagonal_last = tl.cdiv(tl.minimum(row_start + META.BLOCK_M, B), META.BLOCK_N)
    low, high, end = partition_blocks(first, last, full, row_start // META.BLOCK_N, diagonal_last, HAS_GROUP)
    m = tl.load(positive_score_ptr + rows, mask=inside, other=0.0) * row_scale
    l = tl.zeros([META.BLOCK_M], META.ACC_DTYPE)
    column_partials = column_partials_ptr + row_block.to(tl.int64) * 2 * B
    plain = end - first - (high - low)
    center = 0.0
    if COMMON:
        fits, scale, center = common(bounds_ptr)
        state = (m, tl.zeros([META.BLOCK_N // 16, 8, META.BLOCK_M], META.ACC_DTYPE))
        _, places = _stream(state, a, a_desc, rows, b_desc, scale, scales_ptr + B, group, column_group_ptr,
                            column_partials, center, first, fits * plain, low - first, high - low, False, HAS_GROUP,
                            True, META)  # fmt: skip
        m = tl.where(fits > 0, center, m)
        l = tl.sum(tl.sum(places, 0), 0)
        plain *= 1 - fits
    state = (m, l)
    if not HAS_GROUP:
        state = _stream(state, a, a_desc, rows, b_desc, row_scale, scales_ptr + B, group, column_group_ptr,
                        column_partials, center, first, plain, low - first, high - low, False, HAS_GROUP, False,
                        META)  # fmt: skip
    state = _stream(state, a, a_desc, rows, b_desc, row_scale, scales_ptr + B, group, column_group_ptr, column_partials,
                    center, low, high - low + last - end, high - low, end - high, True, HAS_GROUP, False,
                    META)  # fmt: skip
    m, l = state
    row_partials = row_partials_ptr + split.to(tl.int64) * 2 * B + rows
    tl.store(row_partials, m, mask=inside)
    tl.store(row_partials + B, l, mask=inside)
