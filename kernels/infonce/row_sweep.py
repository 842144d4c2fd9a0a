"""The row sweep: streams the candidates past blocks of anchors and keeps each row's online softmax.

The package's docstring defines shapes and names. For each row r, over its negatives j:

    l_r      = sum_j 2^(z_rj - m_r)
    sum_pz_r = sum_j 2^(z_rj - m_r) (z_rj - m_r)
    acc_r    = sum_j 2^(z_rj - m_r) b_j

m_r starts at the positive's logit, less the margin over tau. combine.py adds the positive itself, where 1 - p is
l / (l + 2^(z_ry - m)) and so keeps its digits when p is near 1. softmax_scale_log2 multiplies the scores in the
accumulation type, never the half-precision inputs.

With FIXED_MAX, m_r stays in blocks without masks, if the norms of anchors and candidates bound the logits of all the
program's rows so that nothing can overflow. This takes the maximum, the rescaling of acc and the exchange between
threads out of the loop: 224 to 251 instructions for a 128 x 64 tile at d = 128 on sm_90, where a running maximum takes
351 to 371. Other rows, and blocks with masks, have a running maximum.
"""

# ruff: noqa: E741
# l is the running sum, as in FlashAttention.

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

SMALLEST_SQUARE = tl.constexpr(2.0**-100)  # squares below are flushed to 0, which would make a norm too small
SMALLEST_NORM = tl.constexpr(2.0**-50)
MOST_LOG2 = tl.constexpr(88.0)  # of a term of l, and of acc: 2^31 of them, times their logarithms, are below 2^126


