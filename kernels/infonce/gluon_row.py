"""The row sweep for Hopper GPUs, in Gluon. It computes what row_sweep.py does where row r's positive is column r.

The package's docstring defines shapes and names. ADAFTR_FAST_ROW_SWEEP=gluon chooses it (config.py), and it is not the
default, because no GPU has run it yet.

Work. A program owns two tiles of ROWS rows and streams blocks of BLOCK_N columns. Two warpgroups of four warps consume,
each for one tile, and one warp produces: it copies blocks by TMA into a ring of STAGES stages in shared memory. They
meet at mbarriers, and no barrier of all warps is in a loop:

    full[stage]      the block has arrived: one arrival, and its bytes
    empty[stage]     both consumers have read the block
    turn             one for each consumer: the other one has issued its products

Order. Block 0 of every program holds the positives of its rows. Its scores give m its seed, and are negatives in the
split that the block belongs to. The split's other blocks follow in order; the last of them may be ragged, which a loop
of its own masks. For block i, a consumer with NEED_D_ANCHORS does:

    wait for its turn
    issue s = a b_i^T, issue acc += p b_{i-1}, give the turn to the other consumer
    wait until one product is outstanding       s is complete
    m, l and p from s                           exponentials of block i during the product of block i - 1
    wait for block i + 1, then until no product is outstanding
    release block i - 1, acc *= alpha, round p

The last p meets its block after the loop. acc is multiplied by a block's alpha when it holds all blocks before. The
turns keep the consumers apart: the products of one run during the exponentials of the other. Without NEED_D_ANCHORS
there is one product a block, and only the other consumer's exponentials run during it. The wait for block i + 1 comes
before the wait for the product because its loop is an edge that ptxas moves no exponential across; without it, ptxas
moves the wait to their front.

Shared memory: at BLOCK_D = 128 in half types, 32 KiB of anchors and four stages of 32 KiB; half of it at 64. Registers:
a program starts with 168 a thread for its twelve warps; setmaxnreg gives consumers 240, of which s, acc and p take 160
at BLOCK_D = 128, and leaves the producer's warpgroup 24.
"""

# ruff: noqa: E741
# l is the running sum, as in FlashAttention.

import triton
from adaftr_fast.kernels.infonce.config import TYPES, Config, choose_splits, max_offset
from adaftr_fast.kernels.infonce.operands import Operands
from adaftr_fast.kernels.infonce.tiles import LOG2_E, load_row_parameters
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

ROWS = gl.constexpr(64)  # of a consumer: those of one wgmma
CONSUMER_REGISTERS = gl.constexpr(240)
PRODUCER_REGISTERS = gl.constexpr(24)
DEFAULT_WARPS = 4  # of the first consumer: warp_specialize adds those of the second and of the producer
copy_block = tma.async_load if hasattr(tma, "async_load") else tma.async_copy_global_to_shared  # its name before 3.9
row_parameters = gluon.jit(load_row_parameters.fn)


def block_layout(rows: int, config: Config, dtype) -> gl.NVMMASharedLayout:
    """Returns how a block of ``rows`` rows lies in shared memory."""
    return gl.NVMMASharedLayout.get_default_for([rows, config.block_d], TYPES[dtype])


def gluon_row_sweep(operands: Operands, config: Config, tau: Tensor, need_d_anchors: bool) -> tuple[Tensor, ...]:
    """Returns positive_score [B], partials [S, 4, B] and acc [S, B, D_PADDED], empty unless needed, as row_sweep.py."""
    a, b, empty = operands.anchors, operands.candidates, operands.empty
    (B, width), N = a.shape, len(b)
    row_blocks = triton.cdiv(B, config.block_m)
    splits = choose_splits(row_blocks, triton.cdiv(N, config.block_n), operands.processors)
    positive_score, partials = empty(B), empty(splits, 4, B)
    acc = empty(splits, B, width) if need_d_anchors else empty(0)
    rows = ROWS.value
    anchors, candidates = (
        TensorDescriptor.from_tensor(x, [size, config.block_d], block_layout(size, config, x.dtype))
        for x, size in ((a, rows), (b, config.block_n))
    )
    infonce_gluon_row_sweep_kernel[(row_blocks, splits)](
        anchors, candidates, tau, positive_score, partials, acc, B, N, NEED_D_ANCHORS=need_d_anchors,
        MAX_OFFSET=max_offset(a.dtype), D_PADDED=width, STAGES=config.num_stages, num_warps=DEFAULT_WARPS,
    )  # fmt: skip
    return positive_score, partials, acc


