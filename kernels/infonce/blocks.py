"""InfoNCE within blocks of k consecutive rows: one kernel, which forms the loss, statistics and gradients at once.

The package's docstring defines shapes and names. A program owns a tile of whole blocks and has all candidates of its
rows, so it forms the scores of the tile with itself, masked to the blocks, and keeps them in registers:

    P_rj           = 2^((s_rj - m_r) softmax_scale_log2_r) / l_r
    d_anchors_r    = grad_scale_r sum_j P_rj b_j
    d_candidates_j = unit_j sum_r (grad_scale_r / unit_r) P_rj a_r

m is the row's largest score, and l the sum over the positive too. P holds -l_negative / l at the positive. unit is the
largest |grad_scale| of a block. It keeps the weights in the range of the half types, to which they are rounded for the
products, multiplied by 2^MAX_OFFSET. Products with the rows of other blocks have weights of 0, where a number that is
not finite would give NaN. It counts as 0 in the products, and the gradients of its own block are set to NaN.

A tile has 32 rows for every type: 64 x 64 spill on sm_80 in half types with 4 warps. IEEE float32 and float64 take 8
warps: 32 x 32 spill on sm_90 in IEEE float32 with 4.
"""

# ruff: noqa: E741
# l is the sum, as in FlashAttention.

from functools import lru_cache

import triton
import triton.language as tl
from adaftr_fast.kernels.infonce.config import Config, cdiv, fit
from adaftr_fast.kernels.infonce.launch import (
    Launch,
    Products,
    accumulation_dtype,
    new_outputs,
    on_gpu,
    prepare_operands,
    vector,
)
from adaftr_fast.kernels.infonce.tiles import LN_2, LOG2_E, load_block, load_row_parameters, log1p, scores
from torch import Tensor

TILE = 32  # rows


def serves_blocks(anchors: Tensor, block: int) -> bool:
    """Returns whether a tile holds a block."""
    return min(block, len(anchors)) <= TILE


def infonce_blocks(
    anchors: Tensor,  # [B, d]
    candidates: Tensor,  # [B, d]
    tau: Tensor,  # [B]
    scale: Tensor,  # [B]
    block: int,
    ieee: bool = False,
    **needs: bool,  # need_d_anchors, need_d_candidates, need_d_tau and need_stats
) -> tuple[Tensor, ...]:
    """Computes the outputs of the op, on CUDA or under TRITON_INTERPRET=1; see ``serves_blocks``.

    A tau that is not positive and finite yields NaN in its block, because nothing is read back to check. With ``ieee``,
    float32 products are IEEE whatever the settings.
    """
    with on_gpu(anchors):
        tau = vector(tau, accumulation_dtype(anchors.dtype))
        operands = prepare_operands(anchors, candidates, tau, ieee=ieee)
        outputs = new_outputs(operands, **needs)
        block = min(block, len(anchors))
        arguments = {
            **operands.arguments(),
            **outputs,
            "tau_ptr": tau,
            "scale_ptr": vector(scale, tau.dtype),
            "block": block,
            "rows_of_tile": TILE // block * block,
        }
        _launch(operands.products, block, **needs).run(arguments)
        return (outputs["loss_ptr"] * scale).sum(), *outputs.values()


