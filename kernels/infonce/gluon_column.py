"""The column sweep for Hopper GPUs, in Gluon. It computes what column_sweep.py does where row r's positive is column r.

The package's docstring defines shapes and names, gluon_pipeline.py the threads and the order of what they do.
ADAFTR_FAST_INFONCE_SWEEPS=gluon chooses it (config.py), and it is not the default, because no GPU has run it yet.

A program owns two tiles of OWNED columns and streams blocks of 2 OWNED rows. Beside a block of anchors, TMA copies the
TERMS of its rows. Beyond the last row it brings zeros: p is then finite and its anchor zero, so that nothing masks a
ragged block. The split that holds the positives of a program's columns starts acc with their terms.

With FOLDED, the weights of all blocks but the first are in the exponent where every row admits it, as in
column_sweep.py; a second loop serves the other cases.

Shared memory: at BLOCK_D = 128, 32 KiB of candidates and four stages of 32 KiB of anchors and 2 KiB of terms.
"""

from adaftr_fast.kernels.infonce.column_sweep import TERMS
from adaftr_fast.kernels.infonce.config import Config, folds_scale
from adaftr_fast.kernels.infonce.gluon_pipeline import (
    CONSUMER_REGISTERS,
    DEFAULT_WARPS,
    OWNED,
    PRODUCER_REGISTERS,
    allocate_barriers,
    describe,
    descriptors,
    first_scores,
    issue,
    produce,
    wait_for_block,
)
from adaftr_fast.kernels.infonce.launch import Operands
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, warpgroup_mma, warpgroup_mma_wait


def gluon_column_sweep(operands: Operands, config: Config, row_terms: Tensor, scales: Tensor) -> Tensor:
    """Returns the splits' shares of d_candidates [S, N, d], as column_sweep.py."""
    a, b, d = operands.anchors, operands.candidates, operands.products.d
    B, N = len(a), len(b)
    column_blocks, splits, _ = operands.products.grid(config, divide_width=False, owns_columns=True)
    d_candidates = operands.empty(splits, N, d)
    terms = row_terms.view(-1)[: B * TERMS.value].view(B, TERMS.value)
    candidates, anchors = descriptors(b, a, config)
    infonce_gluon_column_sweep_kernel[(column_blocks, splits)](
        anchors, candidates, describe(terms, config.block_m, TERMS.value), row_terms, scales, d_candidates, B, N,
        FOLDED=folds_scale(a.dtype, config), D=d, STAGES=config.num_stages, num_warps=DEFAULT_WARPS,
    )  # fmt: skip
    return d_candidates


@gluon.jit
def _load_terms(terms, S_LAYOUT: gl.constexpr):
    """Returns softmax_scale_log2, shift, negative_scale and m of a block's rows, as its scores lie.

    A thread loads the four of each of its rows, which lie side by side.
    """
    BLOCK_M: gl.constexpr = terms.shape[0]
    layout: gl.constexpr = gl.DistributedLinearLayout(
        [[0, 1], [0, 2], [1, 0], [8, 0], [16, 0], [32, 0], [64, 0]],
        [[2, 0], [4, 0], [0, 0], [0, 0], [0, 0]],
        [[0, 0], [0, 0]],
        [],
        [BLOCK_M, 4],
    )
    even, odd = gl.split(gl.reshape(terms.load(layout), [BLOCK_M, 2, 2]))
    softmax_scale_log2, negative_scale = gl.split(even)
    shift, m = gl.split(odd)
    ROW: gl.constexpr = gl.SliceLayout(0, S_LAYOUT)
    return (
        gl.convert_layout(softmax_scale_log2, ROW),
        gl.convert_layout(shift, ROW),
        gl.convert_layout(negative_scale, ROW),
        gl.convert_layout(m, ROW),
    )


