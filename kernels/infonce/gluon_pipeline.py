"""What the two sweeps in Gluon share: their threads, their barriers and the order of their products.

The package's docstring defines shapes and names. A program owns two tiles of OWNED rows and streams blocks of 2 OWNED
columns, or the other way round. Two warpgroups of four warps consume, each for one tile, and one warp produces: it
copies blocks by TMA into a ring of STAGES stages in shared memory. They meet at mbarriers, and no barrier of all warps
is in a loop, only barriers of a consumer's four:

    full[stage]      the block has arrived: one arrival, and its bytes
    empty[stage]     both consumers have read the block
    turn             one for each consumer: the other one has issued its products

Order. One block of 2 OWNED, the diagonal one, holds the positives of all that a program owns. It comes first, so that
no loop masks positives; the split's other blocks follow in order. With x the owned tile and y_i block i, a consumer
does for each block after the first:

    wait for its turn
    issue s = x y_i^T, issue acc += p y_{i-1}, give the turn to the other consumer
    wait until one product is outstanding       s is complete
    p from s                                    exponentials of block i during the product of block i - 1
    wait for block i + 1, then until no product is outstanding
    release block i - 1, round p

The last p meets its block after the loop. The turns keep the consumers apart: the products of one run during the
exponentials of the other. The wait for block i + 1 comes before the wait for the product because its loop is an edge
that ptxas moves no exponential across; without it, ptxas moves the wait to their front.

Registers: a program starts with 168 a thread for its twelve warps; setmaxnreg gives consumers 240, of which s, acc and
p take 160 at BLOCK_D = 128, and leaves the producer's warpgroup 24.
"""

import math

from adaftr_fast.kernels.infonce.config import TYPES, Config
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

OWNED = gl.constexpr(64)  # rows or columns of a consumer: those of one wgmma
CONSUMER_REGISTERS = gl.constexpr(240)
PRODUCER_REGISTERS = gl.constexpr(24)
DEFAULT_WARPS = 4  # of the first consumer: warp_specialize adds those of the second and of the producer
copy_block = tma.async_load if hasattr(tma, "async_load") else tma.async_copy_global_to_shared  # its name before 3.9


def block_layout(rows: int, width: int, dtype) -> gl.NVMMASharedLayout:
    """Returns how a block of ``rows`` rows lies in shared memory."""
    return gl.NVMMASharedLayout.get_default_for([rows, width], TYPES[dtype])


def descriptors(owned: Tensor, streamed: Tensor, config: Config) -> list[TensorDescriptor]:
    """Returns how TMA finds the blocks of both operands."""
    sizes = (owned, OWNED.value), (streamed, 2 * OWNED.value)
    return [describe(x, rows, config.block_d) for x, rows in sizes]


def describe(x: Tensor, rows: int, width: int) -> TensorDescriptor:
    """Returns how TMA finds blocks of ``rows`` rows; beyond the last row and the last column it brings zeros."""
    return TensorDescriptor.from_tensor(x, [rows, width], block_layout(rows, width, x.dtype))


@gluon.constexpr_function
def _bytes(buffer) -> int:
    return math.prod(buffer.shape) * buffer.dtype.primitive_bitwidth // 8


@gluon.constexpr_function
def _stage_bytes(streams) -> int:
    return sum(_bytes(ring) // ring.shape[0] for _, ring in streams)


@gluon.jit
def allocate_barriers(STAGES: gl.constexpr):
    """Returns full, empty and the turns of both consumers, initialised."""
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    # Before one thread of a consumer gives the turn away, all of them must have passed the wait for their own: the turn
    # after the next has the same parity, and a late warp would wait for ever. Triton inserts the barrier of the 128
    # threads before an arrival, and the compile gate requires it (benchmarks/infonce/compile/pipeline.py).
    turn_0 = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    turn_1 = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    for stage in gl.static_range(STAGES):
        mbarrier.init(full.index(stage), count=1)
        mbarrier.init(empty.index(stage), count=2)
    mbarrier.init(turn_0, count=1)
    mbarrier.init(turn_1, count=1)
    fence_async_shared()  # TMA sees them initialised
    return full, empty, turn_0, turn_1


@gluon.jit
def produce(owned, owned_buffer, streams, full, empty, opening, first, skips, count):
    """Copies the owned tiles and the block ``opening``, then ``count`` blocks from ``first`` on, without ``opening``.

    ``streams`` holds pairs of a descriptor and its ring. ``skips``: ``opening`` is among the blocks from ``first`` on.
    """
    STAGES: gl.constexpr = full.shape[0]
    block_bytes: gl.constexpr = _stage_bytes(streams)
    start = gl.program_id(0) * (2 * OWNED)
    mbarrier.expect(full.index(0), _bytes(owned_buffer) + block_bytes)
    copy_block(owned, [start, 0], full.index(0), owned_buffer.index(0))
    copy_block(owned, [start + OWNED, 0], full.index(0), owned_buffer.index(1))
    _copy(streams, opening, full, 0)
    for i in range(1, count + 1):
        stage = i % STAGES
        block = first + i - 1
        block += (skips & (block >= opening)).to(gl.int32)
        mbarrier.wait(empty.index(stage), ((i // STAGES) & 1) ^ 1)  # passes in the first round
        mbarrier.expect(full.index(stage), block_bytes)
        _copy(streams, block, full, stage)


@gluon.jit
def _copy(streams, block, full, stage):
    for j in gl.static_range(len(streams)):
        source, ring = streams[j]
        copy_block(source, [block * ring.shape[1], 0], full.index(stage), ring.index(stage))


@gluon.jit
def wait_for_block(full, i):
    STAGES: gl.constexpr = full.shape[0]
    mbarrier.wait(full.index(i % STAGES), (i // STAGES) & 1)


@gluon.jit
def first_scores(x, ring, full, S_LAYOUT: gl.constexpr):
    """Waits for the owned tile ``x`` and the first block, and returns their scores."""
    mbarrier.wait(full.index(0), 0)
    s_group = issue_scores(x, ring.index(0), S_LAYOUT)
    return warpgroup_mma_wait(0, [s_group])


@gluon.jit
def issue(x, ring, p, acc, i, my_turn, other_turn, WHO: gl.constexpr, S_LAYOUT: gl.constexpr):
    """In its turn, issues the scores of block ``i`` and the product of p and the block before; gives the turn away."""
    STAGES: gl.constexpr = ring.shape[0]
    mbarrier.wait(my_turn, (i & 1) ^ WHO)  # the first consumer's first turn is free
    s_group = issue_scores(x, ring.index(i % STAGES), S_LAYOUT)
    acc_group = warpgroup_mma(p, ring.index((i - 1) % STAGES), acc, is_async=True)
    mbarrier.arrive(other_turn)
    return s_group, acc_group


@gluon.jit
def issue_scores(x, block, S_LAYOUT: gl.constexpr):
    BLOCK: gl.constexpr = block.shape[0]
    zero = gl.zeros([OWNED, BLOCK], gl.float32, S_LAYOUT)  # not read
    return warpgroup_mma(x, block.permute([1, 0]), zero, use_acc=False, is_async=True)
