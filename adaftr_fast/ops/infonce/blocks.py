"""``torch.ops.adaftr_fast.infonce_blocks``: adaptive InfoNCE within blocks of consecutive rows.

Shapes: B rows (anchors a_r) and B candidates b_j, d hidden width. The candidates of row r are those
of its block of k rows, [k (r // k), min(k (r // k) + k, B)); the last block may be smaller. The
outputs are those of ``infonce`` (op.py), with B k logits in place of B x N.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from adaftr_fast.ops.infonce.autograd import DifferentiableOp
from adaftr_fast.ops.infonce.op import check_tau
from adaftr_fast.ops.infonce.reference import (
    InfoNCERows,
    Logits,
    rows_of_logits,
    similarity_gradients,
)

SCHEMA = (
    "(Tensor anchors, Tensor candidates, Tensor tau, Tensor scale, bool need_d_anchors, bool "
    "need_d_candidates,"
    " bool need_d_tau, bool need_stats, int block, *, bool ieee=False)"
    " -> (Tensor loss, Tensor row_loss, Tensor lse, Tensor positive_logit, Tensor top1, Tensor "
    "entropy,"
    " Tensor d_anchors, Tensor d_candidates, Tensor d_tau)"
)


def block_rows(anchors: Tensor, candidates: Tensor, tau: Tensor, block: int) -> InfoNCERows:
    """Computes the loss and statistics of every row among the rows of its block, as
    ``infonce_rows`` does.
    """
    return rows_of_logits(_logits(anchors, candidates, tau, block))


def block_gradients(
    anchors: Tensor, candidates: Tensor, tau: Tensor, scale: Tensor, block: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Computes the gradients of ``sum_r scale_r L_r`` in closed form, as ``infonce_gradients``
    does.
    """
    logits = _logits(anchors, candidates, tau, block)
    d_similarities, d_tau, valid = similarity_gradients(logits, scale, tau)  # [B, k], [B], [B]
    anchors = torch.where(valid[:, None], anchors, 0)
    d = _blocks_of(d_similarities, block)  # [n, k, k]
    d_anchors = (d @ _blocks_of(candidates, block)).flatten(0, 1)[: len(anchors)]
    d_candidates = (d.mT @ _blocks_of(anchors, block)).flatten(0, 1)[: len(anchors)]
    return torch.where(valid[:, None], d_anchors, 0), d_candidates, d_tau


def _logits(anchors: Tensor, candidates: Tensor, tau: Tensor, block: int) -> Logits:
    """Computes the logits of the rows with their blocks, [B, k]."""
    rows = len(anchors)
    s = _blocks_of(anchors, block) @ _blocks_of(candidates, block).mT
    row = torch.arange(rows, device=s.device)[:, None]
    column = torch.arange(block, device=s.device)
    target = row % block
    negative = (column != target) & (row - target + column < rows)
    return Logits(
        s.flatten(0, 1)[:rows] / tau[:, None],
        torch.ones_like(tau, dtype=torch.bool),
        target,
        negative,
    )


def _blocks_of(x: Tensor, block: int) -> Tensor:
    """Returns the blocks of rows [B, d] -> [n, k, d]; the last is filled up with zeros."""
    blocks = -(-len(x) // block)
    return F.pad(x, (0, 0, 0, blocks * block - len(x))).view(blocks, block, x.shape[1])


def _checked(given: dict[str, Any]) -> dict[str, Any]:
    """Checks the shapes, the block and the values of tau, as the C++ kernel does."""
    anchors, candidates, tau, block = (
        given[name] for name in ("anchors", "candidates", "tau", "block")
    )
    if candidates.shape != anchors.shape:
        raise RuntimeError(
            "adaptive_infonce: anchors and candidates must both be [B, d] with a block, got "
            f"{tuple(anchors.shape)} "
            f"and {tuple(candidates.shape)}"
        )
    if block < 1:
        raise RuntimeError(f"adaptive_infonce: block must be at least 1, got {block}")
    if anchors.device.type == "cpu":
        check_tau(tau)
    else:  # reading the values would wait for the device
        tau = torch.where((tau > 0) & tau.isfinite(), tau, torch.nan)
    return given | {"tau": tau, "block": min(block, max(len(anchors), 1))}


def _triton(*arguments: Any, **options: Any) -> tuple[Tensor, ...]:
    """Computes the op by the Triton kernel, or in plain PyTorch where a block is too
    large for it.
    """
    from adaftr_fast.kernels.infonce import infonce_blocks, serves_blocks  # imports triton

    given = BLOCKS.named(arguments, options)
    served = serves_blocks(given["anchors"], given["block"])
    return infonce_blocks(**given) if served else BLOCKS.reference(**given)


BLOCKS = DifferentiableOp(
    "infonce_blocks",
    SCHEMA,
    closed_form=block_gradients,
    rows=block_rows,
    checked=_checked,
    triton=_triton,
    needs_sm_80=True,
    pairs=True,
)
