"""The row sweep for Hopper GPUs, in Gluon. It computes what row_sweep.py does where row r's positive is column r.

The package's docstring defines shapes and names, gluon_pipeline.py the threads and the order of what they do.
ADAFTR_FAST_INFONCE_SWEEPS=gluon chooses it (config.py), and it is not the default, because no GPU has run it yet.

A program owns two tiles of OWNED rows and streams blocks of 2 OWNED columns. Every program begins with the diagonal
block: its scores give m its seed, and are negatives in the split that the block belongs to. The last of the split's
other blocks may be ragged, which a loop of its own masks. m, l and p follow from a block's scores. acc is multiplied by
a block's alpha when it holds all blocks before.

Without NEED_D_ANCHORS there is one product a block, and only the other consumer's exponentials run during it.

Shared memory: at BLOCK_D = 128, 32 KiB of anchors and four stages of 32 KiB; half of it at 64.
"""

# ruff: noqa: E741
# l is the running sum, as in FlashAttention.

from adaftr_fast.kernels.infonce.config import Config, max_offset
from adaftr_fast.kernels.infonce.gluon_pipeline import (
    CONSUMER_REGISTERS,
    DEFAULT_WARPS,
    OWNED,
    PRODUCER_REGISTERS,
    allocate_barriers,
    descriptors,
    first_scores,
    issue,
    issue_scores,
    produce,
    wait_for_block,
)
from adaftr_fast.kernels.infonce.launch import Operands
from adaftr_fast.kernels.infonce.tiles import LOG2_E, load_row_parameters
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, warpgroup_mma, warpgroup_mma_wait

row_parameters = gluon.jit(load_row_parameters.fn)


def gluon_row_sweep(operands: Operands, config: Config, tau: Tensor, need_d_anchors: bool) -> tuple[Tensor, ...]:
    """Returns positive_score [B], partials [S, 4, B] and acc [S, B, D_PADDED], empty unless needed, as row_sweep.py."""
    a, b, empty = operands.anchors, operands.candidates, operands.empty
    (B, width), N = a.shape, len(b)
    row_blocks, splits, _ = operands.products.grid(config, divide_width=False)
    positive_score, partials = empty(B), empty(splits, 4, B)
    acc = empty(splits, B, width) if need_d_anchors else empty(0)
    infonce_gluon_row_sweep_kernel[(row_blocks, splits)](
        *descriptors(a, b, config), tau, positive_score, partials, acc, B, N, NEED_D_ANCHORS=need_d_anchors,
        MAX_OFFSET=max_offset(a.dtype), D_PADDED=width, STAGES=config.num_stages, num_warps=DEFAULT_WARPS,
    )  # fmt: skip
    return positive_score, partials, acc


@gluon.jit
def _online_softmax(s, m, l, max_negative, softmax_scale_log2, MAX_OFFSET: gl.constexpr):
    """Returns p of a block of scores and the new m, l, max_negative and alpha."""
    block_max = gl.max(s, 1)  # [OWNED]
    max_negative = gl.maximum(max_negative, block_max)
    m_new = gl.maximum(m, block_max * softmax_scale_log2 - MAX_OFFSET)
    alpha = gl.exp2(m - m_new)
    p = gl.exp2(gl.fma(s, gl.expand_dims(softmax_scale_log2, 1).broadcast_to(s.shape),
                       gl.expand_dims(-m_new, 1).broadcast_to(s.shape)))  # [OWNED, BLOCK_N]  # fmt: skip
    return p, m_new, l * alpha + gl.sum(p, 1), max_negative, alpha


