"""The completion of InfoNCE's row sweep: joins the splits in order, then yields loss, statistics and row gradients.

Shapes: B rows, N columns, d hidden width, S column splits. See row_sweep.py for the sums and their formulas.
"""

import triton
import triton.language as tl
from adaftr_fast.kernels.infonce.tiles import LOG2_E, load_block, row_terms

LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def _log1p(x):
    """log(1 + x) for x >= 0 to full relative precision: the error of forming 1 + x cancels in the quotient."""
    u = 1.0 + x
    return tl.where(u == 1.0, x, tl.log(u) * (x / tl.where(u == 1.0, 1.0, u - 1.0)))


@triton.jit(do_not_specialize=["B", "N", "splits"])
def infonce_finish_kernel(
    a_ptr,
    b_ptr,
    tau_ptr,
    positive_ptr,
    coefficient_ptr,  # [B]
    score_ptr,
    sums_ptr,
    o_ptr,
    loss_ptr,  # [B] out
    lse_ptr,  # [B] out, natural units like the next
    logit_ptr,  # [B] out
    top1_ptr,  # [B] out
    entropy_ptr,  # [B] out
    slope_ptr,  # [5, B] out, for the column sweep: scale, mu, weight of 2^(z - mu), weight of the positive, slope
    d_row_ptr,  # [B, d] out
    d_tau_ptr,  # [B] out
    B,
    N,
    splits,
    a_stride,
    b_stride,
    HAS_POSITIVE: tl.constexpr,
    NEED_ROW: tl.constexpr,
    NEED_COLUMN: tl.constexpr,
    NEED_TAU: tl.constexpr,
    NEED_STATS: tl.constexpr,
    OWN: tl.constexpr,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    DEPTH: tl.constexpr,
    ACC: tl.constexpr,
):
    """Joins the splits in their order, then turns each row's sums into its loss, statistics and gradients."""
    rows = tl.program_id(0) * OWN + tl.arange(0, OWN)
    inside = rows < B
    column, inverse, valid = row_terms(tau_ptr, positive_ptr, rows, B, N, HAS_POSITIVE, ACC)
    scale = (inverse * LOG2_E).to(ACC)
    z_positive = tl.load(score_ptr + rows, mask=inside, other=0.0).to(tl.float64) * scale.to(tl.float64)

    mu = tl.load(sums_ptr + rows, mask=inside, other=0.0)
    for split in range(1, splits):
        mu = tl.maximum(mu, tl.load(sums_ptr + split * 4 * B + rows, mask=inside, other=0.0))
    total = tl.zeros([OWN], ACC)
    moment = tl.zeros([OWN], ACC)
    top = tl.zeros([OWN], ACC) - float("inf")
    for split in range(splits):
        sums = sums_ptr + split * 4 * B + rows
        rise = tl.load(sums, mask=inside, other=0.0) - mu
        fade = tl.exp2(rise)
        part = tl.load(sums + B, mask=inside, other=0.0)
        moment += fade * (tl.load(sums + 2 * B, mask=inside, other=0.0) + part * rise)
        total += fade * part
        top = tl.maximum(top, tl.load(sums + 3 * B, mask=inside, other=0.0))

    # Few operations a row, in float64.
    negative = total.to(tl.float64)
    gap = z_positive - mu
    own = tl.exp2(gap)  # the positive's term
    whole = negative + own
    residual = negative / whole  # 1 - p at the positive
    near = negative <= own
    loss = tl.where(near, _log1p(negative / tl.where(near, own, 1.0)), tl.log(whole) - gap * LN_2)
    tl.store(loss_ptr + rows, tl.where(valid, loss, 0.0).to(ACC), mask=inside)
    tl.store(lse_ptr + rows, tl.where(valid, mu * LN_2 + tl.log(whole), 0.0).to(ACC), mask=inside)
    tl.store(logit_ptr + rows, tl.where(valid, z_positive * LN_2, 0.0).to(ACC), mask=inside)
    spread = LN_2 * (moment - gap * negative)  # sum over negatives of 2^(z - mu) (z - z_positive), natural units
    if NEED_STATS:
        score = tl.load(score_ptr + rows, mask=inside, other=0.0)
        entropy = loss - spread / whole  # 0 to the bit where there is no negative
        tl.store(top1_ptr + rows, (top < score) & valid & (whole == whole), mask=inside)
        tl.store(entropy_ptr + rows, tl.where(valid, entropy, 0.0).to(ACC), mask=inside)

    coefficient = tl.load(coefficient_ptr + rows, mask=inside, other=0.0)
    slope = tl.where(valid, coefficient * inverse, 0.0)
    if NEED_COLUMN:
        tl.store(slope_ptr + rows, scale, mask=inside)
        tl.store(slope_ptr + B + rows, tl.where(valid, mu, 0.0), mask=inside)
        tl.store(slope_ptr + 2 * B + rows, tl.where(valid, slope / whole, 0.0).to(ACC), mask=inside)
        tl.store(slope_ptr + 3 * B + rows, tl.where(valid, -residual * slope, 0.0).to(ACC), mask=inside)
        tl.store(slope_ptr + 4 * B + rows, slope.to(ACC), mask=inside)
    if NEED_ROW:
        weight = (slope / whole).to(ACC)[:, None]
        at_positive = (residual * slope).to(ACC)[:, None]
        along = tl.zeros([OWN], ACC)  # a_r . d_row_r
        for start in range(0, WIDTH, DEPTH):
            depth = start + tl.arange(0, DEPTH)
            wide = inside[:, None] & (depth < WIDTH)[None, :]
            o = tl.zeros([OWN, DEPTH], ACC)
            for split in range(splits):
                fade = tl.exp2(tl.load(sums_ptr + split * 4 * B + rows, mask=inside, other=0.0) - mu)
                offset = (split * B + rows.to(tl.int64))[:, None] * WIDTH + depth[None, :]
                o += fade[:, None] * tl.load(o_ptr + offset, mask=wide, other=0.0)
            b = load_block(b_ptr, b_stride, column, N, start, WIDTH, DEPTH)
            d_row = tl.where(valid[:, None], weight * o - at_positive * b, 0.0)
            if NEED_TAU:
                along += tl.sum(d_row * load_block(a_ptr, a_stride, rows, B, start, WIDTH, DEPTH), 1)
            offset = rows.to(tl.int64)[:, None] * D + depth[None, :]
            tl.store(d_row_ptr + offset, d_row, mask=inside[:, None] & (depth < D)[None, :])
        if NEED_TAU:
            tl.store(d_tau_ptr + rows, tl.where(valid, -along * inverse, 0.0).to(ACC), mask=inside)
    elif NEED_TAU:
        tl.store(d_tau_ptr + rows, tl.where(valid, -slope * spread / whole, 0.0).to(ACC), mask=inside)
