"""The sweep of the sigmoid loss: streams blocks of one operand past blocks of the other, for its loss and gradients.

The package's docstring defines shapes and names. With z_rj = logit_scale s_rj + logit_bias, sign_rj = -1 for the
positive of row r and 1 for its other candidates, and q_rj = sign_rj sigmoid(sign_rj z_rj):

    loss            = sum_rj softplus(sign_rj z_rj)
    d_logit_scale   = sum_rj q_rj s_rj
    d_logit_bias    = sum_rj q_rj
    d_anchors_r     = logit_scale sum_j q_rj b_j
    d_candidates_j  = logit_scale sum_r q_rj a_r

No sum runs through another, so both gradients come from one kernel whose operands change places: x is the owned side
and y the streamed one. A program that owns rows also forms the three sums.

softplus(z) is max(z, 0) + log(1 + e) with e = 2^-|z log2(e)| <= 1. A row's logarithms are one a block,
log(1 + e_1) + log(1 + e_2) + ... = log(1 + t), where t joins the e by (1 + e_1) (1 + e_2) - 1 = e_1 + e_2 + e_1 e_2:
two operations an element that keep the digits of small e, which 1 + e would round away. t stays below 2^BLOCK_N.

The probabilities are multiplied by 2^MAX_OFFSET before they are rounded to half precision, which keeps them normal in
float16 down to 2^(-14 - MAX_OFFSET).
"""

import triton
import triton.language as tl
from adaftr_fast.kernels.infonce.tiles import (
    IGNORE,
    LN_2,
    LOG2_E,
    accumulate,
    load_block,
    log1p,
    partition_blocks,
    scores,
    split_blocks,
)

MOST_FACTORS = tl.constexpr(64)  # of a product of numbers up to 2: at 128 it would overflow float32


@triton.jit
def _join(x, y):
    """(1 + x) (1 + y) - 1 with the digits of small x and y."""
    return tl.fma(x, y, x + y)


@triton.jit
def _inverse(x):
    """1 / x for x >= 1 as a square of rsqrt, two instructions; a float32 division takes five for numbers near 0."""
    root = tl.rsqrt(x)
    return root * root


@triton.jit
def _load_positive(positive_ptr, rows, bias, B, N):
    """Returns each row's positive, -1 for none, and its bias: NaN where the positive is out of range."""
    positive = tl.load(positive_ptr + rows, mask=rows < B, other=IGNORE)
    inside = (positive >= 0) & (positive < N)
    bias = tl.where(inside | (positive == IGNORE), bias, float("nan"))
    return tl.where(inside, positive, -1).to(tl.int32), bias


@triton.jit
def _stream(state, x, x_desc, x_index, y_desc, scale_log2, bias_log2, x_bias, x_positive, positive_ptr, d_start, first,
            count, gap_at, gap, MASKED: tl.constexpr, OWNS_ROWS: tl.constexpr, HAS_POSITIVE: tl.constexpr,
            NEED_GRADIENT: tl.constexpr, BLOCK_Y: tl.constexpr, META: tl.constexpr):  # fmt: skip
    """Streams ``count`` blocks of y past x, from block ``first`` on; skips ``gap`` after ``gap_at``."""
    loss, sum_q, sum_qs, acc = state
    Y = y_desc[2]
    for i in range(count):
        block = first + i + tl.where(i >= gap_at, gap, 0)
        y_index = block * BLOCK_Y + tl.arange(0, BLOCK_Y)  # [BLOCK_Y]
        y = y_index
        if NEED_GRADIENT or META.BLOCK_K == 0:
            y = load_block(y_desc, y_index, d_start, META.D_PADDED, META.BLOCK_D)  # [BLOCK_Y, BLOCK_D]
        s = scores(x, x_desc, x_index, y, y_desc, y_index, META.BLOCK_K, META)  # [BLOCK_X, BLOCK_Y]
        if HAS_POSITIVE and OWNS_ROWS:
            z = s * scale_log2 + x_bias[:, None]
            is_positive = x_positive[:, None] == y_index[None, :]
        elif HAS_POSITIVE:
            y_positive, y_bias = _load_positive(positive_ptr, y_index, bias_log2, Y, x_desc[2])
            z = s * scale_log2 + y_bias[None, :]
            is_positive = y_positive[None, :] == x_index[:, None]
        else:
            z = s * scale_log2 + bias_log2
            is_positive = x_index[:, None] == y_index[None, :]
        if MASKED:
            z = tl.where(is_positive, -z, z)
            z = tl.where((y_index < Y)[None, :], z, float("-inf"))
        if OWNS_ROWS:
            e = tl.exp2(-tl.abs(z))
            inverse = _inverse(1.0 + e)
            q = tl.where(z > 0, inverse, e * inverse)
            loss += tl.sum(tl.maximum(z, 0.0), 1) * LN_2 + log1p(tl.reduce(e, 1, _join))
        else:
            q = _inverse(1.0 + tl.exp2(-z))  # 0 where the power overflows
        if MASKED:
            q = tl.where(is_positive, -q, q)
        if OWNS_ROWS:
            sum_q += tl.sum(q, 1)
            sum_qs += tl.sum(q * s, 1)
        if NEED_GRADIENT:
            if META.MAX_OFFSET > 0:
                q *= 2.0**META.MAX_OFFSET
            acc = accumulate(q, y, acc, META)  # [BLOCK_X, BLOCK_D]
    return loss, sum_q, sum_qs, acc


