"""The row sweep of InfoNCE: what each row needs, in one pass over the columns; combine.py completes it.

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
from adaftr_fast.kernels.infonce.tiles import LOG2_E, load_block, plan, row_terms, scores


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