@gluon.jit
def _produce(anchors, candidates, a_buffer, ring, full, empty, first, diagonal, holds_diagonal, count):
    """Copies the anchors and the diagonal block, then the split's other blocks in order."""
    STAGES: gl.constexpr = ring.shape[0]
    BLOCK_N: gl.constexpr = ring.shape[1]
    block_bytes: gl.constexpr = BLOCK_N * ring.shape[2] * 2
    anchor_bytes: gl.constexpr = 2 * ROWS * ring.shape[2] * 2
    row_start = gl.program_id(0) * (2 * ROWS)
    mbarrier.expect(full.index(0), anchor_bytes + block_bytes)
    copy_block(anchors, [row_start, 0], full.index(0), a_buffer.index(0))
    copy_block(anchors, [row_start + ROWS, 0], full.index(0), a_buffer.index(1))
    copy_block(candidates, [diagonal * BLOCK_N, 0], full.index(0), ring.index(0))
    for i in range(1, count + 1):
        stage = i % STAGES
        block = first + i - 1
        block += (holds_diagonal & (block >= diagonal)).to(gl.int32)
        mbarrier.wait(empty.index(stage), ((i // STAGES) & 1) ^ 1)  # passes in the first round
        mbarrier.expect(full.index(stage), block_bytes)
        copy_block(candidates, [block * BLOCK_N, 0], full.index(stage), ring.index(stage))


@gluon.jit
def _online_softmax(s, m, l, max_negative, softmax_scale_log2, MAX_OFFSET: gl.constexpr):
    """Returns p of a block of scores and the new m, l, max_negative and alpha."""
    block_max = gl.max(s, 1)  # [ROWS]
    max_negative = gl.maximum(max_negative, block_max)
    m_new = gl.maximum(m, block_max * softmax_scale_log2 - MAX_OFFSET)
    alpha = gl.exp2(m - m_new)
    p = gl.exp2(gl.fma(s, gl.expand_dims(softmax_scale_log2, 1).broadcast_to(s.shape),
                       gl.expand_dims(-m_new, 1).broadcast_to(s.shape)))  # [ROWS, BLOCK_N]  # fmt: skip
    return p, m_new, l * alpha + gl.sum(p, 1), max_negative, alpha


@gluon.jit
def _stream(state, a, ring, full, empty, my_turn, other_turn, softmax_scale_log2, columns, limit, start, stop, count,
            WHO: gl.constexpr, MASKED: gl.constexpr, NEED_D_ANCHORS: gl.constexpr, MAX_OFFSET: gl.constexpr,
            S_LAYOUT: gl.constexpr, P_LAYOUT: gl.constexpr):  # fmt: skip
    """Does blocks ``start .. stop`` of ``count``. MASKED: of their ``columns``, only those below ``limit`` count."""
    m, l, max_negative, acc, p = state
    STAGES: gl.constexpr = ring.shape[0]
    BLOCK_N: gl.constexpr = ring.shape[1]
    zero = gl.zeros([ROWS, BLOCK_N], gl.float32, S_LAYOUT)  # not read
    for i in range(start, stop):
        stage = i % STAGES
        before = (i - 1) % STAGES
        mbarrier.wait(my_turn, (i & 1) ^ WHO)  # the first consumer's first turn is free
        s_group = warpgroup_mma(a, ring.index(stage).permute([1, 0]), zero, use_acc=False, is_async=True)
        if NEED_D_ANCHORS:
            acc_group = warpgroup_mma(p, ring.index(before), acc, is_async=True)
            mbarrier.arrive(other_turn)
            s = warpgroup_mma_wait(1, [s_group])
        else:
            mbarrier.arrive(other_turn)
            s = warpgroup_mma_wait(0, [s_group])
            mbarrier.arrive(empty.index(stage))
        if MASKED:
            s = gl.where(gl.expand_dims(columns < limit, 0), s, float("-inf"))
        p_block, m, l, max_negative, alpha = _online_softmax(s, m, l, max_negative, softmax_scale_log2, MAX_OFFSET)
        _wait_for_block(full, gl.minimum(i + 1, count), STAGES)
        if NEED_D_ANCHORS:
            acc = warpgroup_mma_wait(0, [acc_group])
            mbarrier.arrive(empty.index(before))
            acc *= gl.expand_dims(gl.convert_layout(alpha, gl.SliceLayout(1, acc.type.layout)), 1)
            p = gl.convert_layout(p_block.to(ring.dtype), P_LAYOUT)
    return m, l, max_negative, acc, p


@gluon.jit
def _wait_for_block(full, i, STAGES: gl.constexpr):
    mbarrier.wait(full.index(i % STAGES), (i // STAGES) & 1)


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
    rows = gl.program_id(0) * (2 * ROWS) + WHO * ROWS + gl.arange(0, ROWS, gl.SliceLayout(1, S_LAYOUT))
    column = gl.arange(0, BLOCK_N, gl.SliceLayout(0, S_LAYOUT))
    inside = rows < B
    _, softmax_scale, _ = row_parameters(tau_ptr, tau_ptr, rows, B, N, False)
    softmax_scale_log2 = (softmax_scale * LOG2_E).to(gl.float32)

    mbarrier.wait(full.index(0), 0)
    zero = gl.zeros([ROWS, BLOCK_N], gl.float32, S_LAYOUT)  # not read
    s_group = warpgroup_mma(a, ring.index(0).permute([1, 0]), zero, use_acc=False, is_async=True)
    s = warpgroup_mma_wait(0, [s_group])
    if not NEED_D_ANCHORS:
        mbarrier.arrive(empty.index(0))
    columns = diagonal * BLOCK_N + column
    is_positive = gl.expand_dims(rows, 1) == gl.expand_dims(columns, 0)  # [ROWS, BLOCK_N]
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
        acc = gl.zeros([ROWS, BLOCK_D], gl.float32, ACC_LAYOUT)
    state = (m, l, max_negative, acc, p)
    columns = (gl.cdiv(N, BLOCK_N) - 1) * BLOCK_N + column
    whole = count + 1 - ragged
    _wait_for_block(full, gl.minimum(1, count), ring.shape[0])
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
    anchors,  # descriptor of [B, D_PADDED] in blocks [ROWS, BLOCK_D]
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
    """Grid: (blocks of rows, splits of the columns). BLOCK_N is 2 ROWS, so that one block holds the positives."""
    BLOCK_N: gl.constexpr = candidates.block_shape[0]
    BLOCK_D: gl.constexpr = candidates.block_shape[1]
    gl.static_assert(BLOCK_N == 2 * ROWS)
    a_buffer = gl.allocate_shared_memory(anchors.dtype, [2, ROWS, BLOCK_D], anchors.layout)
    ring = gl.allocate_shared_memory(candidates.dtype, [STAGES, BLOCK_N, BLOCK_D], candidates.layout)
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    # Two allocations: a wait for one and an arrival at the other then need no barrier between them.
    turn_0 = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    turn_1 = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    for stage in gl.static_range(STAGES):
        mbarrier.init(full.index(stage), count=1)
        mbarrier.init(empty.index(stage), count=2)
    mbarrier.init(turn_0, count=1)
    mbarrier.init(turn_1, count=1)
    fence_async_shared()  # TMA sees them initialised

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
            (_produce, (anchors, candidates, a_buffer, ring, full, empty, first, diagonal, holds_diagonal, count)),
        ],
        [4, 1],
        [CONSUMER_REGISTERS, PRODUCER_REGISTERS],
    )  # fmt: skip
