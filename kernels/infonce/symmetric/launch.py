"""The host side of the symmetric loss: prepares its inputs and launches the kernels.

They take half types, whose products accumulate in float32.
"""

from functools import lru_cache
from typing import Any, NamedTuple

import torch
from adaftr_fast.kernels.infonce.config import TYPES, Config, cdiv, choose_tiling, max_offset, meta_of, product_kind
from adaftr_fast.kernels.infonce.launch import Launch, Operands, Products, join, on_gpu, prepare_operands, vector
from adaftr_fast.kernels.infonce.symmetric.combine import TERMS, infonce_symmetric_combine_kernel
from adaftr_fast.kernels.infonce.symmetric.gradient import infonce_symmetric_gradient_kernel
from adaftr_fast.kernels.infonce.symmetric.sums import (
    infonce_symmetric_positives_kernel,
    infonce_symmetric_sums_kernel,
)
from torch import Tensor

POSITIVES_BLOCK = 64  # rows of a program that forms positives: the least that half types need, and 64 / B of a product
COMBINE_BLOCK = 64
MOST_WIDTH = 256  # beyond, a sweep takes the width in slices, each of which forms the scores again
MOST_ROWS = 131_072  # the columns' partials (sums.py) take B^2 / 16 bytes, and B^2 / 8 beyond d = 128


def has_common(sweep: str, config: Config, grouped: bool) -> bool:
    """Whether a sweep, "sums" or "gradient", has a loop of one exponential a pair (sums.py).

    Gradient sweeps not beyond 128, where they spill under Triton 3.9.
    """
    return not grouped and (sweep == "sums" or config.block_d <= 128)