@gluon.jit
def _probabilities(s, terms, inverse_descale, FOLDED: gl.constexpr):
    """Returns p of a block of scores, divided by descale."""
    softmax_scale_log2, shift, negative_scale, m = terms
    addend = shift if FOLDED else -m
    p = gl.exp2(gl.fma(s, gl.expand_dims(softmax_scale_log2, 0).broadcast_to(s.shape),
                       gl.expand_dims(addend, 0).broadcast_to(s.shape)))  # [OWNED, BLOCK_M]  # fmt: skip
    if not FOLDED:
        p *= gl.expand_dims(negative_scale * inverse_descale, 0)
    return p


@gluon.jit
def _stream(state, b, ring, term_ring, full, empty, my_turn, other_turn, inverse_descale, stop, count,
            WHO: gl.constexpr, FOLDED: gl.constexpr, S_LAYOUT: gl.constexpr, P_LAYOUT: gl.constexpr):  # fmt: skip
    """Does the blocks from the second to ``stop``, of ``count``."""
    acc, p = state
    STAGES: gl.constexpr = ring.shape[0]
    for i in range(1, stop):
        s_group, acc_group = issue(b, ring, p, acc, i, my_turn, other_turn, WHO, S_LAYOUT)
        s = warpgroup_mma_wait(1, [s_group])
        terms = _load_terms(term_ring.index(i % STAGES), S_LAYOUT)
        p_block = _probabilities(s, terms, inverse_descale, FOLDED)
        wait_for_block(full, gl.minimum(i + 1, count - 1))
        acc = warpgroup_mma_wait(0, [acc_group])
        mbarrier.arrive(empty.index((i - 1) % STAGES))
        p = gl.convert_layout(p_block.to(ring.dtype), P_LAYOUT)
    return acc, p


@gluon.jit
def _consume(row_terms_ptr, scales_ptr, d_candidates_ptr, B, N, b, ring, term_ring, full, empty, my_turn, other_turn,
             holds_diagonal, opening, count, WHO: gl.constexpr, FOLDED: gl.constexpr, D: gl.constexpr):  # fmt: skip
    """Sweeps the rows for one tile of columns, and stores what it finds."""
    BLOCK_M: gl.constexpr = ring.shape[1]
    BLOCK_D: gl.constexpr = ring.shape[2]
    S_LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_M, 16])
    ACC_LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_D, 16])
    P_LAYOUT: gl.constexpr = gl.DotOperandLayout(0, ACC_LAYOUT, 2)  # as the scores lie: no register moves
    column_start = gl.program_id(0) * (2 * OWNED) + WHO * OWNED
    descale = gl.load(scales_ptr)
    fold = 0
    if FOLDED:
        fold = (gl.load(scales_ptr + 1) == 0).to(gl.int32)
        descale = gl.where(fold > 0, 1.0, descale)
    inverse_descale = gl.where(descale > 0, 1.0 / descale, 0.0)

    s = first_scores(b, ring, full, S_LAYOUT)
    p = _probabilities(s, _load_terms(term_ring.index(0), S_LAYOUT), inverse_descale, False)
    columns = column_start + gl.arange(0, OWNED, gl.SliceLayout(1, S_LAYOUT))
    rows = opening * BLOCK_M + gl.arange(0, BLOCK_M, gl.SliceLayout(0, S_LAYOUT))
    p = gl.where(gl.expand_dims(rows, 0) == gl.expand_dims(columns, 1), 0.0, p)  # acc starts with the positive's term
    p = gl.convert_layout(p.to(ring.dtype), P_LAYOUT)
    columns = column_start + gl.arange(0, OWNED, gl.SliceLayout(1, ACC_LAYOUT))
    limit = gl.where(holds_diagonal, B, 0)
    positive_scale = gl.load(row_terms_ptr + 4 * B + columns, mask=columns < limit, other=0.0) * inverse_descale
    a = ring.index(0).slice(WHO * OWNED, OWNED).load(ACC_LAYOUT).to(gl.float32)
    acc = gl.where(holds_diagonal, gl.expand_dims(positive_scale, 1) * a, 0.0)  # [OWNED, BLOCK_D]
    wait_for_block(full, gl.minimum(1, count - 1))
    state = (acc, p)
    if FOLDED:
        state = _stream(state, b, ring, term_ring, full, empty, my_turn, other_turn, inverse_descale,
                        gl.where(fold > 0, count, 1), count, WHO, True, S_LAYOUT, P_LAYOUT)  # fmt: skip
    state = _stream(state, b, ring, term_ring, full, empty, my_turn, other_turn, inverse_descale,
                    gl.where(fold > 0, 1, count), count, WHO, False, S_LAYOUT, P_LAYOUT)  # fmt: skip
    acc, p = state
    acc_group = warpgroup_mma(p, ring.index((count - 1) % ring.shape[0]), acc, is_async=True)
    acc = warpgroup_mma_wait(0, [acc_group]) * descale
    width = gl.arange(0, BLOCK_D, gl.SliceLayout(0, ACC_LAYOUT))
    offset = gl.expand_dims(gl.program_id(1).to(gl.int64) * N + columns, 1) * D + gl.expand_dims(width, 0)
    gl.store(d_candidates_ptr + offset, acc, mask=gl.expand_dims(columns < N, 1) & gl.expand_dims(width < D, 0))


