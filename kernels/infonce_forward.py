"""The row sweep of InfoNCE: what each row needs, in one pass over the columns, and its ordered completion.

Shapes: B rows, N columns, d hidden width, S column splits. Logits are kept in base 2: z_rj = scale_r a_r . b_j with
scale_r = log2(e) / tau_r, applied to the accumulator and never to half-precision inputs.

Every row's sums run over its negatives only, relative to a running maximum mu_r that starts at the positive's logit:
    total_r  = sum_j 2^(z_rj - mu_r)
    moment_r = sum_j 2^(z_rj - mu_r) (z_rj - mu_r)
    o_r      = sum_j 2^(z_rj - mu_r) b_j
The positive joins at the end, where p - 1 is written as -total / (total + 2^(z_ry - mu)) and keeps its digits.
LIFT lowers mu by that many binades, which keeps small probabilities out of float16's subnormals.
"""

import triton
import triton.language as tl
from adaftr_fast.kernels.infonce_tiles import LOG2_E, load_block, plan, row_terms, scores

LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def _sweep(state, a, a_source, rows, b_source, scale, column, group, column_group_ptr, chunk,
           first, count, before_gap, gap, MASKED: tl.constexpr, HAS_GROUP: tl.constexpr, NEED_ROW: tl.constexpr,
           NEED_MOMENT: tl.constexpr, LIFT: tl.constexpr, TILE: tl.constexpr, WIDTH: tl.constexpr, DEPTH: tl.constexpr,
           PIECE: tl.constexpr, OPERAND: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """Run ``count`` column tiles past the rows, from ``first`` on, jumping over ``gap`` after ``before_gap``."""
    mu, total, moment, top, o = state
    b_ptr, b_stride, N = b_source
    for i in range(count):
        tile = first + i + tl.where(i >= before_gap, gap, 0)
        columns = tile * TILE + tl.arange(0, TILE)
        b = columns
        if NEED_ROW or PIECE == 0:
            b = load_block(b_ptr, b_stride, columns, N, chunk, WIDTH, DEPTH)  # [TILE, DEPTH]
        s = scores(a, a_source, rows, b, b_source, columns, WIDTH, PIECE, OPERAND, ACC, PRECISION)  # [OWN, TILE]
        if MASKED:
            s = tl.where((columns < N)[None, :], s, float("-inf"))
            s = tl.where(columns[None, :] == column[:, None], float("-inf"), s)
            if HAS_GROUP:
                column_group = tl.load(column_group_ptr + columns, mask=columns < N, other=0)
                s = tl.where(column_group[None, :] == group[:, None], float("-inf"), s)
        peak = tl.max(s, 1)
        top = tl.maximum(top, peak)
        new = tl.maximum(mu, peak * scale - LIFT)
        rise = mu - new
        fade = tl.exp2(rise)
        z = tl.fma(s, tl.broadcast_to(scale[:, None], s.shape), tl.broadcast_to(-new[:, None], s.shape))
        p = tl.exp2(z)  # [OWN, TILE]
        if NEED_MOMENT:
            z = tl.maximum(z, -2048.0)  # where p is 0 in any type: excluded columns would give 0 * -inf
            moment = fade * (moment + total * rise) + tl.sum(p * z, 1)
        total = total * fade + tl.sum(p, 1)
        if NEED_ROW:
            o = tl.dot(p.to(b.dtype).to(OPERAND), b.to(OPERAND), o * fade[:, None], input_precision=PRECISION,
                       out_dtype=ACC)  # fmt: skip
        mu = new
    return mu, total, moment, top, o


@triton.jit(do_not_specialize=["B", "N"])
def infonce_sweep_kernel(
    a_ptr,  # [B, WIDTH]
    b_ptr,  # [N, WIDTH]
    tau_ptr,  # [B]
    positive_ptr,  # [B] int64
    row_group_ptr,  # [B] int64
    column_group_ptr,  # [N] int64
    score_ptr,  # [B] out: a_r . b_{y_r}
    sums_ptr,  # [S, 4, B] out: mu, total, moment, largest negative product
    o_ptr,  # [S, B, WIDTH] out
    B,
    N,
    a_stride,
    b_stride,
    HAS_POSITIVE: tl.constexpr,
    HAS_GROUP: tl.constexpr,
    NEED_ROW: tl.constexpr,
    NEED_MOMENT: tl.constexpr,
    LIFT: tl.constexpr,
    OWN: tl.constexpr,
    TILE: tl.constexpr,
    WIDTH: tl.constexpr,
    DEPTH: tl.constexpr,
    PIECE: tl.constexpr,
    OPERAND: tl.constexpr,
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Program (block of rows, column split, chunk of o's width)."""
    split = tl.program_id(1)
    splits = tl.num_programs(1)
    chunk = tl.program_id(2) * DEPTH
    start = tl.program_id(0) * OWN
    local = tl.arange(0, OWN)
    rows = start + local
    column, inverse, _ = row_terms(tau_ptr, positive_ptr, rows, B, N, HAS_POSITIVE, ACC)
    scale = (inverse * LOG2_E).to(ACC)
    group = rows
    if HAS_GROUP:
        group = tl.load(row_group_ptr + rows, mask=rows < B, other=0)

    a_source = (a_ptr, a_stride, B)
    b_source = (b_ptr, b_stride, N)
    # The positives' products are the diagonal of a product of blocks: summed in the sweep's order, so that a tie with
    # a negative is a tie to the bit. In pieces, because a whole block of gathered rows would crowd shared memory.
    piece: tl.constexpr = PIECE if PIECE > 0 else min(DEPTH, 64)
    s = scores(rows, a_source, rows, column, b_source, column, WIDTH, piece, OPERAND, ACC, PRECISION)  # [OWN, OWN]
    score = tl.sum(tl.where(local[:, None] == local[None, :], s, 0.0), 1)
    a = rows
    if PIECE == 0:
        a = load_block(a_ptr, a_stride, rows, B, 0, WIDTH, DEPTH)  # [OWN, DEPTH]

    tiles = tl.cdiv(N, TILE)
    first = (split * tiles) // splits
    last = ((split + 1) * tiles) // splits
    diagonal_last = tl.cdiv(tl.minimum(start + OWN, B), TILE)
    special: tl.constexpr = HAS_POSITIVE or HAS_GROUP
    low, high, end = plan(first, last, N // TILE, start // TILE, diagonal_last, special)
    zero = tl.zeros([OWN], ACC)
    o = zero
    if NEED_ROW:
        o = tl.zeros([OWN, DEPTH], ACC)
    state = (score * scale - LIFT, zero, zero, zero - float("inf"), o)
    if not special:
        state = _sweep(state, a, a_source, rows, b_source, scale, column, group, column_group_ptr, chunk,
                       first, end - first - (high - low), low - first, high - low, False, HAS_GROUP, NEED_ROW,
                       NEED_MOMENT, LIFT, TILE, WIDTH, DEPTH, PIECE, OPERAND, ACC, PRECISION)  # fmt: skip
    state = _sweep(state, a, a_source, rows, b_source, scale, column, group, column_group_ptr, chunk,
                   low, high - low + last - end, high - low, end - high, True, HAS_GROUP, NEED_ROW,
                   NEED_MOMENT, LIFT, TILE, WIDTH, DEPTH, PIECE, OPERAND, ACC, PRECISION)  # fmt: skip
    mu, total, moment, top, o = state

    inside = rows < B
    if chunk == 0:
        if split == 0:
            tl.store(score_ptr + rows, score, mask=inside)
        sums = sums_ptr + split.to(tl.int64) * 4 * B + rows
        tl.store(sums, mu, mask=inside)
        tl.store(sums + B, total, mask=inside)
        tl.store(sums + 2 * B, moment, mask=inside)
        tl.store(sums + 3 * B, top, mask=inside)
    if NEED_ROW:
        depth = chunk + tl.arange(0, DEPTH)
        offset = (split.to(tl.int64) * B + rows)[:, None] * WIDTH + depth[None, :]
        tl.store(o_ptr + offset, o, mask=inside[:, None] & (depth < WIDTH)[None, :])


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
