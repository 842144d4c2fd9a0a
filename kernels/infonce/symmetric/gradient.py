"""The gradient sweep of the symmetric loss: streams one side past blocks of the other, for that side's gradients.

The packages' docstrings define shapes and names. x is the owned side and y the streamed one, with the terms that
combine.py leaves of each:

    W_rj    = weight_r 2^(z_rj - m_r) + weight'_j 2^(z'_jr - m'_j)    over pairs of r and its negatives j
    d_x_r   = sum_j W_rj y_j + residual_r y_r
    d_tau_r = -weight_r / tau_r sum_j 2^(z_rj - m_r) (s_rj - s_rr)

Both sides' gradients come from one kernel whose arguments change places: anchors own for d_anchors, candidates for
d_candidates. W is divided by ``descale`` before it is rounded to half precision, as in the column sweep.

With COMMON, blocks without masks take one exponential a pair, where the first sweep does (sums.py) and the weights are
far from float32's least numbers: W_rj = 2^(z_rj - center) (common_weight_r + common_weight'_j).
"""

import triton
import triton.language as tl
from adaftr_fast.kernels.infonce.symmetric.combine import TERMS
from adaftr_fast.kernels.infonce.symmetric.sums import common, logits
from adaftr_fast.kernels.infonce.tiles import (
    LN_2,
    accumulate,
    load_block,
    partition_blocks,
    scores,
    split_blocks,
)

LEAST_DESCALE = tl.constexpr(2.0**-44)  # common weights are then above 2^-91 of a weight of 2^-30