@lru_cache(maxsize=4096)
def _launch(products: Products, block: int, **needs: bool) -> Launch:
    options = {need.upper(): needed for need, needed in needs.items()}
    config = block_config(products.kind, products.width)
    grid = cdiv(products.rows, TILE // block * block), 1, 1
    return products.launch(infonce_blocks_kernel, config, grid, options)


def block_config(kind: str, width: int) -> Config:
    """Returns the blocks: a tile of rows with itself, in slices of the width."""
    on_vector_units = kind in ("ieee", "float64")
    block_d, block_k, num_warps = (32, 16, 8) if on_vector_units else (64, 64, 4)
    return fit(Config(TILE, TILE, block_d, block_k, num_warps, 2), width)


@triton.jit
def _finite(x):
    return tl.where(tl.abs(x) < float("inf"), x, 0.0)


@triton.jit
def _spoiled(d, x, is_own):
    """d with NaN in the rows whose block has a number in x that is not finite."""
    is_bad = tl.max(tl.where(tl.abs(x) < float("inf"), 0.0, 1.0), 1)
    is_bad = tl.max(tl.where(is_own, is_bad[None, :], 0.0), 1)
    return tl.where(is_bad[:, None] > 0, float("nan"), d)


@triton.jit(do_not_specialize=["B", "block", "rows_of_tile"])
def infonce_blocks_kernel(
    anchors_ptr,  # [B, D_PADDED]
    candidates_ptr,  # [B, D_PADDED]
    tau_ptr,  # [B]
    scale_ptr,  # [B]
    loss_ptr,  # [B] out
    lse_ptr,  # [B] out
    positive_logit_ptr,  # [B] out
    top1_ptr,  # [B] out
    entropy_ptr,  # [B] out
    d_anchors_ptr,  # [B, D] out
    d_candidates_ptr,  # [B, D] out
    d_tau_ptr,  # [B] out
    B,
    block,  # k
    rows_of_tile,  # a multiple of k up to BLOCK_M
    anchors_stride,
    candidates_stride,
    NEED_D_ANCHORS: tl.constexpr,
    NEED_D_CANDIDATES: tl.constexpr,
    NEED_D_TAU: tl.constexpr,
    NEED_STATS: tl.constexpr,
    META: tl.constexpr,
):
    """Grid: (tiles,). BLOCK_M and BLOCK_N are TILE."""
    local = tl.arange(0, META.BLOCK_M)
    rows = tl.program_id(0) * rows_of_tile + local  # [BLOCK_M]
    inside = (local < rows_of_tile) & (rows < B)
    a_desc = (anchors_ptr, anchors_stride, B)
    b_desc = (candidates_ptr, candidates_stride, B)
    s = scores(rows, a_desc, rows, rows, b_desc, rows, META.BLOCK_K, META)  # [BLOCK_M, BLOCK_M]
    is_own = (local // block)[:, None] == (local // block)[None, :]  # the column is in the block of the row
    is_own = is_own & inside[:, None] & inside[None, :]
    is_positive = local[:, None] == local[None, :]
    positive_score = tl.sum(tl.where(is_positive, s, 0.0), 1)
    negative_score = tl.where(is_own & (local[:, None] != local[None, :]), s, float("-inf"))
    max_negative = tl.max(negative_score, 1)
    m = tl.maximum(max_negative, positive_score)

    _, softmax_scale, _ = load_row_parameters(tau_ptr, tau_ptr, rows, B, B, False)
    softmax_scale_log2 = (softmax_scale * LOG2_E).to(META.ACC_DTYPE)
    z = (negative_score - m[:, None]) * softmax_scale_log2[:, None]
    p = tl.exp2(z)
    l_negative = tl.sum(p, 1)

    # A row takes few of these operations, so they are in float64.
    negatives = l_negative.to(tl.float64)
    gap = (m - positive_score).to(tl.float64) * softmax_scale  # in natural units
    at_positive = tl.exp2(-gap * LOG2_E)
    l = negatives + at_positive
    positive_wins = max_negative <= positive_score  # not where it is NaN
    log_l = log1p(tl.where(positive_wins, negatives, negatives - 1.0 + at_positive))
    loss = gap + log_l
    tl.store(loss_ptr + rows, loss.to(META.ACC_DTYPE), mask=inside)
    tl.store(lse_ptr + rows, (m * softmax_scale + log_l).to(META.ACC_DTYPE), mask=inside)
    tl.store(positive_logit_ptr + rows, (positive_score * softmax_scale).to(META.ACC_DTYPE), mask=inside)
    scale = tl.load(scale_ptr + rows, mask=inside, other=0.0)
    grad_scale = tl.where(scale == 0, 0.0, scale * softmax_scale)
    if NEED_STATS or NEED_D_TAU:
        sum_pz = tl.sum(tl.where(p == 0, 0.0, p * z), 1).to(tl.float64)
        sum_margin = LN_2 * sum_pz + gap * negatives  # of 2^(z - m) (z - z_positive), in natural units
        if NEED_STATS:
            tl.store(top1_ptr + rows, (max_negative < positive_score) & (negatives == negatives), mask=inside)
            tl.store(entropy_ptr + rows, (loss - sum_margin / l).to(META.ACC_DTYPE), mask=inside)
        if NEED_D_TAU:
            d_tau = tl.where(grad_scale == 0, 0.0, -grad_scale * sum_margin / l)
            tl.store(d_tau_ptr + rows, d_tau.to(META.ACC_DTYPE), mask=inside)

    if NEED_D_ANCHORS or NEED_D_CANDIDATES:
        p = tl.where(is_positive, -l_negative[:, None], p) * (2.0**META.MAX_OFFSET / l).to(META.ACC_DTYPE)[:, None]
        size = tl.abs(grad_scale)
        size = tl.where(size < float("inf"), size, 0.0)
        unit = tl.max(tl.where(is_own, size[None, :], 0.0), 1)  # [BLOCK_M], equal in a block
        ratio = grad_scale / tl.where(unit > 0, unit, 1.0)
        w = tl.where(is_own & (grad_scale != 0)[:, None], p * ratio.to(META.ACC_DTYPE)[:, None], 0.0)
        p = tl.where(is_own & (grad_scale != 0)[:, None], p, 0.0)
        grad_scale = (grad_scale * 2.0**-META.MAX_OFFSET).to(META.ACC_DTYPE)
        unit = (unit * 2.0**-META.MAX_OFFSET).to(META.ACC_DTYPE)
        for start in range(0, META.D_PADDED, META.BLOCK_D):
            width = start + tl.arange(0, META.BLOCK_D)  # [BLOCK_D]
            offset = rows.to(tl.int64)[:, None] * META.D + width[None, :]
            mask = inside[:, None] & (width < META.D)[None, :]
            if NEED_D_ANCHORS:
                b = load_block(b_desc, rows, start, META.D_PADDED, META.BLOCK_D)
                d_anchors = tl.dot(p.to(b.dtype).to(META.OPERAND_DTYPE), _finite(b).to(META.OPERAND_DTYPE),
                                   input_precision=META.INPUT_PRECISION, out_dtype=META.ACC_DTYPE)  # fmt: skip
                tl.store(d_anchors_ptr + offset, grad_scale[:, None] * _spoiled(d_anchors, b, is_own), mask=mask)
            if NEED_D_CANDIDATES:
                a = load_block(a_desc, rows, start, META.D_PADDED, META.BLOCK_D)
                d_candidates = tl.dot(tl.trans(w.to(a.dtype).to(META.OPERAND_DTYPE)), _finite(a).to(META.OPERAND_DTYPE),
                                      input_precision=META.INPUT_PRECISION, out_dtype=META.ACC_DTYPE)  # fmt: skip
                tl.store(d_candidates_ptr + offset, unit[:, None] * _spoiled(d_candidates, a, is_own), mask=mask)
