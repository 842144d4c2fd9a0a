"""The combination of the row sweep's splits, in order, and what follows per row: loss, statistics and gradients.

The package's docstring defines shapes and names. With the term of its positive, t_r = 2^(z_ry - m_r), row r has

    p_r         = t_r / (l_r + t_r)                                    probability of the positive
    L_r         = -log p_r = log(1 + l_r / t_r)
    d_anchors_r = grad_scale_r (acc_r / (l_r + t_r) - (1 - p_r) b_{y_r})
    d_tau_r     = -(a_r . d_anchors_r) / tau_r

1 - p_r is formed as l_r / (l_r + t_r), which keeps its digits when p_r is near 1.

With HAS_MARGIN, s_ry is less the margin. With HAS_WEIGHT, the gradients are those of L_r + (1 - w_r) z_ry: they have
w_r - p_r where they have 1 - p_r above. The column sweep rounds that to half precision once; rounded as 1 - p_r, and
1 - w_r added afterwards, it would err by half a unit of 1 where the sum, as p and w themselves, may be a hundredth.
"""

# ruff: noqa: E741
# l is the running sum, as in FlashAttention.

import triton
import triton.language as tl
from adaftr_fast.kernels.infonce.column_sweep import TERMS
from adaftr_fast.kernels.infonce.tiles import LN_2, LOG2_E, load_block, load_row_parameters, log1p

LARGEST_L = tl.constexpr(2.0**40)
SMALLEST_SIZE = tl.constexpr(2.0**-100)
# A row's weight goes into the exponent of the column sweep only if it needs no other unit, and if the sum of the two
# logarithms, which is rounded, errs by less than 2^-13 (a bfloat16 by 2^-9).
LARGEST_FOLDED = tl.constexpr(2.0**60)
LARGEST_SHIFT = tl.constexpr(2048.0)