@gluon.jit
def _stream(state, a, ring, full, empty, my_turn, other_turn, softmax_scale_log2, columns, limit, start, stop, count,
            WHO: gl.constexpr, MASKED: gl.constexpr, NEED_D_ANCHORS: gl.constexpr, MAX_OFFSET: gl.constexpr,
            S_LAYOUT: gl.constexpr, P_LAYOUT: gl.constexpr):  # fmt: skip
    """Does blocks ``start .. stop`` of ``count``. MASKED: of their ``columns``, only those below ``limit`` count."""
    m, l, max_negative, acc, p = state
    STAGES: gl.constexpr = ring.shape[0]
    for i in range(start, stop):
        stage = i % STAGES
        before = (i - 1) % STAGES
        if NEED_D_ANCHORS:
            s_group, acc_group = issue(a, ring, p, acc, i, my_turn, other_turn, WHO, S_LAYOUT)
            s = warpgroup_mma_wait(1, [s_group])
        else:
            mbarrier.wait(my_turn, (i & 1) ^ WHO)
            s_group = issue_scores(a, ring.index(stage), S_LAYOUT)
            mbarrier.arrive(other_turn)
            s = warpgroup_mma_wait(0, [s_group])
            mbarrier.arrive(empty.index(stage))
        if MASKED:
            s = gl.where(gl.expand_dims(columns < limit, 0), s, float("-inf"))
        p_block, m, l, max_negative, alpha = _online_softmax(s, m, l, max_negative, softmax_scale_log2, MAX_OFFSET)
        wait_for_block(full, gl.minimum(i + 1, count))
        if NEED_D_ANCHORS:
            acc = warpgroup_mma_wait(0, [acc_group])
            mbarrier.arrive(empty.index(before))
            acc *= gl.expand_dims(gl.convert_layout(alpha, gl.SliceLayout(1, acc.type.layout)), 1)
            p = gl.convert_layout(p_block.to(ring.dtype), P_LAYOUT)
    return m, l, max_negative, acc, p


@gluon.jit
def _consume(tau_ptr, positive_score_ptr, partials_ptr, acc_ptr, B, N, a, ring, full, empty, my_turn, other_turn,
             diagonal, holds_diagonal, count, ragged, WHO: gl.constexpr, NEED_D_ANCHORS: gl.constexpr,
             MAX_OFFSET: gl.constexpr, D_PADDED: gl.constexpr):  # fmt: skip
    """Sweeps the columns for one tile of rows, and stores what it finds."""
    BLOCK_N: gl.constexpr = ring.shape[1]
    BLOCK_D: gl.constexpr = ring.shape[2]
    S_LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_N, 16])
    ACC_LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_D, 16])
    P_LAYOUT: gl.constexpr = gl.DotOperandLayout(0, ACC_LAYOUT, 2)  # as the scores lie: no register moves
    rows = gl.program_id(0) * (2 * OWNED) + WHO * OWNED + gl.arange(0, OWNED, gl.SliceLayout(1, S_LAYOUT))
    column = gl.arange(0, BLOCK_N, gl.SliceLayout(0, S_LAYOUT))
    inside = rows < B
    _, softmax_scale, _ = row_parameters(tau_ptr, tau_ptr, rows, B, N, False)
    softmax_scale_log2 = (softmax_scale * LOG2_E).to(gl.float32)

    s = first_scores(a, ring, full, S_LAYOUT)
    if not NEED_D_ANCHORS:
        mbarrier.arrive(empty.index(0))
    columns = diagonal * BLOCK_N + column
    is_positive = gl.expand_dims(rows, 1) == gl.expand_dims(columns, 0)  # [OWNED, BLOCK_N]
    positive_score = gl.sum(gl.where(is_positive, s, 0.0), 1)
    limit = gl.where(holds_diagonal, N, 0)
    s = gl.where(is_positive | gl.expand_dims(columns >= limit, 0), float("-inf"), s)
    m = positive_score * softmax_scale_log2 - MAX_OFFSET
    l = gl.zeros_like(m)
    max_negative = l - float("inf")
    p, m, l, max_negative, _ = _online_softmax(s, m, l, max_negative, softmax_scale_log2, MAX_OFFSET)
    acc = l
    if NEED_D_ANCHORS:
        p = gl.convert_layout(p.to(ring.dtype), P_LAYOUT)
        acc = gl.zeros([OWNED, BLOCK_D], gl.float32, ACC_LAYOUT)
    state = (m, l, max_negative, acc, p)
    columns = (gl.cdiv(N, BLOCK_N) - 1) * BLOCK_N + column
    whole = count + 1 - ragged
    wait_for_block(full, gl.minimum(1, count))
    state = _stream(state, a, ring, full, empty, my_turn, other_turn, softmax_scale_log2, columns, N, 1, whole,
                    count, WHO, False, NEED_D_ANCHORS, MAX_OFFSET, S_LAYOUT, P_LAYOUT)  # fmt: skip
    state = _stream(state, a, ring, full, empty, my_turn, other_turn, softmax_scale_log2, columns, N, whole, count + 1,
                    count, WHO, True, NEED_D_ANCHORS, MAX_OFFSET, S_LAYOUT, P_LAYOUT)  # fmt: skip
    m, l, max_negative, acc, p = state

    split = gl.program_id(1)
    if split == 0:
        gl.store(positive_score_ptr + rows, positive_score, mask=inside)
    partials = partials_ptr + split.to(gl.int64) * 4 * B + rows
    gl.store(partials, m, mask=inside)
    gl.store(partials + B, l, mask=inside)
    gl.store(partials + 2 * B, gl.zeros_like(l), mask=inside)
    gl.store(partials + 3 * B, max_negative, mask=inside)
    if NEED_D_ANCHORS:
        acc_group = warpgroup_mma(p, ring.index(count % ring.shape[0]), acc, is_async=True)
        acc = warpgroup_mma_wait(0, [acc_group])
        rows = gl.convert_layout(rows, gl.SliceLayout(1, ACC_LAYOUT))
        width = gl.arange(0, BLOCK_D, gl.SliceLayout(0, ACC_LAYOUT))
        offset = gl.expand_dims(split.to(gl.int64) * B + rows, 1) * D_PADDED + gl.expand_dims(width, 0)
        gl.store(acc_ptr + offset, acc, mask=gl.expand_dims(rows < B, 1) & gl.expand_dims(width < D_PADDED, 0))


