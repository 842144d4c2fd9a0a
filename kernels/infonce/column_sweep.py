"""The column sweep: streams the anchors past blocks of candidates, for the gradient of the candidates.

The package's docstring defines shapes and names. With m_r, l_r, t_r and p_r as combine.py leaves them:

    d_candidates_j = sum_{r: y_r != j} negative_scale_r 2^(z_rj - m_r) a_r + sum_{r: y_r = j} positive_scale_r a_r
    negative_scale_r = grad_scale_r / (l_r + t_r)
    positive_scale_r = (p_r - 1) grad_scale_r

The scores are formed transposed, [columns, rows], so that the probabilities are the left operand of the second
product without leaving their registers. They are divided by ``descale`` before they are rounded to half precision,
and acc is multiplied by it at the end: 1 / (B tau) alone would put them among float16's subnormals.

With JOINS, the program that comes last to the end of its split adds up the splits, in order, so the result does not
depend on which one that is.

With FOLDED, blocks without masks take negative_scale into the exponent, as shift_r = log2(negative_scale_r) - m_r, and
a descale of 1, if every row admits it: its ``misfit`` is 0 (combine.py).
"""

import triton
import triton.language as tl
from adaftr_fast.kernels.infonce.tiles import (
    IGNORE,
    accumulate,
    load_operand,
    partition_blocks,
    scores,
    split_blocks,
)

TERMS = tl.constexpr(4)  # of a row, side by side
BLOCKS = tl.constexpr(256)  # of combine.py, that are reduced at a time


@triton.jit
def _load_terms(ptr, rows, inside):
    """Returns softmax_scale_log2, m, negative_scale and, if positives are explicit, positive_scale, else shift.

    As one load it has as many elements as a program has threads, or more, so that Triton copies each once to shared
    memory, and not the ones that a thread needs for that thread.
    """
    terms = tl.load(ptr + rows[:, None] * TERMS + tl.arange(0, TERMS)[None, :], mask=inside[:, None], other=0.0)
    even, odd = tl.split(tl.reshape(terms, [rows.shape[0], 2, 2]))
    softmax_scale_log2, negative_scale = tl.split(even)
    shift_or_positive_scale, m = tl.split(odd)
    return softmax_scale_log2, m, negative_scale, shift_or_positive_scale


@triton.jit
def _reduce_blocks(ptr, count):
    """Returns the largest |grad_scale|, whether a row has a misfit, and the loss, from block_terms of combine.py."""
    size = tl.zeros([BLOCKS], ptr.dtype.element_ty)
    misfit, loss = size, size
    for start in range(0, count, BLOCKS):
        block = start + tl.arange(0, BLOCKS)
        inside = block < count
        size = tl.maximum(size, tl.load(ptr + block, mask=inside, other=0.0))
        misfit = tl.maximum(misfit, tl.load(ptr + count + block, mask=inside, other=0.0))
        loss += tl.load(ptr + 2 * count + block, mask=inside, other=0.0)
    return tl.max(size, 0), tl.max(misfit, 0), tl.sum(loss, 0)