def infonce_symmetric(
    anchors: Tensor,  # [B, d]
    candidates: Tensor,  # [B, d]
    tau_row: Tensor,  # [B]
    tau_column: Tensor,  # [B]
    row_group: Tensor | None,  # [B] int64
    column_group: Tensor | None,  # [B] int64
    scale: Tensor,  # [B]
    need_d_anchors: bool,
    need_d_candidates: bool,
    need_d_tau_row: bool,
    need_d_tau_column: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Computes InfoNCE averaged over both directions, on CUDA or under TRITON_INTERPRET=1.

    ``serves_symmetric`` says for which inputs. Row r's positive is column r, and the reverse. With L_r and L'_r the
    losses of row r and column r,

        loss = sum_r scale_r row_loss_r        row_loss_r = (L_r + L'_r) / 2

    Returns loss [], row_loss [B], d_anchors [B, d], d_candidates [B, d], d_tau_row [B] and d_tau_column [B] in the
    accumulation type; gradients are empty where not needed. A tau that is not positive and finite yields NaN in its
    row's loss and in the gradients, because nothing is read back to check.

    Raises:
        ValueError: the tensors are not on CUDA and kernels are not interpreted, or the GPU is older
            than compute capability 8.0.
    """
    with on_gpu(anchors):
        tau_row, tau_column, scale = (vector(x, torch.float32) for x in (tau_row, tau_column, scale))
        operands = prepare_operands(anchors, candidates, tau_row)
        B, empty = anchors.shape[0], operands.empty
        grouped = row_group is not None
        plan = _plan(operands.products, grouped, need_d_anchors, need_d_candidates, need_d_tau_row, need_d_tau_column)
        arguments = operands.arguments() | {
            "tau_row_ptr": tau_row,
            "tau_column_ptr": tau_column,
            "scale_ptr": scale,
            "row_group_ptr": vector(row_group),
            "column_group_ptr": vector(column_group),
            "positive_score_ptr": empty(B),
            "scales_ptr": empty(2, B),  # softmax_scale_log2 of both sides
            "row_loss_ptr": empty(B),
            "terms_ptr": empty(2, B, TERMS.value),  # see combine.py
            "sizes_ptr": empty(2, B),
            "residual_ptr": empty(B),
        }
        _sweep_sums(operands, plan, arguments)
        of_rows, of_columns = plan.gradients
        d_anchors, d_tau_row = _gradients(operands, of_rows, arguments, 0)
        d_candidates, d_tau_column = _gradients(operands, of_columns, arguments, 1)
    row_loss = arguments["row_loss_ptr"]
    return (scale * row_loss).sum(), row_loss, d_anchors, d_candidates, d_tau_row, d_tau_column


def serves_symmetric(anchors: Tensor, tau_row: Tensor, tau_column: Tensor, row_group: Tensor | None) -> bool:
    """Whether :func:`infonce_symmetric` should take the place of two calls of ``infonce`` for these inputs.

    It should for half types up to a width of 256, whose kernels compile without spills under Triton 3.6 and 3.9, and
    while the columns' partials take up to 1 GiB, beyond d = 128 2 GiB. On sm_90 up to d = 128, where exponentials take
    as long as products, it should without groups and for one temperature alone, given as one expanded tensor [B]: one
    exponential a pair then serves both directions.
    """
    rows, width = anchors.shape
    if product_kind(anchors.dtype) != "half" or width > MOST_WIDTH or rows > MOST_ROWS:
        return False
    if row_group is None and tau_row.stride(0) == 0 and tau_row.data_ptr() == tau_column.data_ptr():
        return True
    return width > 128 or not anchors.is_cuda or torch.cuda.get_device_capability(anchors.device) < (9, 0)


class Plan(NamedTuple):
    """The launches of a call."""

    positives: Launch
    sums: Launch
    combine: Launch
    gradients: list[Launch]  # of the rows and of the columns


@lru_cache(maxsize=4096)
def _plan(products: Products, grouped: bool, *needs: bool) -> Plan:
    """``needs``: d_anchors, d_candidates, d_tau_row and d_tau_column."""
    tiling = choose_tiling(products.kind, products.width, products.capability)
    B, config = products.rows, tiling.sums
    options = {"HAS_GROUP": grouped, "COMMON": has_common("sums", config, grouped)}
    grid = products.grid(config, divide_width=False)
    sums = products.launch(infonce_symmetric_sums_kernel, config, grid, options)
    own = {"BLOCK_M": COMBINE_BLOCK, "ACC_DTYPE": TYPES[products.acc_dtype]}
    combine = Launch(infonce_symmetric_combine_kernel, (cdiv(B, COMBINE_BLOCK), 1, 1), options | own)
    config = config._replace(block_m=POSITIVES_BLOCK, block_k=min(config.block_d, 64))
    meta = meta_of(products.dtype, products.kind, products.d, products.width, config)
    positives = Launch(infonce_symmetric_positives_kernel, (cdiv(B, POSITIVES_BLOCK), 1, 1), {"META": meta})
    config = tiling.gradient
    options["COMMON"] = has_common("gradient", config, grouped)
    gradients = []
    for need_d_x, need_d_tau in zip(needs[:2], needs[2:]):
        options |= {"NEED_GRADIENT": need_d_x, "NEED_D_TAU": need_d_tau}
        grid = products.grid(config, divide_width=need_d_x)
        gradients.append(products.launch(infonce_symmetric_gradient_kernel, config, grid, options))
    return Plan(positives, sums, combine, gradients)


def _sweep_sums(operands: Operands, plan: Plan, arguments: dict[str, Any]) -> None:
    """Computes the losses and adds the arguments of the gradient sweeps."""
    B = operands.products.rows
    plan.positives.run(arguments)
    arguments["bounds_ptr"] = None
    if plan.sums.options["COMMON"]:  # common() of sums.py reads them
        scales, positive_score = arguments["scales_ptr"], arguments["positive_score_ptr"]
        sides = operands.anchors, operands.candidates
        norms = (torch.linalg.vector_norm(x, dim=1, dtype=scales.dtype).amax() for x in sides)
        arguments["bounds_ptr"] = torch.stack([*torch.aminmax(scales), *torch.aminmax(positive_score), *norms])
    row_blocks, splits, _ = plan.sums.grid
    partials = arguments | {  # whose memory is free for the gradient sweeps
        "row_partials_ptr": operands.empty(splits, 2, B),
        "column_partials_ptr": operands.empty(row_blocks, 2, B),
        "num_splits": splits,
        "num_row_blocks": row_blocks,
    }
    plan.sums.run(partials)
    plan.combine.run(partials)
    # The largest |grad_scale| of both sides, at least 2^-100, becomes 2^MAX_OFFSET.
    largest = torch.linalg.vector_norm(arguments["sizes_ptr"], float("inf"))
    arguments["descale_ptr"] = largest * 2.0 ** -max_offset(operands.products.dtype)


def _gradients(operands: Operands, launch: Launch, arguments: dict[str, Any], owned: int) -> tuple[Tensor, Tensor]:
    """Sweeps past the ``owned`` side, 0 for rows; returns d_x [B, d] and d_tau [B], empty where not needed."""
    B, d, empty = operands.products.rows, operands.products.d, operands.empty
    need_d_x, need_d_tau = launch.options["NEED_GRADIENT"], launch.options["NEED_D_TAU"]
    if not (need_d_x or need_d_tau):
        return empty(0), empty(0)
    splits = launch.grid[1]
    d_x = empty(splits, B, d) if need_d_x else empty(0)
    d_tau = empty(splits, B) if need_d_tau else empty(0)
    groups = arguments["row_group_ptr"], arguments["column_group_ptr"]
    own = operands.sides(owned, terms=arguments["terms_ptr"], group=groups)
    launch.run(arguments | own | {"d_x_ptr": d_x, "d_tau_ptr": d_tau})
    return join(d_x) if need_d_x else d_x, join(d_tau) if need_d_tau else d_tau