@triton.jit(do_not_specialize=["X", "Y"])
def sigmoid_sweep_kernel(
    x_ptr,  # [X, D_PADDED]: the anchors if OWNS_ROWS, else the candidates
    y_ptr,  # [Y, D_PADDED]: the other ones
    positive_ptr,  # [B] int64
    logit_scale_ptr,  # []
    logit_bias_ptr,  # []
    sums_ptr,  # [S, 3, X] out, if OWNS_ROWS: each row's terms of the loss, d_logit_scale and d_logit_bias
    d_x_ptr,  # [S, X, D] out
    X,
    Y,
    x_stride,
    y_stride,
    OWNS_ROWS: tl.constexpr,
    HAS_POSITIVE: tl.constexpr,
    NEED_GRADIENT: tl.constexpr,
    META: tl.constexpr,
):
    """Grid: (blocks of x, splits of y, slices of acc's width). NaN where the scale or the bias has no sense."""
    BLOCK_X: tl.constexpr = META.BLOCK_M if OWNS_ROWS else META.BLOCK_N
    BLOCK_Y: tl.constexpr = META.BLOCK_N if OWNS_ROWS else META.BLOCK_M
    tl.static_assert(not OWNS_ROWS or BLOCK_Y <= MOST_FACTORS)
    split = tl.program_id(1)
    d_start = tl.program_id(2) * META.BLOCK_D
    x_start = tl.program_id(0) * BLOCK_X
    x_index = x_start + tl.arange(0, BLOCK_X)  # [BLOCK_X]
    inside = x_index < X
    logit_scale, logit_bias = tl.load(logit_scale_ptr), tl.load(logit_bias_ptr)
    logit_scale = tl.where((logit_scale > 0) & (logit_scale < float("inf")), logit_scale, float("nan"))
    logit_bias = tl.where(tl.abs(logit_bias) < float("inf"), logit_bias, float("nan"))
    scale_log2, bias_log2 = (logit_scale * LOG2_E).to(META.ACC_DTYPE), (logit_bias * LOG2_E).to(META.ACC_DTYPE)
    x_bias, x_positive = bias_log2, x_index
    if HAS_POSITIVE and OWNS_ROWS:
        x_positive, x_bias = _load_positive(positive_ptr, x_index, bias_log2, X, Y)
    x_desc = (x_ptr, x_stride, X)
    y_desc = (y_ptr, y_stride, Y)
    x = x_index
    if META.BLOCK_K == 0:
        x = load_block(x_desc, x_index, 0, META.D_PADDED, META.BLOCK_D)  # [BLOCK_X, BLOCK_D]

    first, last = split_blocks(Y, BLOCK_Y)
    diagonal_last = tl.cdiv(tl.minimum(x_start + BLOCK_X, X), BLOCK_Y)
    low, high, end = partition_blocks(first, last, Y // BLOCK_Y, x_start // BLOCK_Y, diagonal_last, HAS_POSITIVE)
    zero = tl.zeros([BLOCK_X], META.ACC_DTYPE)
    acc = zero
    if NEED_GRADIENT:
        acc = tl.zeros([BLOCK_X, META.BLOCK_D], META.ACC_DTYPE)
    state = (zero, zero, zero, acc)
    if not HAS_POSITIVE:
        state = _stream(state, x, x_desc, x_index, y_desc, scale_log2, bias_log2, x_bias, x_positive, positive_ptr,
                        d_start, first, end - first - (high - low), low - first, high - low, False, OWNS_ROWS,
                        HAS_POSITIVE, NEED_GRADIENT, BLOCK_Y, META)  # fmt: skip
    state = _stream(state, x, x_desc, x_index, y_desc, scale_log2, bias_log2, x_bias, x_positive, positive_ptr, d_start,
                    low, high - low + last - end, high - low, end - high, True, OWNS_ROWS, HAS_POSITIVE, NEED_GRADIENT,
                    BLOCK_Y, META)  # fmt: skip
    loss, sum_q, sum_qs, acc = state

    if OWNS_ROWS and d_start == 0:
        sums = sums_ptr + split.to(tl.int64) * 3 * X + x_index
        tl.store(sums, loss, mask=inside)
        tl.store(sums + X, sum_qs, mask=inside)
        tl.store(sums + 2 * X, sum_q, mask=inside)
    if NEED_GRADIENT:
        acc *= logit_scale * 2.0**-META.MAX_OFFSET
        width = d_start + tl.arange(0, META.BLOCK_D)  # [BLOCK_D]
        offset = (split.to(tl.int64) * X + x_index)[:, None] * META.D + width[None, :]
        tl.store(d_x_ptr + offset, acc, mask=inside[:, None] & (width < META.D)[None, :])
