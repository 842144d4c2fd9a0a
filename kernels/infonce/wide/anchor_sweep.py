"""The anchor sweep: sums softmax times candidates where the row sweep does not, in half types beyond 256, up to 512.

The package's docstring defines shapes and names. For each row r and split of the columns, with m_r as the row sweep
left it for that split:

    acc_r = sum_j 2^(z_rj - m_r) b_j    over the negatives

A block of 64 rows and the whole width takes two warpgroups. Each accumulates one half of the width, so it needs P of
all columns of a block. Where scores flow into another product, Triton has each warpgroup form all of them, so that four
products take the time of six, and registers spill. It does not follow a value out of a branch, and the masks are in
one: then each warpgroup forms the scores of half of the columns, and P passes through shared memory. One loop streams
all blocks. The branch must not change acc, or each matrix instruction waits for the one before; so m is known before.
column_sweep.py does likewise with BRANCHES.
"""

import triton
import triton.language as tl
from adaftr_fast.kernels.infonce.tiles import (
    LOG2_E,
    accumulate,
    load_operand,
    load_row_parameters,
    partition_blocks,
    scores,
    split_blocks,
)


@triton.jit(do_not_specialize=["B", "N"])
def infonce_anchor_sweep_kernel(
    anchors_ptr,  # [B, D_PADDED]
    candidates_ptr,  # [N, D_PADDED]
    tau_ptr,  # [B]
    positive_ptr,  # [B] int64
    row_group_ptr,  # [B] int64
    column_group_ptr,  # [N] int64
    ignore_above_ptr,  # []
    positive_score_ptr,  # [B]
    partials_ptr,  # [S, 4, B]: m, and what is not read here
    acc_ptr,  # [S, B, D_PADDED] out
    B,
    N,
    anchors_stride,
    candidates_stride,
    HAS_POSITIVE: tl.constexpr,
    HAS_GROUP: tl.constexpr,
    IGNORES: tl.constexpr,
    META: tl.constexpr,
):
    """Grid: (blocks of rows, splits of the columns), as of the row sweep. Blocks hold the whole width."""
    tl.static_assert(META.BLOCK_K == 0)
    split = tl.program_id(1)
    row_start = tl.program_id(0) * META.BLOCK_M
    rows = row_start + tl.arange(0, META.BLOCK_M)  # [BLOCK_M]
    inside = rows < B
    positive, softmax_scale, _ = load_row_parameters(tau_ptr, positive_ptr, rows, B, N, HAS_POSITIVE)
    softmax_scale_log2 = (softmax_scale * LOG2_E).to(META.ACC_DTYPE)
    m = tl.load(partials_ptr + split.to(tl.int64) * 4 * B + rows, mask=inside, other=0.0)
    group = rows
    if HAS_GROUP:
        group = tl.load(row_group_ptr + rows, mask=inside, other=0)
    bound = m
    if IGNORES:
        bound = tl.load(positive_score_ptr + rows, mask=inside, other=0.0) + tl.load(ignore_above_ptr)
    a_desc = (anchors_ptr, anchors_stride, B)
    b_desc = (candidates_ptr, candidates_stride, N)
    a = load_operand(a_desc, rows, 0, META.BLOCK_D, META)  # [BLOCK_M, BLOCK_D]

    first, last = split_blocks(N, META.BLOCK_N)
    diagonal_last = tl.cdiv(tl.minimum(row_start + META.BLOCK_M, B), META.BLOCK_N)
    all_masked: tl.constexpr = HAS_POSITIVE or HAS_GROUP
    low, high, end = partition_blocks(
        first, last, N // META.BLOCK_N, row_start // META.BLOCK_N, diagonal_last, all_masked
    )
    acc = tl.zeros([META.BLOCK_M, META.BLOCK_D], META.ACC_DTYPE)
    for block in range(first, last):
        columns = block * META.BLOCK_N + tl.arange(0, META.BLOCK_N)  # [BLOCK_N]
        b = load_operand(b_desc, columns, 0, META.BLOCK_D, META)  # [BLOCK_N, BLOCK_D]
        s = scores(a, a_desc, rows, b, b_desc, columns, 0, META)  # [BLOCK_M, BLOCK_N]
        if ((block >= low) & (block < high)) | (block >= end):
            s = tl.where((columns < N)[None, :], s, float("-inf"))
            s = tl.where(columns[None, :] == positive[:, None], float("-inf"), s)
            if HAS_GROUP:
                column_group = tl.load(column_group_ptr + columns, mask=columns < N, other=0)
                s = tl.where(column_group[None, :] == group[:, None], float("-inf"), s)
        if IGNORES:
            s = tl.where(s > bound[:, None], float("-inf"), s)
        z = tl.fma(s, tl.broadcast_to(softmax_scale_log2[:, None], s.shape), tl.broadcast_to(-m[:, None], s.shape))
        acc = accumulate(tl.exp2(z), b, acc, META)  # [BLOCK_M, BLOCK_D]

    width = tl.arange(0, META.BLOCK_D)
    offset = (split.to(tl.int64) * B + rows)[:, None] * META.D_PADDED + width[None, :]
    tl.store(acc_ptr + offset, acc, mask=inside[:, None] & (width < META.D_PADDED)[None, :])