@triton.jit
def _stream_rows(acc, b, b_desc, columns, a_desc, row_terms_ptr, inverse_descale, positive_ptr, row_group_ptr, group,
                 d_start, first, count, gap_at, gap, FOLDED: tl.constexpr, MASKED: tl.constexpr,
                 HAS_POSITIVE: tl.constexpr, HAS_GROUP: tl.constexpr, IGNORES: tl.constexpr,
                 META: tl.constexpr):  # fmt: skip
    """Streams ``count`` blocks of rows past the columns, from block ``first`` on; skips ``gap`` after ``gap_at``.

    MASKED "branch": it skips none; those blocks and ragged ones are masked, in a branch (anchor_sweep.py).
    """
    B = a_desc[2]
    for i in range(count):
        if MASKED == "branch":
            block = first + i
            masked = i >= 0  # all; Triton does not fold this
            if not (HAS_POSITIVE or HAS_GROUP or IGNORES):
                masked = ((i >= gap_at) & (i < gap_at + gap)) | (block >= B // META.BLOCK_M)
        else:
            block = first + i + tl.where(i >= gap_at, gap, 0)
            masked: tl.constexpr = MASKED
        rows = block * META.BLOCK_M + tl.arange(0, META.BLOCK_M)  # [BLOCK_M]
        inside = rows < B
        a = load_operand(a_desc, rows, d_start, META.BLOCK_D, META, FOLDED)  # [BLOCK_M, BLOCK_D]
        s = scores(b, b_desc, columns, a, a_desc, rows, META.BLOCK_K, META, Y_OWNED=True)  # [BLOCK_N, BLOCK_M]
        if IGNORES:
            bound = tl.load(row_terms_ptr + 5 * B + rows, mask=inside, other=0.0)
            s = tl.where(s > bound[None, :], float("-inf"), s)
        softmax_scale_log2, m, negative_scale, term = _load_terms(row_terms_ptr, rows, inside)
        shift = -m
        if FOLDED:
            shift = term
        z = tl.fma(s, tl.broadcast_to(softmax_scale_log2[None, :], s.shape), tl.broadcast_to(shift[None, :], s.shape))
        p = tl.exp2(z)  # [BLOCK_N, BLOCK_M]
        if not FOLDED:
            p *= (negative_scale * inverse_descale)[None, :]
        if masked:
            if HAS_GROUP:
                row_group = tl.load(row_group_ptr + rows, mask=inside, other=0)
                p = tl.where(row_group[None, :] == group[:, None], 0.0, p)
            if HAS_POSITIVE:
                positive = tl.load(positive_ptr + rows, mask=inside, other=IGNORE)
                positive_scale = term * inverse_descale
                p = tl.where((positive != IGNORE)[None, :], p, 0.0)  # not 0 * NaN, whatever the candidate holds
                p = tl.where(positive[None, :] == columns[:, None], positive_scale[None, :], p)
            else:
                p = tl.where(rows[None, :] == columns[:, None], 0.0, p)  # acc starts with the positive's term
        acc = accumulate(p, a, acc, META)  # [BLOCK_N, BLOCK_D]
    return acc


@triton.jit(do_not_specialize=["B", "N", "num_blocks"])
def infonce_column_sweep_kernel(
    anchors_ptr,  # [B, D_PADDED]
    candidates_ptr,  # [N, D_PADDED]
    positive_ptr,  # [B] int64
    row_group_ptr,  # [B] int64
    column_group_ptr,  # [N] int64
    # [B, TERMS]: softmax_scale_log2, shift or with HAS_POSITIVE positive_scale, negative_scale, m; then [B] each:
    # positive_scale; with IGNORES, at last the score above which no candidate is a negative
    row_terms_ptr,
    block_terms_ptr,  # [3, num_blocks], see combine.py, or without REDUCES [2]: the largest of the first two
    arrivals_ptr,  # [blocks of columns, slices] int32: splits that have come to their end, 0 at first; read with JOINS
    loss_ptr,  # [] out; not written without REDUCES
    partials_ptr,  # [S, N, d] out: the splits' shares of d_candidates
    d_candidates_ptr,  # [N, d] out; not written without JOINS
    B,
    N,
    num_blocks,
    anchors_stride,
    candidates_stride,
    HAS_POSITIVE: tl.constexpr,
    HAS_GROUP: tl.constexpr,
    IGNORES: tl.constexpr,
    FOLDED: tl.constexpr,
    REDUCES: tl.constexpr,
    JOINS: tl.constexpr,
    BRANCHES: tl.constexpr,
    META: tl.constexpr,
):
    """Grid: (blocks of columns, splits of the rows, slices of acc's width)."""
    split = tl.program_id(1)
    num_splits = tl.num_programs(1)
    d_start = tl.program_id(2) * META.BLOCK_D
    column_start = tl.program_id(0) * META.BLOCK_N
    columns = column_start + tl.arange(0, META.BLOCK_N)  # [BLOCK_N]
    inside = columns < N
    if REDUCES:
        size, misfit, loss = _reduce_blocks(block_terms_ptr, num_blocks)
        tl.store(loss_ptr, loss, mask=(tl.program_id(0) == 0) & (split == 0) & (d_start == 0))
    else:
        size, misfit = tl.load(block_terms_ptr), tl.load(block_terms_ptr + 1)
    # The probabilities' unit in half precision: the largest |grad_scale|, at least 2^-100, becomes 2^MAX_OFFSET.
    descale = size * 2.0**-META.MAX_OFFSET
    fold = 0
    if FOLDED:
        fold = (misfit == 0).to(tl.int32)
        descale = tl.where(fold > 0, 1.0, descale)
    inverse_descale = tl.where(descale > 0, 1.0 / descale, 0.0).to(META.ACC_DTYPE)
    group = columns
    if HAS_GROUP:
        group = tl.load(column_group_ptr + columns, mask=inside, other=0)
    a_desc = (anchors_ptr, anchors_stride, B)
    b_desc = (candidates_ptr, candidates_stride, N)
    b = columns
    if META.BLOCK_K == 0:
        b = load_operand(b_desc, columns, 0, META.BLOCK_D, META)  # [BLOCK_N, BLOCK_D]

    first, last = split_blocks(B, META.BLOCK_M)
    all_masked: tl.constexpr = HAS_POSITIVE or HAS_GROUP or IGNORES
    low, high, end = partition_blocks(first, last, B // META.BLOCK_M, column_start // META.BLOCK_M,
                                      tl.cdiv(column_start + META.BLOCK_N, META.BLOCK_M), all_masked)  # fmt: skip
    acc = tl.zeros([META.BLOCK_N, META.BLOCK_D], META.ACC_DTYPE)
    if not HAS_POSITIVE:  # column j is row j's positive: its term starts the sum, without rounding to half precision
        limit = tl.where(split == 0, B, 0)  # the first split alone adds it
        positive_scale = tl.load(row_terms_ptr + 4 * B + columns, mask=columns < limit, other=0.0) * inverse_descale
        a_desc_limited = (anchors_ptr, anchors_stride, limit)
        a = load_operand(a_desc_limited, columns, d_start, META.BLOCK_D, META)
        if META.INPUT_PRECISION == "bf16x3":
            a = a[0].to(META.ACC_DTYPE) + a[1]
        acc += positive_scale[:, None] * a  # [BLOCK_N, BLOCK_D]
    plain = end - first - (high - low)
    if FOLDED:
        acc = _stream_rows(acc, b, b_desc, columns, a_desc, row_terms_ptr, inverse_descale, positive_ptr, row_group_ptr,
                           group, d_start, first, fold * plain, low - first, high - low, True, False, HAS_POSITIVE,
                           HAS_GROUP, IGNORES, META)  # fmt: skip
        plain *= 1 - fold
    if not (all_masked or BRANCHES):
        acc = _stream_rows(acc, b, b_desc, columns, a_desc, row_terms_ptr, inverse_descale, positive_ptr, row_group_ptr,
                           group, d_start, first, plain, low - first, high - low, False, False, HAS_POSITIVE, HAS_GROUP,
                           IGNORES, META)  # fmt: skip
    if BRANCHES:
        acc = _stream_rows(acc, b, b_desc, columns, a_desc, row_terms_ptr, inverse_descale, positive_ptr, row_group_ptr,
                           group, d_start, first, last - first, low - first, high - low, False, "branch", HAS_POSITIVE,
                           HAS_GROUP, IGNORES, META)  # fmt: skip
    else:
        acc = _stream_rows(acc, b, b_desc, columns, a_desc, row_terms_ptr, inverse_descale, positive_ptr, row_group_ptr,
                           group, d_start, low, high - low + last - end, high - low, end - high, False, True,
                           HAS_POSITIVE, HAS_GROUP, IGNORES, META)  # fmt: skip
    acc *= descale
    width = d_start + tl.arange(0, META.BLOCK_D)  # [BLOCK_D]
    mask = inside[:, None] & (width < META.D)[None, :]
    offset = (split.to(tl.int64) * N + columns)[:, None] * META.D + width[None, :]
    tl.store(partials_ptr + offset, acc, mask=mask)
    if JOINS:
        tl.debug_barrier()  # all threads have stored what the atomic addition releases
        arrivals = tl.atomic_add(arrivals_ptr + tl.program_id(0) * tl.num_programs(2) + tl.program_id(2), 1)
        if arrivals == num_splits - 1:
            offset = columns.to(tl.int64)[:, None] * META.D + width[None, :]
            acc = tl.load(partials_ptr + offset, mask=mask, other=0.0)
            share = offset
            for _ in range(1, num_splits):
                share += N.to(tl.int64) * META.D
                acc += tl.load(partials_ptr + share, mask=mask, other=0.0)
            tl.store(d_candidates_ptr + offset, acc, mask=mask)