@gluon.jit(do_not_specialize=["B", "N"])
def infonce_gluon_column_sweep_kernel(
    anchors,  # descriptor of [B, D_PADDED] in blocks [2 OWNED, BLOCK_D]
    candidates,  # descriptor of [N, D_PADDED] in blocks [OWNED, BLOCK_D]
    terms,  # descriptor of the first [B, TERMS] of row_terms in blocks [2 OWNED, TERMS]
    row_terms_ptr,  # see column_sweep.py, with what follows
    scales_ptr,  # [2]
    d_candidates_ptr,  # [S, N, d] out
    B,
    N,
    FOLDED: gl.constexpr,
    D: gl.constexpr,
    STAGES: gl.constexpr,
):
    """Grid: (blocks of columns, splits of the rows)."""
    BLOCK_M: gl.constexpr = anchors.block_shape[0]
    BLOCK_D: gl.constexpr = anchors.block_shape[1]
    gl.static_assert(BLOCK_M == 2 * OWNED)
    b_buffer = gl.allocate_shared_memory(candidates.dtype, [2, OWNED, BLOCK_D], candidates.layout)
    ring = gl.allocate_shared_memory(anchors.dtype, [STAGES, BLOCK_M, BLOCK_D], anchors.layout)
    term_ring = gl.allocate_shared_memory(terms.dtype, [STAGES, BLOCK_M, TERMS], terms.layout)
    full, empty, turn_0, turn_1 = allocate_barriers(STAGES)
    blocks = gl.cdiv(B, BLOCK_M)
    first = (gl.program_id(1) * blocks) // gl.num_programs(1)
    last = ((gl.program_id(1) + 1) * blocks) // gl.num_programs(1)
    diagonal = gl.program_id(0)
    holds_diagonal = (first <= diagonal) & (diagonal < last)
    opening = gl.where(holds_diagonal, diagonal, first)
    count = last - first
    gl.warp_specialize(
        [
            (_consume, (row_terms_ptr, scales_ptr, d_candidates_ptr, B, N, b_buffer.index(0), ring, term_ring, full,
                        empty, turn_0, turn_1, holds_diagonal, opening, count, gl.constexpr(0), FOLDED, D)),
            (_consume, (row_terms_ptr, scales_ptr, d_candidates_ptr, B, N, b_buffer.index(1), ring, term_ring, full,
                        empty, turn_1, turn_0, holds_diagonal, opening, count, gl.constexpr(1), FOLDED, D)),
            (produce, (candidates, b_buffer, ((anchors, ring), (terms, term_ring)), full, empty, opening, first, True,
                       count - 1)),
        ],
        [4, 1],
        [CONSUMER_REGISTERS, PRODUCER_REGISTERS],
    )  # fmt: skip