@triton.jit
def _by_place(x):
    """[M, N] -> [M, N / 8, 8], as in row_sweep.py."""
    return tl.reshape(x, [x.shape[0], x.shape[1] // 8, 8])


@triton.jit
def _load_terms(ptr, index, inside):
    """Returns the four terms of combine.py, as one load (see _load_terms of column_sweep.py)."""
    terms = tl.load(ptr + index[:, None] * TERMS + tl.arange(0, TERMS)[None, :], mask=inside[:, None], other=0.0)
    even, odd = tl.split(tl.reshape(terms, [index.shape[0], 2, 2]))
    softmax_scale_log2, weight = tl.split(even)
    m, common_weight = tl.split(odd)
    return softmax_scale_log2, m, weight, common_weight


@triton.jit
def _stream(state, x, x_desc, x_index, x_terms, x_group, y_desc, y_terms_ptr, y_group_ptr, inverse_descale, center,
            d_start, first, count, gap_at, gap, MASKED: tl.constexpr, HAS_GROUP: tl.constexpr, COMMON: tl.constexpr,
            NEED_GRADIENT: tl.constexpr, NEED_D_TAU: tl.constexpr, META: tl.constexpr):  # fmt: skip
    """Streams ``count`` blocks of y past x, from block ``first`` on; skips ``gap`` after ``gap_at``.

    With COMMON, x_terms hold the scale of all pairs and common weights, and sum_ps is of 8 places: [BLOCK_M, 8].
    """
    sum_ps, acc = state
    x_scale, x_m, x_weight, x_positive_score = x_terms
    B = y_desc[2]
    for i in range(count):
        block = first + i + tl.where(i >= gap_at, gap, 0)
        y_index = block * META.BLOCK_N + tl.arange(0, META.BLOCK_N)  # [BLOCK_N]
        inside = y_index < B
        y = load_block(y_desc, y_index, d_start, META.D_PADDED, META.BLOCK_D, not MASKED)  # [BLOCK_N, BLOCK_D]
        s = scores(x, x_desc, x_index, y, y_desc, y_index, META.BLOCK_K, META)  # [BLOCK_M, BLOCK_N]
        if MASKED:
            s = tl.where((x_index < B)[:, None] & inside[None, :], s, float("-inf"))
            s = tl.where(x_index[:, None] == y_index[None, :], float("-inf"), s)
            if HAS_GROUP:
                y_group = tl.load(y_group_ptr + y_index, mask=inside, other=0)
                s = tl.where(y_group[None, :] == x_group[:, None], float("-inf"), s)
        if COMMON:
            p = tl.exp2(tl.fma(s, tl.broadcast_to(x_scale, s.shape), tl.broadcast_to(-center, s.shape)))
        else:
            p = tl.exp2(logits(s, x_scale[:, None], x_m[:, None]))  # [BLOCK_M, BLOCK_N]
        if NEED_D_TAU:
            ps = p * (s - x_positive_score[:, None])
            if MASKED:
                ps = tl.where(s > float("-inf"), ps, 0.0)  # 0 * -inf otherwise
            if COMMON:
                sum_ps += tl.sum(_by_place(ps), 1)
            else:
                sum_ps += tl.sum(ps, 1)
        if NEED_GRADIENT:
            y_scale, y_m, y_weight, y_common_weight = _load_terms(y_terms_ptr, y_index, inside)
            if COMMON:
                w = p * (x_weight[:, None] + (y_common_weight * inverse_descale)[None, :])
            else:
                y_p = tl.exp2(logits(s, y_scale[None, :], y_m[None, :]))  # [BLOCK_M, BLOCK_N]
                w = p * x_weight[:, None] + y_p * (y_weight * inverse_descale)[None, :]
            if MASKED:
                w = tl.where(inside[None, :], w, 0.0)  # their scale is 0, and -inf * 0 is no number
            acc = accumulate(w, y, acc, META)  # [BLOCK_M, BLOCK_D]
    return sum_ps, acc


@triton.jit(do_not_specialize=["B"])
def infonce_symmetric_gradient_kernel(
    x_ptr,  # [B, D_PADDED]: the anchors, or the candidates
    y_ptr,  # [B, D_PADDED]: the other ones
    x_terms_ptr,  # [B, TERMS]
    y_terms_ptr,  # [B, TERMS]
    positive_score_ptr,  # [B]
    residual_ptr,  # [B]
    x_group_ptr,  # [B] int64
    y_group_ptr,  # [B] int64
    bounds_ptr,  # [6], see common() of sums.py; read with COMMON
    descale_ptr,  # []: the unit of W in half precision
    d_x_ptr,  # [S, B, D] out
    d_tau_ptr,  # [S, B] out
    B,
    x_stride,
    y_stride,
    HAS_GROUP: tl.constexpr,
    COMMON: tl.constexpr,
    NEED_GRADIENT: tl.constexpr,
    NEED_D_TAU: tl.constexpr,
    META: tl.constexpr,
):
    """Grid: (blocks of x, splits of y, slices of acc's width)."""
    split = tl.program_id(1)
    d_start = tl.program_id(2) * META.BLOCK_D
    x_start = tl.program_id(0) * META.BLOCK_M
    x_index = x_start + tl.arange(0, META.BLOCK_M)  # [BLOCK_M]
    inside = x_index < B
    descale = tl.load(descale_ptr)
    inverse_descale = tl.where(descale > 0, 1.0 / descale, 0.0).to(META.ACC_DTYPE)
    x_terms = x_terms_ptr + x_index * TERMS
    x_scale = tl.load(x_terms, mask=inside, other=0.0)
    x_m = tl.load(x_terms + 1, mask=inside, other=0.0)
    x_weight = tl.load(x_terms + 2, mask=inside, other=0.0) * inverse_descale
    x_positive_score = tl.load(positive_score_ptr + x_index, mask=inside, other=0.0)
    x_group = x_index
    if HAS_GROUP:
        x_group = tl.load(x_group_ptr + x_index, mask=inside, other=0)
    x_desc = (x_ptr, x_stride, B)
    y_desc = (y_ptr, y_stride, B)
    x = load_block(x_desc, x_index, 0, META.D_PADDED, META.BLOCK_D)  # [BLOCK_M, BLOCK_D]

    first, last = split_blocks(B, META.BLOCK_N)
    diagonal_last = tl.cdiv(tl.minimum(x_start + META.BLOCK_M, B), META.BLOCK_N)
    low, high, end = partition_blocks(first, last, B // META.BLOCK_N, x_start // META.BLOCK_N, diagonal_last, HAS_GROUP)
    sum_ps = tl.zeros([META.BLOCK_M], META.ACC_DTYPE)
    acc = sum_ps
    # The positive's term starts the sum, in the first split alone, without rounding to half precision.
    if NEED_GRADIENT:
        limit = tl.where(split == 0, B, 0)
        residual = tl.load(residual_ptr + x_index, mask=x_index < limit, other=0.0) * inverse_descale
        y = load_block((y_ptr, y_stride, limit), x_index, d_start, META.D_PADDED, META.BLOCK_D)
        acc = residual[:, None] * y  # [BLOCK_M, BLOCK_D]
    plain = end - first - (high - low)
    center = 0.0
    if COMMON:
        fits, scale, center = common(bounds_ptr)
        fits *= (descale > LEAST_DESCALE).to(tl.int32)
        common_weight = tl.load(x_terms + 3, mask=inside, other=0.0) * inverse_descale
        common_terms = (scale, x_m, common_weight, x_positive_score)
        state = (tl.zeros([META.BLOCK_M, 8], META.ACC_DTYPE), acc)
        state = _stream(state, x, x_desc, x_index, common_terms, x_group, y_desc, y_terms_ptr, y_group_ptr,
                        inverse_descale, center, d_start, first, fits * plain, low - first, high - low, False,
                        HAS_GROUP, True, NEED_GRADIENT, NEED_D_TAU, META)  # fmt: skip
        sum_ps, acc = state
        sum_ps = tl.where(fits > 0, tl.exp2(center - x_m) * tl.sum(sum_ps, 1), 0.0)
        plain *= 1 - fits
    state = (sum_ps, acc)
    terms = (x_scale, x_m, x_weight, x_positive_score)
    if not HAS_GROUP:
        state = _stream(state, x, x_desc, x_index, terms, x_group, y_desc, y_terms_ptr, y_group_ptr, inverse_descale,
                        center, d_start, first, plain, low - first, high - low, False, HAS_GROUP, False, NEED_GRADIENT,
                        NEED_D_TAU, META)  # fmt: skip
    state = _stream(state, x, x_desc, x_index, terms, x_group, y_desc, y_terms_ptr, y_group_ptr, inverse_descale,
                    center, d_start, low, high - low + last - end, high - low, end - high, True, HAS_GROUP, False,
                    NEED_GRADIENT, NEED_D_TAU, META)  # fmt: skip
    sum_ps, acc = state

    if NEED_D_TAU and d_start == 0:
        d_tau = tl.load(x_terms + 2, mask=inside, other=0.0) * -LN_2 * (x_scale * sum_ps)
        tl.store(d_tau_ptr + split.to(tl.int64) * B + x_index, d_tau, mask=inside)
    if NEED_GRADIENT:
        acc *= descale
        width = d_start + tl.arange(0, META.BLOCK_D)  # [BLOCK_D]
        offset = (split.to(tl.int64) * B + x_index)[:, None] * META.D + width[None, :]
        tl.store(d_x_ptr + offset, acc, mask=inside[:, None] & (width < META.D)[None, :])
