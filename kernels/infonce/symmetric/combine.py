"""The combination of the first sweep's partials, in order, and what follows: losses, and the gradient sweeps' terms.

The packages' docstrings define shapes and names. Each side, rows and columns, has for its entry r

    t_r        = 2^(z_rr - m_r)                 term of the positive
    L_r        = log(1 + l_r / t_r)
    weight_r   = grad_scale_r / (l_r + t_r)     turns 2^(z_rj - m_r) into the gradient of s_rj
    d_tau_r    = -grad_scale_r / tau_r sum_j p_rj (s_rj - s_rr)

over the negatives j. 1 - p_rr is l_r / (l_r + t_r), which keeps its digits when p_rr is near 1; ``residual`` is the
gradient of s_rr, of both sides.

m_r rises or falls to where l_r + t_r is between 1 and 2, because a center of the logits (sums.py) may be far from the
maximum. common_weight_r is the weight of 2^(z_rj - center).
"""

# ruff: noqa: E741
# l is the running sum, as in FlashAttention.

import triton
import triton.language as tl
from adaftr_fast.kernels.infonce.symmetric.sums import common
from adaftr_fast.kernels.infonce.tiles import LN_2, load_row_parameters, log1p

TERMS = tl.constexpr(4)  # of an entry, side by side: softmax_scale_log2, m, weight, common_weight
SMALLEST_SIZE = tl.constexpr(2.0**-100)  # the largest becomes descale, whose inverse must be finite


@triton.jit
def _join(partials_ptr, index, inside, m, count, B):
    """Joins the (m, l) of ``count`` partials [count, 2, B], in order; ``m`` is the positive's logit."""
    l = tl.zeros_like(m)
    for i in range(count):
        at = partials_ptr + tl.cast(i, tl.int64) * 2 * B + index
        m_i = tl.load(at, mask=inside, other=0.0)
        l_i = tl.load(at + B, mask=inside, other=0.0)
        m_new = tl.maximum(m, m_i)
        l = l * tl.exp2(m - m_new) + l_i * tl.exp2(m_i - m_new)
        m = m_new
    return m, l


@triton.jit
def _side(partials_ptr, tau_ptr, scales_ptr, positive_score, scale, terms_ptr, sizes_ptr, center, index, inside, count,
          B, COMMON: tl.constexpr, ACC_DTYPE: tl.constexpr):  # fmt: skip
    """Writes a side's terms; returns its loss and its part of the gradient of the positive's score."""
    scale_log2 = tl.load(scales_ptr + index, mask=inside, other=1.0)
    m, l = _join(partials_ptr, index, inside, positive_score * scale_log2, count, B)
    # An entry takes few of these operations, so they are in float64.
    _, softmax_scale, _ = load_row_parameters(tau_ptr, tau_ptr, index, B, B, False)
    z_positive = positive_score.to(tl.float64) * scale_log2.to(tl.float64)
    l_total = l.to(tl.float64) + tl.exp2(z_positive - m)
    moved = (m + tl.floor(tl.log2(l_total))).to(ACC_DTYPE)
    negatives = l * tl.exp2(m.to(tl.float64) - moved)
    m = moved
    exponent = z_positive - m
    at_positive = tl.exp2(exponent)
    l_total = negatives + at_positive
    positive_wins = negatives <= at_positive
    loss = tl.where(positive_wins, log1p(negatives / tl.where(positive_wins, at_positive, 1.0)),
                    tl.log(l_total) - exponent * LN_2)  # fmt: skip
    grad_scale = 0.5 * scale * softmax_scale
    size = tl.abs(grad_scale)
    size = tl.where(size < SMALLEST_SIZE, SMALLEST_SIZE, size)  # a NaN stays
    terms = terms_ptr + index * TERMS
    tl.store(terms, scale_log2, mask=inside)
    tl.store(terms + 1, m, mask=inside)
    weight = grad_scale / l_total
    tl.store(terms + 2, weight.to(ACC_DTYPE), mask=inside)
    if COMMON:
        tl.store(terms + 3, (weight * tl.exp2(center.to(tl.float64) - m)).to(ACC_DTYPE), mask=inside)
    tl.store(sizes_ptr + index, size.to(ACC_DTYPE), mask=inside)
    return loss, -grad_scale * (negatives / l_total)


@triton.jit(do_not_specialize=["B", "num_splits", "num_row_blocks"])
def infonce_symmetric_combine_kernel(
    row_partials_ptr,  # [num_splits, 2, B]: m, l
    column_partials_ptr,  # [num_row_blocks, 2, B]: m, l
    tau_row_ptr,  # [B]
    tau_column_ptr,  # [B]
    scales_ptr,  # [2, B]
    positive_score_ptr,  # [B]
    scale_ptr,  # [B]
    bounds_ptr,  # [6], see common(); read with COMMON
    row_loss_ptr,  # [B] out
    terms_ptr,  # [2, B, TERMS] out
    sizes_ptr,  # [2, B] out: |grad_scale|
    residual_ptr,  # [B] out
    B,
    num_splits,
    num_row_blocks,
    COMMON: tl.constexpr,
    BLOCK_M: tl.constexpr,
    ACC_DTYPE: tl.constexpr,
):
    """Grid: (blocks of rows,). Row r and column r share a positive, and a program."""
    index = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)  # [BLOCK_M]
    inside = index < B
    positive_score = tl.load(positive_score_ptr + index, mask=inside, other=0.0)
    scale = tl.load(scale_ptr + index, mask=inside, other=0.0)
    center = 0.0
    if COMMON:
        _, _, center = common(bounds_ptr)
    row_loss, row_residual = _side(row_partials_ptr, tau_row_ptr, scales_ptr, positive_score, scale, terms_ptr,
                                   sizes_ptr, center, index, inside, num_splits, B, COMMON, ACC_DTYPE)  # fmt: skip
    loss, residual = _side(column_partials_ptr, tau_column_ptr, scales_ptr + B, positive_score, scale,
                           terms_ptr + TERMS * B, sizes_ptr + B, center, index, inside, num_row_blocks, B,
                           COMMON, ACC_DTYPE)  # fmt: skip
    tl.store(row_loss_ptr + index, (0.5 * (row_loss + loss)).to(ACC_DTYPE), mask=inside)
    tl.store(residual_ptr + index, (row_residual + residual).to(ACC_DTYPE), mask=inside)