@gluon.jit(do_not_specialize=["B", "N"])
def infonce_gluon_row_sweep_kernel(
    anchors,  # descriptor of [B, D_PADDED] in blocks [OWNED, BLOCK_D]
    candidates,  # descriptor of [N, D_PADDED] in blocks [BLOCK_N, BLOCK_D]
    tau_ptr,  # [B]
    positive_score_ptr,  # [B] out: a_r . b_r
    partials_ptr,  # [S, 4, B] out: m, l, 0, largest score of a negative
    acc_ptr,  # [S, B, D_PADDED] out
    B,
    N,
    NEED_D_ANCHORS: gl.constexpr,
    MAX_OFFSET: gl.constexpr,
    D_PADDED: gl.constexpr,
    STAGES: gl.constexpr,
):
    """Grid: (blocks of rows, splits of the columns). BLOCK_N is 2 OWNED, so that one block holds the positives."""
    BLOCK_N: gl.constexpr = candidates.block_shape[0]
    BLOCK_D: gl.constexpr = candidates.block_shape[1]
    gl.static_assert(BLOCK_N == 2 * OWNED)
    a_buffer = gl.allocate_shared_memory(anchors.dtype, [2, OWNED, BLOCK_D], anchors.layout)
    ring = gl.allocate_shared_memory(candidates.dtype, [STAGES, BLOCK_N, BLOCK_D], candidates.layout)
    full, empty, turn_0, turn_1 = allocate_barriers(STAGES)
    blocks = gl.cdiv(N, BLOCK_N)
    first = (gl.program_id(1) * blocks) // gl.num_programs(1)
    last = ((gl.program_id(1) + 1) * blocks) // gl.num_programs(1)
    diagonal = gl.program_id(0)
    holds_diagonal = (first <= diagonal) & (diagonal < last)
    count = last - first - holds_diagonal.to(gl.int32)  # of blocks after the diagonal one
    ragged = ((N % BLOCK_N != 0) & (last == blocks) & (diagonal != blocks - 1)).to(gl.int32)
    gl.warp_specialize(
        [
            (_consume, (tau_ptr, positive_score_ptr, partials_ptr, acc_ptr, B, N, a_buffer.index(0), ring, full, empty,
                        turn_0, turn_1, diagonal, holds_diagonal, count, ragged, gl.constexpr(0), NEED_D_ANCHORS,
                        MAX_OFFSET, D_PADDED)),
            (_consume, (tau_ptr, positive_score_ptr, partials_ptr, acc_ptr, B, N, a_buffer.index(1), ring, full, empty,
                        turn_1, turn_0, diagonal, holds_diagonal, count, ragged, gl.constexpr(1), NEED_D_ANCHORS,
                        MAX_OFFSET, D_PADDED)),
            (produce, (anchors, a_buffer, ((candidates, ring),), full, empty, diagonal, first, holds_diagonal, count)),
        ],
        [4, 1],
        [CONSUMER_REGISTERS, PRODUCER_REGISTERS],
    )  # fmt: skip
