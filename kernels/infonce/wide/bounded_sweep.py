"""The bounded sweep: sums the softmax and softmax times candidates in one loop, in half types beyond 256, up to 512.

The package's docstring defines shapes and names. For each row r and split of the columns, over the negatives j:

    l_r   = sum_j 2^(z_rj - m_r)
    acc_r = sum_j 2^(z_rj - m_r) b_j

The row sweep and anchor_sweep.py take three products for this, because anchor_sweep.py has to know m before its loop.
Here |a_r| times the largest |b_j|, which bounds the scores, shows that no maximum is needed, so m is known before the
loop, and two products are enough. The loop is that of anchor_sweep.py, which also sums l.

In bfloat16, m_r is the logit of the row's positive, less the margin over tau, as with FIXED_MAX in row_sweep.py, and
the condition is the same: no sum can overflow in float32. float16 ends at 2^16, and numbers below 2^-14 lose digits. So
there m_r is the bound of the row's logits less MAX_OFFSET, and the conditions are that the bound, and its distance from
the positive's logit, are below MAX_OFFSET. All terms are then between 2^-MAX_OFFSET and 2^MAX_OFFSET.

Where a row of a program does not meet the condition, the program sweeps nothing and stores 0 in ``swept``. The other
two kernels are the row sweep and the anchor sweep of those blocks of rows; their programs of other blocks end at once.
"""

# ruff: noqa: E741
# l is the running sum, as in FlashAttention.

import triton
import triton.language as tl
from adaftr_fast.kernels.infonce.row_sweep import (
    MOST_LOG2,
    SMALLEST_NORM,
    SMALLEST_SQUARE,
    infonce_row_sweep_kernel,
)
from adaftr_fast.kernels.infonce.tiles import (
    LOG2_E,
    accumulate,
    load_operand,
    load_row_parameters,
    partition_blocks,
    scores,
    split_blocks,
)
from adaftr_fast.kernels.infonce.wide.anchor_sweep import infonce_anchor_sweep_kernel


