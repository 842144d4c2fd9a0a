"""The column sweep of InfoNCE: the gradient of the candidates, once every row's sums are finished.

    d_column_j = sum_{r: y_r != j} weight_r 2^(z_rj - mu_r) a_r + sum_{r: y_r = j} positive_r a_r
with weight_r = slope_r / sum_j 2^(z_rj - mu_r) and positive_r = (p_r - 1) slope_r from the row sweep.

Shapes: B rows, N columns, d hidden width, S row splits. The product is formed transposed, [columns, rows], so that
the probabilities are the left operand of the second product as they lie in registers. They are divided by ``peak``
before they are rounded to half precision, which takes 1 / (B tau) out of them.
"""

import triton
import triton.language as tl
from adaftr_fast.kernels.infonce.tiles import IGNORE, load_block, plan, scores


@triton.jit
def _sweep(acc, b, b_source, columns, a_source, slope_ptr, inverse_peak, positive_ptr, row_group_ptr, group, chunk,
           first, count, before_gap, gap, MASKED: tl.constexpr, HAS_POSITIVE: tl.constexpr, HAS_GROUP: tl.constexpr,
           TILE: tl.constexpr, WIDTH: tl.constexpr, DEPTH: tl.constexpr, PIECE: tl.constexpr, OPERAND: tl.constexpr,
           ACC: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """Run ``count`` row tiles past the columns, from ``first`` on, jumping over ``gap`` after ``before_gap``."""
    a_ptr, a_stride, B = a_source
    for i in range(count):
        tile = first + i + tl.where(i >= before_gap, gap, 0)
        rows = tile * TILE + tl.arange(0, TILE)
        inside = rows < B
        a = load_block(a_ptr, a_stride, rows, B, chunk, WIDTH, DEPTH)  # [TILE, DEPTH]
        s = scores(b, b_source, columns, a, a_source, rows, WIDTH, PIECE, OPERAND, ACC, PRECISION)  # [OWN, TILE]
        scale = tl.load(slope_ptr + rows, mask=inside, other=0.0)
        mu = tl.load(slope_ptr + B + rows, mask=inside, other=0.0)
        weight = tl.load(slope_ptr + 2 * B + rows, mask=inside, other=0.0) * inverse_peak
        z = tl.fma(s, tl.broadcast_to(scale[None, :], s.shape), tl.broadcast_to(-mu[None, :], s.shape))
        p = tl.exp2(z) * weight[None, :]
        if MASKED:
            if HAS_GROUP:
                row_group = tl.load(row_group_ptr + rows, mask=inside, other=0)
                p = tl.where(row_group[None, :] == group[:, None], 0.0, p)
            if HAS_POSITIVE:
                column = tl.load(positive_ptr + rows, mask=inside, other=IGNORE)
                positive = tl.load(slope_ptr + 3 * B + rows, mask=inside, other=0.0) * inverse_peak
                p = tl.where((column != IGNORE)[None, :], p, 0.0)  # not 0 * NaN, whatever the column holds
                p = tl.where(column[None, :] == columns[:, None], positive[None, :], p)
            else:
                p = tl.where(rows[None, :] == columns[:, None], 0.0, p)  # it started the sum
        acc = tl.dot(p.to(a.dtype).to(OPERAND), a.to(OPERAND), acc, input_precision=PRECISION, out_dtype=ACC)
    return acc


@triton.jit(do_not_specialize=["B", "N"])
def infonce_column_kernel(
    a_ptr,  # [B, WIDTH]
    b_ptr,  # [N, WIDTH]
    positive_ptr,  # [B] int64
    row_group_ptr,  # [B] int64
    column_group_ptr,  # [N] int64
    slope_ptr,  # [5, B]: scale, mu, weight of 2^(z - mu), weight of the positive, slope
    peak_ptr,  # [1]: the unit of the probabilities in half precision
    out_ptr,  # [S, N, d] out
    B,
    N,
    a_stride,
    b_stride,
    HAS_POSITIVE: tl.constexpr,
    HAS_GROUP: tl.constexpr,
    OWN: tl.constexpr,
    TILE: tl.constexpr,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    DEPTH: tl.constexpr,
    PIECE: tl.constexpr,
    OPERAND: tl.constexpr,
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Program (block of columns, row split, chunk of the output's width)."""
    split = tl.program_id(1)
    splits = tl.num_programs(1)
    chunk = tl.program_id(2) * DEPTH
    start = tl.program_id(0) * OWN
    columns = start + tl.arange(0, OWN)
    inside = columns < N
    peak = tl.load(peak_ptr)
    inverse_peak = tl.where(peak > 0, 1.0 / peak, 0.0).to(ACC)
    group = columns
    if HAS_GROUP:
        group = tl.load(column_group_ptr + columns, mask=inside, other=0)
    a_source = (a_ptr, a_stride, B)
    b_source = (b_ptr, b_stride, N)
    b = columns
    if PIECE == 0:
        b = load_block(b_ptr, b_stride, columns, N, 0, WIDTH, DEPTH)  # [OWN, DEPTH]

    tiles = tl.cdiv(B, TILE)
    first = (split * tiles) // splits
    last = ((split + 1) * tiles) // splits
    special: tl.constexpr = HAS_POSITIVE or HAS_GROUP
    low, high, end = plan(first, last, tiles, start // TILE, tl.cdiv(start + OWN, TILE), special)
    acc = tl.zeros([OWN, DEPTH], ACC)
    if not HAS_POSITIVE:  # row j's positive is column j: its term starts the sum, unrounded
        mine = tl.where(split == 0, B, 0)  # the first split alone adds it
        positive = tl.load(slope_ptr + 3 * B + columns, mask=columns < mine, other=0.0) * inverse_peak
        acc += positive[:, None] * load_block(a_ptr, a_stride, columns, mine, chunk, WIDTH, DEPTH)
    if not special:
        acc = _sweep(acc, b, b_source, columns, a_source, slope_ptr, inverse_peak, positive_ptr, row_group_ptr, group,
                     chunk, first, end - first - (high - low), low - first, high - low, False, HAS_POSITIVE, HAS_GROUP,
                     TILE, WIDTH, DEPTH, PIECE, OPERAND, ACC, PRECISION)  # fmt: skip
    acc = _sweep(acc, b, b_source, columns, a_source, slope_ptr, inverse_peak, positive_ptr, row_group_ptr, group,
                 chunk, low, high - low + last - end, high - low, end - high, True, HAS_POSITIVE, HAS_GROUP,
                 TILE, WIDTH, DEPTH, PIECE, OPERAND, ACC, PRECISION)  # fmt: skip
    acc *= peak
    depth = chunk + tl.arange(0, DEPTH)
    offset = (split.to(tl.int64) * N + columns)[:, None] * D + depth[None, :]
    tl.store(out_ptr + offset, acc, mask=inside[:, None] & (depth < D)[None, :])