@triton.jit(do_not_specialize=["B", "N", "num_splits", "num_arrivals"])
def infonce_combine_kernel(
    anchors_ptr,  # [B, D_PADDED]
    candidates_ptr,  # [N, D_PADDED]
    tau_ptr,  # [B]
    positive_ptr,  # [B] int64
    scale_ptr,  # [B]
    positive_score_ptr,  # [B]
    margin_ptr,  # []: subtracted from the positive's score; read with HAS_MARGIN
    positive_weight_ptr,  # [B] w; read with HAS_WEIGHT
    partials_ptr,  # [S, 4, B]: m, l, sum_pz, largest score of a negative
    acc_ptr,  # [S, B, D_PADDED]
    loss_ptr,  # [B] out
    lse_ptr,  # [B] out, natural units like the next
    positive_logit_ptr,  # [B] out
    top1_ptr,  # [B] out
    entropy_ptr,  # [B] out
    row_terms_ptr,  # [5 or 6, B] out: what the column sweep reads of each row, see there
    block_terms_ptr,  # [3, blocks of rows] out: largest |grad_scale|, whether a row has a misfit, sum of scale_r L_r
    arrivals_ptr,  # [num_arrivals] int32 out with JOINS: zeros
    d_anchors_ptr,  # [B, d] out
    d_tau_ptr,  # [B] out
    B,
    N,
    num_splits,
    num_arrivals,
    anchors_stride,
    candidates_stride,
    scale_stride,  # 0 or 1
    HAS_POSITIVE: tl.constexpr,
    HAS_MARGIN: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    NEED_D_ANCHORS: tl.constexpr,
    NEED_D_CANDIDATES: tl.constexpr,
    NEED_D_TAU: tl.constexpr,
    NEED_STATS: tl.constexpr,
    JOINS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    D: tl.constexpr,
    D_PADDED: tl.constexpr,
    ACC_DTYPE: tl.constexpr,
):
    """Grid: (blocks of rows,)."""
    if JOINS:
        for start in range(tl.program_id(0) * BLOCK_M, num_arrivals, tl.num_programs(0) * BLOCK_M):
            places = start + tl.arange(0, BLOCK_M)
            tl.store(arrivals_ptr + places, 0, mask=places < num_arrivals)
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)  # [BLOCK_M]
    inside = rows < B
    positive, softmax_scale, valid = load_row_parameters(tau_ptr, positive_ptr, rows, B, N, HAS_POSITIVE)
    softmax_scale_log2 = (softmax_scale * LOG2_E).to(ACC_DTYPE)
    positive_score = tl.load(positive_score_ptr + rows, mask=inside, other=0.0)
    if HAS_MARGIN:
        margin = tl.load(margin_ptr)
        positive_score -= margin
    z_positive = positive_score.to(tl.float64) * softmax_scale_log2.to(tl.float64)

    m = tl.load(partials_ptr + rows, mask=inside, other=0.0)
    for split in range(1, num_splits):
        m = tl.maximum(m, tl.load(partials_ptr + split * 4 * B + rows, mask=inside, other=0.0))
    l = tl.zeros([BLOCK_M], ACC_DTYPE)
    sum_pz = tl.zeros([BLOCK_M], ACC_DTYPE)
    max_negative = tl.zeros([BLOCK_M], ACC_DTYPE) - float("inf")
    for split in range(num_splits):
        partials = partials_ptr + split * 4 * B + rows
        log2_alpha = tl.load(partials, mask=inside, other=0.0) - m
        alpha = tl.exp2(log2_alpha)
        l_split = tl.load(partials + B, mask=inside, other=0.0)
        sum_pz += alpha * (tl.load(partials + 2 * B, mask=inside, other=0.0) + l_split * log2_alpha)
        l += alpha * l_split
        max_negative = tl.maximum(max_negative, tl.load(partials + 3 * B, mask=inside, other=0.0))

    # A maximum that stayed (row_sweep.py) may be far below the logits: m rises to where l is between 1 and 2.
    raised = tl.where(l > LARGEST_L, m + tl.floor(tl.log2(l)), m)
    alpha = tl.exp2(m - raised)
    sum_pz = alpha * (sum_pz + l * (m - raised))
    l *= alpha
    m = raised

    # A row takes few of these operations, so they are in float64.
    negatives = l.to(tl.float64)
    exponent = z_positive - m
    at_positive = tl.exp2(exponent)  # t_r
    l_total = negatives + at_positive  # over all candidates
    one_minus_p = negatives / l_total
    w_minus_p = one_minus_p
    if HAS_WEIGHT:
        other_weight = 1.0 - tl.load(positive_weight_ptr + rows, mask=inside, other=1.0).to(tl.float64)
        w_minus_p = one_minus_p - other_weight
    positive_wins = negatives <= at_positive
    loss = tl.where(positive_wins, log1p(negatives / tl.where(positive_wins, at_positive, 1.0)),
                    tl.log(l_total) - exponent * LN_2)  # fmt: skip
    tl.store(loss_ptr + rows, tl.where(valid, loss, 0.0).to(ACC_DTYPE), mask=inside)
    tl.store(lse_ptr + rows, tl.where(valid, m * LN_2 + tl.log(l_total), 0.0).to(ACC_DTYPE), mask=inside)
    tl.store(positive_logit_ptr + rows, tl.where(valid, z_positive * LN_2, 0.0).to(ACC_DTYPE), mask=inside)
    # In natural units: the sum over negatives of 2^(z - m) (z - z_positive).
    sum_margin = LN_2 * (sum_pz - exponent * negatives)
    if NEED_STATS:
        entropy = loss - sum_margin / l_total  # exactly 0 where there is no negative
        tl.store(top1_ptr + rows, (max_negative < positive_score) & valid & (l_total == l_total), mask=inside)
        tl.store(entropy_ptr + rows, tl.where(valid, entropy, 0.0).to(ACC_DTYPE), mask=inside)

    scale = tl.load(scale_ptr + rows * scale_stride, mask=inside, other=0.0)
    block_terms = block_terms_ptr + tl.program_id(0)
    num_blocks = tl.num_programs(0)
    tl.store(block_terms + 2 * num_blocks, tl.sum(tl.where(valid, scale * loss, 0.0), 0).to(ACC_DTYPE))
    grad_scale = tl.where(valid, scale * softmax_scale, 0.0)
    if NEED_D_CANDIDATES:
        size = tl.abs(grad_scale)  # the largest becomes descale, whose inverse must be finite; inf and NaN give NaN
        size = tl.where(size == size, tl.maximum(size, SMALLEST_SIZE), float("inf")).to(ACC_DTYPE)
        negative_scale = tl.where(valid, grad_scale / l_total, 0.0).to(ACC_DTYPE)
        # -inf where there is no gradient: the exponential is 0. No float64 sweep reads it.
        shift = tl.log2(tl.abs(negative_scale).to(tl.float32)) - m
        ordinary = (size > 1 / LARGEST_FOLDED) & (size < LARGEST_FOLDED) & (tl.abs(shift) < LARGEST_SHIFT)
        misfit = tl.where((grad_scale == 0) | ((negative_scale > 0) & ordinary), 0.0, 1.0)
        positive_scale = tl.where(valid, -w_minus_p * grad_scale, 0.0).to(ACC_DTYPE)
        terms = row_terms_ptr + rows * TERMS
        tl.store(terms, softmax_scale_log2, mask=inside)
        tl.store(terms + 1, positive_scale if HAS_POSITIVE else shift.to(ACC_DTYPE), mask=inside)
        tl.store(terms + 2, negative_scale, mask=inside)
        tl.store(terms + 3, tl.where(valid, m, 0.0), mask=inside)
        tl.store(row_terms_ptr + TERMS * B + rows, positive_scale, mask=inside)
        tl.store(block_terms, tl.max(size, 0))
        tl.store(block_terms + num_blocks, tl.max(misfit, 0).to(ACC_DTYPE))
    if NEED_D_ANCHORS:
        acc_scale = (grad_scale / l_total).to(ACC_DTYPE)[:, None]
        b_scale = (w_minus_p * grad_scale).to(ACC_DTYPE)[:, None]
        a_dot_d_a = tl.zeros([BLOCK_M], ACC_DTYPE)
        for start in range(0, D_PADDED, BLOCK_D):
            width = start + tl.arange(0, BLOCK_D)  # [BLOCK_D]
            mask = inside[:, None] & (width < D_PADDED)[None, :]
            acc = tl.zeros([BLOCK_M, BLOCK_D], ACC_DTYPE)
            for split in range(num_splits):
                alpha = tl.exp2(tl.load(partials_ptr + split * 4 * B + rows, mask=inside, other=0.0) - m)
                offset = (split * B + rows.to(tl.int64))[:, None] * D_PADDED + width[None, :]
                acc += alpha[:, None] * tl.load(acc_ptr + offset, mask=mask, other=0.0)
            b = load_block((candidates_ptr, candidates_stride, N), positive, start, D_PADDED, BLOCK_D)
            d_a = tl.where(valid[:, None], acc_scale * acc - b_scale * b, 0.0)  # [BLOCK_M, BLOCK_D]
            if NEED_D_TAU:
                a = load_block((anchors_ptr, anchors_stride, B), rows, start, D_PADDED, BLOCK_D)
                a_dot_d_a += tl.sum(d_a * a, 1)
            offset = rows.to(tl.int64)[:, None] * D + width[None, :]
            tl.store(d_anchors_ptr + offset, d_a, mask=inside[:, None] & (width < D)[None, :])
        if NEED_D_TAU:
            d_tau = -a_dot_d_a * softmax_scale
            if HAS_MARGIN:
                d_tau -= w_minus_p * grad_scale * margin * softmax_scale
            tl.store(d_tau_ptr + rows, tl.where(valid, d_tau, 0.0).to(ACC_DTYPE), mask=inside)
    elif NEED_D_TAU:
        d_tau = -grad_scale * sum_margin / l_total
        if HAS_WEIGHT:
            d_tau -= grad_scale * other_weight * (z_positive * LN_2)
        tl.store(d_tau_ptr + rows, tl.where(valid, d_tau, 0.0).to(ACC_DTYPE), mask=inside)
