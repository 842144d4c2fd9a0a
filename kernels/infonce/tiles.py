"""What the kernels share: blocks and their order, the scores of two blocks, a row's parameters, and log1p.

The package's docstring defines shapes and names. A matrix is passed as a tuple ``desc`` of its pointer, the stride of
its rows in elements, and its number of rows.
"""

import triton
import triton.language as tl

IGNORE = tl.constexpr(-100)  # the positive of a row that has no loss
LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def load_block(desc, index, start, D_PADDED: tl.constexpr, BLOCK: tl.constexpr, FULL: tl.constexpr = False):
    """Loads entries ``start .. start + BLOCK`` of the rows ``index``; 0 beyond the last row and beyond D_PADDED.

    ``FULL``: no index is beyond the last row, which saves the mask.
    """
    ptr, stride, limit = desc
    width = start + tl.arange(0, BLOCK)  # [BLOCK]
    offset = index.to(tl.int64)[:, None] * stride + width[None, :]
    mask = (index < limit)[:, None]
    if D_PADDED % BLOCK != 0:
        mask = mask & (width < D_PADDED)[None, :]
    elif FULL:
        return tl.load(ptr + offset)
    return tl.load(ptr + offset, mask=mask, other=0.0)  # [len(index), BLOCK]


@triton.jit
def load_operand(desc, index, start, BLOCK: tl.constexpr, META: tl.constexpr, FULL: tl.constexpr = False):
    """Loads a block for ``product``: that of load_block, or the pair of its terms where products are "bf16x3"."""
    block = load_block(desc, index, start, META.D_PADDED, BLOCK, FULL)
    if META.INPUT_PRECISION == "bf16x3":  # a row holds its high terms, then its low terms
        return block, load_block((desc[0] + META.D_PADDED, desc[1], desc[2]), index, start, META.D_PADDED, BLOCK, FULL)
    else:
        return block


@triton.jit
def _dot(x, y, acc, META: tl.constexpr):
    return tl.dot(x.to(META.OPERAND_DTYPE), y.to(META.OPERAND_DTYPE), acc, out_dtype=META.ACC_DTYPE,
                  input_precision="ieee" if META.INPUT_PRECISION == "bf16x3" else META.INPUT_PRECISION)  # fmt: skip


@triton.jit
def _similarities(x, y, s, Y_OWNED: tl.constexpr, META: tl.constexpr):
    """s + x y^T for blocks of load_operand; Y_OWNED exchanges the order of the two mixed terms."""
    if META.INPUT_PRECISION == "bf16x3":
        first_x, second_x = x[0], x[1]
        first_y, second_y = y[1], y[0]
        if Y_OWNED:
            first_x, second_x = x[1], x[0]
            first_y, second_y = y[0], y[1]
        s = _dot(first_x, tl.trans(first_y), s, META)
        s = _dot(second_x, tl.trans(second_y), s, META)
        x, y = x[0], y[0]
    return _dot(x, tl.trans(y.to(META.OPERAND_DTYPE)), s, META)


@triton.jit
def scores(x, x_desc, x_index, y, y_desc, y_index, BLOCK_K: tl.constexpr, META: tl.constexpr,
           Y_OWNED: tl.constexpr = False):  # fmt: skip
    """Returns all products ``x_i . y_j``: of whole blocks where BLOCK_K is 0, else in a loop over slices of the width.

    The loop loads its own slices, of the rows ``x_index`` and ``y_index``, and ignores ``x`` and ``y``.
    """
    s = tl.zeros([x_index.shape[0], y_index.shape[0]], META.ACC_DTYPE)
    if BLOCK_K == 0:
        s = _similarities(x, y, s, Y_OWNED, META)
    else:
        for start in range(0, META.D_PADDED, BLOCK_K):
            x_slice = load_operand(x_desc, x_index, start, BLOCK_K, META)
            y_slice = load_operand(y_desc, y_index, start, BLOCK_K, META)
            s = _similarities(x_slice, y_slice, s, Y_OWNED, META)
    return s  # [len(x_index), len(y_index)]


@triton.jit
def accumulate(p, y, acc, META: tl.constexpr):
    """acc + p y for a block of load_operand; p is rounded to its type, or split likewise."""
    if META.INPUT_PRECISION == "bf16x3":
        high = p.to(y[0].dtype)
        low = (p - high.to(p.dtype)).to(y[0].dtype)
        acc = _dot(low, y[0], acc, META)
        acc = _dot(high, y[1], acc, META)
        return _dot(high, y[0], acc, META)
    else:
        return _dot(p.to(y.dtype), y, acc, META)


@triton.jit
def split_blocks(size, BLOCK: tl.constexpr):
    """Returns the first block of a program's split of a streamed side with ``size`` entries, and the one after it."""
    blocks = tl.cdiv(size, BLOCK)
    first = (tl.program_id(1) * blocks) // tl.num_programs(1)
    return first, ((tl.program_id(1) + 1) * blocks) // tl.num_programs(1)


@triton.jit
def partition_blocks(first, last, full, diagonal_first, diagonal_last, ALL_MASKED: tl.constexpr):
    """Divides the streamed blocks ``first .. last`` into unmasked ones, full and without a positive, and masked ones.

    Blocks from ``full`` on are ragged; blocks ``diagonal_first .. diagonal_last`` hold positives. The unmasked blocks
    are ``first .. end`` without ``low .. high``; the masked ones are ``low .. high`` and ``end .. last``. Each set is
    one loop over a counter that jumps over one gap, so that loads are pipelined across the gap.
    """
    end = tl.minimum(last, tl.maximum(full, first))
    low, high = first, end
    if not ALL_MASKED:
        low = tl.minimum(tl.maximum(diagonal_first, first), end)
        high = tl.minimum(tl.maximum(diagonal_last, first), end)
    return low, high, end


@triton.jit
def load_row_parameters(tau_ptr, positive_ptr, rows, B, N, HAS_POSITIVE: tl.constexpr):
    """Returns each row's positive (clamped to the columns), softmax_scale in float64, and whether the row has a loss.

    softmax_scale is NaN, and with it everything the row yields, where tau is not positive and finite or the positive
    is out of range. It is float64 so that 1 / tau is rounded once; a row has few such values.
    """
    inside = rows < B
    tau = tl.load(tau_ptr + rows, mask=inside, other=1.0).to(tl.float64)
    positive = rows.to(tl.int64)
    if HAS_POSITIVE:
        positive = tl.load(positive_ptr + rows, mask=inside, other=0)
    valid = positive != IGNORE
    in_range = (tau > 0) & (tau < float("inf")) & (positive >= 0) & (positive < N)
    softmax_scale = tl.where(in_range, 1.0 / tau, float("nan"))
    softmax_scale = tl.where(valid & inside, softmax_scale, 1.0)  # launch.py zeroes the anchors of ignored rows
    positive = tl.minimum(tl.maximum(positive, 0), N - 1).to(tl.int32)
    return positive, softmax_scale, valid & inside


@triton.jit
def log1p(x):
    """log(1 + x) for x >= 0 to full relative precision: the error of forming 1 + x cancels in the quotient."""
    u = 1.0 + x
    return tl.where(u == 1.0, x, tl.log(u) * (x / tl.where(u == 1.0, 1.0, u - 1.0)))
