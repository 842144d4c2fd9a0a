"""The host side of the sigmoid loss: prepares operands and launches its sweep once for each side.

sigmoid_sweep.py gives the algebra. Products are formed as for InfoNCE (launch.py): float64 accumulates in float64, the
other types in float32, and float32 products are IEEE or TF32.
"""

from functools import lru_cache

import torch
from adaftr_fast.kernels.infonce.config import choose_tiling
from adaftr_fast.kernels.infonce.launch import (
    Launch,
    Operands,
    Products,
    accumulation_dtype,
    aligned,
    join,
    on_gpu,
    prepare_operands,
    vector,
)
from adaftr_fast.kernels.infonce.sigmoid_sweep import sigmoid_sweep_kernel
from torch import Tensor


def sigmoid_contrast(
    anchors: Tensor,  # [B, d]
    candidates: Tensor,  # [N, d]
    logit_scale: Tensor,  # []
    logit_bias: Tensor,  # []
    positive: Tensor | None,  # [B] int64, default arange(B); -100: the row has no positive
    need_d_anchors: bool,
    need_d_candidates: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Computes the five outputs of ``torch.ops.adaftr_fast.sigmoid_contrast``, on CUDA or under TRITON_INTERPRET=1.

    Returns loss [], d_anchors [B, d], d_candidates [N, d], d_logit_scale [] and d_logit_bias [] in the accumulation
    type; empty where not needed. There are a row and a candidate at least. A scale that is not positive and finite, a
    bias that is not finite and a positive out of range yield NaN, because nothing is read back to check.

    Raises:
        ValueError: the tensors are not on CUDA and kernels are not interpreted, or the GPU is older than compute
            capability 8.0.
    """
    with on_gpu(anchors):
        acc_dtype = accumulation_dtype(anchors.dtype)
        scale, bias = (aligned(x.to(anchors.device), acc_dtype) for x in (logit_scale, logit_bias))
        terms = {"positive_ptr": vector(positive), "logit_scale_ptr": scale, "logit_bias_ptr": bias}
        operands = prepare_operands(anchors, candidates, scale)
        sums, d_anchors = _sweep(operands, terms, owns_rows=True, need_gradient=need_d_anchors)
        d_candidates = operands.empty(0)
        if need_d_candidates:
            _, d_candidates = _sweep(operands, terms, owns_rows=False, need_gradient=True)
        # Three sums of B x S terms, which may cancel.
        loss, d_scale, d_bias = sums.sum((0, 2), dtype=torch.float64).to(acc_dtype).unbind()
    return loss.clone(), d_anchors, d_candidates, d_scale.clone(), d_bias.clone()


@lru_cache(maxsize=4096)
def _launch(products: Products, owns_rows: bool, has_positive: bool, need_gradient: bool) -> Launch:
    tiling = choose_tiling(products.kind, products.width, products.capability)
    config = tiling.sigmoid_rows if owns_rows else tiling.sigmoid_columns
    options = {"OWNS_ROWS": owns_rows, "HAS_POSITIVE": has_positive, "NEED_GRADIENT": need_gradient}
    grid = products.grid(config, need_gradient, owns_columns=not owns_rows)
    return products.launch(sigmoid_sweep_kernel, config, grid, options)


def _sweep(
    operands: Operands, terms: dict[str, Tensor | None], owns_rows: bool, need_gradient: bool
) -> tuple[Tensor, Tensor]:
    """Sweeps one side; returns the rows' sums [S, 3, B], empty for columns, and the gradient of the side."""
    launch = _launch(operands.products, owns_rows, terms["positive_ptr"] is not None, need_gradient)
    arguments = terms | operands.sides(int(not owns_rows))
    splits, owned, streamed = launch.grid[1], len(arguments["x_ptr"]), len(arguments["y_ptr"])
    arguments |= {
        "sums_ptr": operands.empty(splits, 3, owned) if owns_rows else operands.empty(0),
        "d_x_ptr": operands.empty(splits, owned, operands.products.d) if need_gradient else operands.empty(0),
        "X": owned,
        "Y": streamed,
    }
    launch.run(arguments)
    d_x = arguments["d_x_ptr"]
    return arguments["sums_ptr"], join(d_x) if need_gradient else d_x