@triton.jit
def _sum_in_threads(p):
    """Sums [M, N] to [M, N / 32, 8]: a warp holds 32 columns, and a thread all that are 8 apart, so none exchange."""
    return tl.sum(tl.reshape(p, [p.shape[0], p.shape[1] // 32, 4, 8]), 2)


@triton.jit
def _products_of_pairs(x_desc, x_index, y_desc, y_index, META: tl.constexpr):
    """Returns x_i . y_i as the diagonal of a product of two blocks, by slices of the width: whole blocks spill."""
    s = scores(x_index, x_desc, x_index, y_index, y_desc, y_index, 64, META)
    local = tl.arange(0, x_index.shape[0])
    return tl.sum(tl.where(local[:, None] == local[None, :], s, 0.0), 1)  # [len(x_index)]


@triton.jit
def _choose_m(z_positive, square, softmax_scale_log2, max_norm, META: tl.constexpr):
    """Returns m, and whether all rows meet the conditions above; they do not if a row's positive logit is NaN.

    ``tl.maximum`` drops a NaN in max_norm: the candidate that has it makes l NaN in every row but its own.
    """
    norm = tl.sqrt(tl.maximum(square, SMALLEST_SQUARE))
    max_norm = tl.maximum(max_norm, SMALLEST_NORM)
    bound = norm * max_norm * softmax_scale_log2 * 1.004  # the factor leaves room for rounding
    if META.MAX_OFFSET > 0:
        m = bound - META.MAX_OFFSET
        fits = (bound < META.MAX_OFFSET) & (bound - z_positive < META.MAX_OFFSET)
    else:
        m = z_positive
        fits = bound - z_positive + tl.maximum(tl.log2(max_norm), 0.0) < MOST_LOG2
    return m, tl.min(fits.to(tl.int32), 0)


@triton.jit(do_not_specialize=["B", "N"])
def infonce_bounded_sweep_kernel(
    anchors_ptr,  # [B, D_PADDED]
    candidates_ptr,  # [N, D_PADDED]
    tau_ptr,  # [B]
    margin_ptr,  # []: subtracted from the positive's score; read with HAS_MARGIN
    max_norm_ptr,  # []: largest norm of a candidate
    swept_ptr,  # [blocks of rows] int32 out: 1 where this kernel writes the results, else 0
    positive_score_ptr,  # [B] out
    partials_ptr,  # [S, 4, B] out: m, l, and two that are not written: only statistics need them
    acc_ptr,  # [S, B, D_PADDED] out
    B,
    N,
    anchors_stride,
    candidates_stride,
    HAS_MARGIN: tl.constexpr,
    META: tl.constexpr,
):
    """Grid: (blocks of rows, splits of the columns). Blocks hold the whole width. Row r's positive is column r."""
    tl.static_assert(META.BLOCK_K == 0)
    split = tl.program_id(1)
    row_start = tl.program_id(0) * META.BLOCK_M
    rows = row_start + tl.arange(0, META.BLOCK_M)  # [BLOCK_M]
    inside = rows < B
    positive, softmax_scale, _ = load_row_parameters(tau_ptr, None, rows, B, N, False)
    softmax_scale_log2 = (softmax_scale * LOG2_E).to(META.ACC_DTYPE)
    a_desc = (anchors_ptr, anchors_stride, B)
    b_desc = (candidates_ptr, candidates_stride, N)
    positive_score = _products_of_pairs(a_desc, rows, b_desc, positive, META)
    square = _products_of_pairs(a_desc, rows, a_desc, rows, META)
    z_positive = positive_score * softmax_scale_log2
    if HAS_MARGIN:
        z_positive = (positive_score - tl.load(margin_ptr)) * softmax_scale_log2
    m, fits = _choose_m(z_positive, square, softmax_scale_log2, tl.load(max_norm_ptr), META)
    partials = partials_ptr + split.to(tl.int64) * 4 * B + rows
    tl.store(partials, m, mask=inside)
    if split == 0:
        tl.store(positive_score_ptr + rows, positive_score, mask=inside)
        tl.store(swept_ptr + tl.program_id(0), fits)
    if fits == 0:
        return

    a = load_operand(a_desc, rows, 0, META.BLOCK_D, META)  # [BLOCK_M, BLOCK_D]
    first, last = split_blocks(N, META.BLOCK_N)
    diagonal_last = tl.cdiv(tl.minimum(row_start + META.BLOCK_M, B), META.BLOCK_N)
    low, high, end = partition_blocks(first, last, N // META.BLOCK_N, row_start // META.BLOCK_N, diagonal_last, False)
    l = tl.zeros([META.BLOCK_M, META.BLOCK_N // 32, 8], META.ACC_DTYPE)
    acc = tl.zeros([META.BLOCK_M, META.BLOCK_D], META.ACC_DTYPE)
    for block in range(first, last):
        columns = block * META.BLOCK_N + tl.arange(0, META.BLOCK_N)  # [BLOCK_N]
        b = load_operand(b_desc, columns, 0, META.BLOCK_D, META)  # [BLOCK_N, BLOCK_D]
        s = scores(a, a_desc, rows, b, b_desc, columns, 0, META)  # [BLOCK_M, BLOCK_N]
        if ((block >= low) & (block < high)) | (block >= end):
            s = tl.where((columns < N)[None, :], s, float("-inf"))
            s = tl.where(columns[None, :] == positive[:, None], float("-inf"), s)
        z = tl.fma(s, tl.broadcast_to(softmax_scale_log2[:, None], s.shape), tl.broadcast_to(-m[:, None], s.shape))
        p = tl.exp2(z)  # [BLOCK_M, BLOCK_N]
        l += _sum_in_threads(p)
        acc = accumulate(p, b, acc, META)  # [BLOCK_M, BLOCK_D]

    tl.store(partials + B, tl.sum(tl.sum(l, 2), 1), mask=inside)
    # Counted from the block's first row: offsets that the loads share would stay in registers, and spill.
    local = tl.arange(0, META.BLOCK_M)
    width = tl.arange(0, META.BLOCK_D)
    acc_ptr += (split.to(tl.int64) * B + row_start) * META.D_PADDED
    mask = (local < B - row_start)[:, None] & (width < META.D_PADDED)[None, :]
    tl.store(acc_ptr + local[:, None] * META.D_PADDED + width[None, :], acc, mask=mask)


@triton.jit(do_not_specialize=["B", "N"])
def infonce_unbounded_row_sweep_kernel(
    anchors_ptr,  # [B, D_PADDED]
    candidates_ptr,  # [N, D_PADDED]
    tau_ptr,  # [B]
    margin_ptr,  # []
    swept_ptr,  # [blocks of rows] int32: as the bounded sweep left it
    positive_score_ptr,  # [B] out where swept is 0, like the next
    partials_ptr,  # [S, 4, B] out
    B,
    N,
    anchors_stride,
    candidates_stride,
    HAS_MARGIN: tl.constexpr,
    META: tl.constexpr,
):
    """The row sweep without acc, of the blocks of rows that are not bounded. Grid: as of the bounded sweep."""
    if tl.load(swept_ptr + tl.program_id(0)) != 0:
        return
    infonce_row_sweep_kernel(anchors_ptr, candidates_ptr, tau_ptr, None, None, None, None, margin_ptr, None,
                             positive_score_ptr, partials_ptr, None, B, N, anchors_stride, candidates_stride, False,
                             False, False, HAS_MARGIN, False, False, False, META)  # fmt: skip


@triton.jit(do_not_specialize=["B", "N"])
def infonce_unbounded_anchor_sweep_kernel(
    anchors_ptr,  # [B, D_PADDED]
    candidates_ptr,  # [N, D_PADDED]
    tau_ptr,  # [B]
    swept_ptr,  # [blocks of rows] int32: as the bounded sweep left it
    partials_ptr,  # [S, 4, B]: as the row sweep left it
    acc_ptr,  # [S, B, D_PADDED] out where swept is 0
    B,
    N,
    anchors_stride,
    candidates_stride,
    META: tl.constexpr,
):
    """The anchor sweep of the blocks of rows that are not bounded. Grid: as of the bounded sweep."""
    left = 1 - tl.load(swept_ptr + tl.program_id(0))  # of no rows and no columns nothing is read: a return would spill
    infonce_anchor_sweep_kernel(anchors_ptr, candidates_ptr, tau_ptr, None, None, None, None, None, partials_ptr,
                                acc_ptr, left * B, left * N, anchors_stride, candidates_stride, False, False, False,
                                META)  # fmt: skip