@triton.jit
def _by_place(x):
    """[M, N] -> [M, N / 8, 8]: a thread holds whole columns of the middle dimension, so it reduces them by itself."""
    return tl.reshape(x, [x.shape[0], x.shape[1] // 8, 8])


@triton.jit
def _logits(s, softmax_scale_log2, m):
    """z - m as one fused multiply-add."""
    return tl.fma(s, tl.broadcast_to(softmax_scale_log2[:, None], s.shape), tl.broadcast_to(-m[:, None], s.shape))


@triton.jit
def _fits(m, a, softmax_scale_log2, max_norm):
    """Whether no logit of any of the rows can exceed m by so much that a sum overflows; false if one is NaN.

    |a_r . b_j| <= |a_r| |b_j|; the factor leaves room for rounding, of TF32 too.
    """
    a = a.to(m.dtype)
    norm = tl.sqrt(tl.maximum(tl.sum(a * a, 1), SMALLEST_SQUARE))
    max_norm = tl.maximum(max_norm, SMALLEST_NORM)
    excess = norm * max_norm * softmax_scale_log2 * 1.004 - m + tl.maximum(tl.log2(max_norm), 0.0)
    return tl.min((excess < MOST_LOG2).to(tl.int32), 0)


@triton.jit
def _stream_columns(state, anchors, candidates, blocks, MASKED: tl.constexpr, FIXED_MAX: tl.constexpr,
                    HAS_GROUP: tl.constexpr, IGNORES: tl.constexpr, NEED_D_ANCHORS: tl.constexpr,
                    NEED_SUM_PZ: tl.constexpr, META: tl.constexpr):  # fmt: skip
    """Streams ``count`` blocks of columns past the rows, from block ``first`` on; skips ``gap`` after ``gap_at``.

    With FIXED_MAX, m stays, and l, sum_pz and max_negative are of 8 places each: [BLOCK_M, 8].
    """
    m, l, sum_pz, max_negative, acc = state
    a, a_desc, rows, softmax_scale_log2, positive, group, bound = anchors
    b_desc, column_group_ptr, d_start = candidates
    first, count, gap_at, gap = blocks
    N = b_desc[2]
    for i in range(count):
        block = first + i + tl.where(i >= gap_at, gap, 0)
        columns = block * META.BLOCK_N + tl.arange(0, META.BLOCK_N)  # [BLOCK_N]
        b = columns
        if NEED_D_ANCHORS or META.BLOCK_K == 0:
            b = load_operand(b_desc, columns, d_start, META.BLOCK_D, META, not MASKED)  # [BLOCK_N, BLOCK_D]
        s = scores(a, a_desc, rows, b, b_desc, columns, META.BLOCK_K, META)  # [BLOCK_M, BLOCK_N]
        if MASKED:
            s = tl.where((columns < N)[None, :], s, float("-inf"))
            s = tl.where(columns[None, :] == positive[:, None], float("-inf"), s)
            if HAS_GROUP:
                column_group = tl.load(column_group_ptr + columns, mask=columns < N, other=0)
                s = tl.where(column_group[None, :] == group[:, None], float("-inf"), s)
        if IGNORES:
            s = tl.where(s > bound[:, None], float("-inf"), s)
        if FIXED_MAX:
            z = _logits(s, softmax_scale_log2, m)
            p = tl.exp2(z)  # [BLOCK_M, BLOCK_N]
            if NEED_SUM_PZ:
                max_negative = tl.maximum(max_negative, tl.max(_by_place(s), 1))
                sum_pz += tl.sum(_by_place(p * z), 1)
            l += tl.sum(_by_place(p), 1)
        else:
            block_max = tl.max(s, 1)  # [BLOCK_M]
            max_negative = tl.maximum(max_negative, block_max)
            m_new = tl.maximum(m, block_max * softmax_scale_log2 - META.MAX_OFFSET)
            log2_alpha = m - m_new
            alpha = tl.exp2(log2_alpha)
            z = _logits(s, softmax_scale_log2, m_new)
            p = tl.exp2(z)  # [BLOCK_M, BLOCK_N]
            if NEED_SUM_PZ:
                z = tl.maximum(z, -2048.0)  # where p is 0 in any type: masked columns would give 0 * -inf
                sum_pz = alpha * (sum_pz + l * log2_alpha) + tl.sum(p * z, 1)
            l = l * alpha + tl.sum(p, 1)
            if NEED_D_ANCHORS:
                acc *= alpha[:, None]
            m = m_new
        if NEED_D_ANCHORS:
            acc = accumulate(p, b, acc, META)  # [BLOCK_M, BLOCK_D]
    return m, l, sum_pz, max_negative, acc


@triton.jit(do_not_specialize=["B", "N"])
def infonce_row_sweep_kernel(
    anchors_ptr,  # [B, D_PADDED]
    candidates_ptr,  # [N, D_PADDED]
    tau_ptr,  # [B]
    positive_ptr,  # [B] int64
    row_group_ptr,  # [B] int64
    column_group_ptr,  # [N] int64
    ignore_above_ptr,  # []
    margin_ptr,  # []: subtracted from the positive's score in the softmax; read with HAS_MARGIN
    max_norm_ptr,  # []: the largest Euclidean norm of a candidate; read with FIXED_MAX
    positive_score_ptr,  # [B] out: a_r . b_{y_r}
    partials_ptr,  # [S, 4, B] out: m, l, sum_pz, largest score of a negative
    acc_ptr,  # [S, B, D_PADDED] out
    B,
    N,
    anchors_stride,
    candidates_stride,
    HAS_POSITIVE: tl.constexpr,
    HAS_GROUP: tl.constexpr,
    IGNORES: tl.constexpr,
    HAS_MARGIN: tl.constexpr,
    FIXED_MAX: tl.constexpr,
    NEED_D_ANCHORS: tl.constexpr,
    NEED_SUM_PZ: tl.constexpr,
    META: tl.constexpr,
):
    """Grid: (blocks of rows, splits of the columns, slices of acc's width)."""
    split = tl.program_id(1)
    d_start = tl.program_id(2) * META.BLOCK_D
    row_start = tl.program_id(0) * META.BLOCK_M
    local = tl.arange(0, META.BLOCK_M)
    rows = row_start + local  # [BLOCK_M]
    positive, softmax_scale, _ = load_row_parameters(tau_ptr, positive_ptr, rows, B, N, HAS_POSITIVE)
    softmax_scale_log2 = (softmax_scale * LOG2_E).to(META.ACC_DTYPE)
    group = rows
    if HAS_GROUP:
        group = tl.load(row_group_ptr + rows, mask=rows < B, other=0)

    a_desc = (anchors_ptr, anchors_stride, B)
    b_desc = (candidates_ptr, candidates_stride, N)
    # The positives' scores are the diagonal of a product of two blocks, which sums in the sweep's order: a tie with a
    # negative is then a tie to the bit. It loops over d, because a whole block of gathered rows would not fit in
    # shared memory beside the others.
    positive_block_k: tl.constexpr = META.BLOCK_K if META.BLOCK_K > 0 else min(META.BLOCK_D, 64)
    s = scores(rows, a_desc, rows, positive, b_desc, positive, positive_block_k, META)  # [BLOCK_M, BLOCK_M]
    positive_score = tl.sum(tl.where(local[:, None] == local[None, :], s, 0.0), 1)  # [BLOCK_M]
    bound = positive_score
    if IGNORES:
        bound += tl.load(ignore_above_ptr)
    a = rows
    if META.BLOCK_K == 0:
        a = load_operand(a_desc, rows, 0, META.BLOCK_D, META)  # [BLOCK_M, BLOCK_D]

    first, last = split_blocks(N, META.BLOCK_N)
    diagonal_last = tl.cdiv(tl.minimum(row_start + META.BLOCK_M, B), META.BLOCK_N)
    all_masked: tl.constexpr = HAS_POSITIVE or HAS_GROUP
    low, high, end = partition_blocks(
        first, last, N // META.BLOCK_N, row_start // META.BLOCK_N, diagonal_last, all_masked
    )
    m = positive_score * softmax_scale_log2 - META.MAX_OFFSET
    if HAS_MARGIN:  # a negative that is negligible beside the positive's score may not be so beside what is left of it
        m = (positive_score - tl.load(margin_ptr)) * softmax_scale_log2 - META.MAX_OFFSET
    zero = tl.zeros([META.BLOCK_M], META.ACC_DTYPE)
    l, sum_pz, max_negative, acc = zero, zero, zero - float("inf"), zero
    if NEED_D_ANCHORS:
        acc = tl.zeros([META.BLOCK_M, META.BLOCK_D], META.ACC_DTYPE)
    anchors = (a, a_desc, rows, softmax_scale_log2, positive, group, bound)
    candidates = (b_desc, column_group_ptr, d_start)
    plain = end - first - (high - low)
    if FIXED_MAX:
        fits = _fits(m, a[0] if META.INPUT_PRECISION == "bf16x3" else a, softmax_scale_log2, tl.load(max_norm_ptr))
        places = tl.zeros([META.BLOCK_M, 8], META.ACC_DTYPE)
        state = (m, places, places, places - float("inf"), acc)
        blocks = (first, fits * plain, low - first, high - low)
        state = _stream_columns(state, anchors, candidates, blocks, False, True, HAS_GROUP, IGNORES, NEED_D_ANCHORS,
                                NEED_SUM_PZ, META)  # fmt: skip
        m, l, sum_pz, max_negative, acc = state
        l, sum_pz, max_negative = tl.sum(l, 1), tl.sum(sum_pz, 1), tl.max(max_negative, 1)
        plain *= 1 - fits
    state = (m, l, sum_pz, max_negative, acc)
    if not all_masked:
        blocks = (first, plain, low - first, high - low)
        state = _stream_columns(state, anchors, candidates, blocks, False, False, HAS_GROUP, IGNORES, NEED_D_ANCHORS,
                                NEED_SUM_PZ, META)  # fmt: skip
    blocks = (low, high - low + last - end, high - low, end - high)
    state = _stream_columns(state, anchors, candidates, blocks, True, False, HAS_GROUP, IGNORES, NEED_D_ANCHORS,
                            NEED_SUM_PZ, META)  # fmt: skip
    m, l, sum_pz, max_negative, acc = state

    inside = rows < B
    if d_start == 0:
        if split == 0:
            tl.store(positive_score_ptr + rows, positive_score, mask=inside)
        partials = partials_ptr + split.to(tl.int64) * 4 * B + rows
        tl.store(partials, m, mask=inside)
        tl.store(partials + B, l, mask=inside)
        tl.store(partials + 2 * B, sum_pz, mask=inside)
        tl.store(partials + 3 * B, max_negative, mask=inside)
    if NEED_D_ANCHORS:
        width = d_start + tl.arange(0, META.BLOCK_D)  # [BLOCK_D]
        offset = (split.to(tl.int64) * B + rows)[:, None] * META.D_PADDED + width[None, :]
        tl.store(acc_ptr + offset, acc, mask=inside[:, None] & (width < META.D_PADDED)[None, :])
