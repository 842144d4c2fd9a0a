"""``torch.ops.adaftr_fast.infonce_blocks``: adaptive InfoNCE within blocks of consecutive rows.

Shapes: B rows (anchors a_r) and B candidates b_j, d hidden width. The candidates of row r are those of its block of k
rows, [k (r // k), min(k (r // k) + k, B)); the last block may be smaller. The outputs are those of ``infonce`` (op.py),
with B k logits in place of B x N.

The same schema is registered three times: ``infonce_blocks`` (the dispatcher selects C++ on CPU, Triton on CUDA and the
reference elsewhere), ``infonce_blocks_reference`` and ``infonce_blocks_triton``.
"""

import importlib.util
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from adaftr_fast.ops.infonce.autograd import Formula, accumulation_dtype, in_its_types, reference_dtype
from adaftr_fast.ops.infonce.op import check_tau, fake, outputs_of
from adaftr_fast.ops.infonce.reference import InfoNCERows, rows_of_logits, similarity_gradients
from adaftr_fast.ops.infonce.targets import Outputs
from adaftr_fast.ops.library import library

SCHEMA = (
    "(Tensor anchors, Tensor candidates, Tensor tau, Tensor scale, bool need_d_anchors, bool need_d_candidates,"
    " bool need_d_tau, bool need_stats, int block, *, bool ieee=False)"
    " -> (Tensor loss, Tensor row_loss, Tensor lse, Tensor positive_logit, Tensor top1, Tensor entropy,"
    " Tensor d_anchors, Tensor d_candidates, Tensor d_tau)"
)
BLOCKS = "infonce_blocks"
NAMES = (BLOCKS, "infonce_blocks_reference", "infonce_blocks_triton")


def block_rows(anchors: Tensor, candidates: Tensor, tau: Tensor, block: int) -> InfoNCERows:
    """Computes the loss and statistics of every row among the rows of its block, as ``infonce_rows`` does."""
    z, target, negative = _logits(anchors, candidates, tau, block)
    return rows_of_logits(z, torch.ones_like(tau, dtype=torch.bool), target, negative)


def block_gradients(
    anchors: Tensor, candidates: Tensor, tau: Tensor, scale: Tensor, block: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Computes the gradients of ``sum_r scale_r L_r`` in closed form, as ``infonce_gradients`` does."""
    z, target, negative = _logits(anchors, candidates, tau, block)
    every_row = torch.ones_like(tau, dtype=torch.bool)
    d_similarities, d_tau, valid = similarity_gradients(z, every_row, target, negative, scale, tau)  # [B, k], [B], [B]
    anchors = torch.where(valid[:, None], anchors, 0)
    d = _blocks_of(d_similarities, block)  # [n, k, k]
    d_anchors = (d @ _blocks_of(candidates, block)).flatten(0, 1)[: len(anchors)]
    d_candidates = (d.mT @ _blocks_of(anchors, block)).flatten(0, 1)[: len(anchors)]
    return torch.where(valid[:, None], d_anchors, 0), d_candidates, d_tau


def _logits(anchors: Tensor, candidates: Tensor, tau: Tensor, block: int) -> tuple[Tensor, Tensor, Tensor]:
    """Computes the rows' logits with their blocks [B, k], their positives [B, 1] and the mask of negatives [B, k]."""
    rows = len(anchors)
    s = _blocks_of(anchors, block) @ _blocks_of(candidates, block).mT
    row = torch.arange(rows, device=s.device)[:, None]
    column = torch.arange(block, device=s.device)
    target = row % block
    negative = (column != target) & (row - target + column < rows)
    return s.flatten(0, 1)[:rows] / tau[:, None], target, negative


def _blocks_of(x: Tensor, block: int) -> Tensor:
    """Returns the blocks of rows [B, d] -> [n, k, d]; the last is filled up with zeros."""
    blocks = -(-len(x) // block)
    return F.pad(x, (0, 0, 0, blocks * block - len(x))).view(blocks, block, x.shape[1])


@in_its_types
def _reference(
    anchors: Tensor,
    candidates: Tensor,
    tau: Tensor,
    scale: Tensor,
    need_d_anchors: bool,
    need_d_candidates: bool,
    need_d_tau: bool,
    need_stats: bool,
    block: int,
    *,
    ieee: bool = False,
) -> Outputs:
    """Computes the op in plain PyTorch."""
    if candidates.shape != anchors.shape:
        raise RuntimeError(
            f"adaptive_infonce: anchors and candidates must both be [B, d] with a block, got {tuple(anchors.shape)} "
            f"and {tuple(candidates.shape)}"
        )
    if block < 1:
        raise RuntimeError(f"adaptive_infonce: block must be at least 1, got {block}")
    if anchors.device.type == "cpu":
        check_tau(tau, torch.ones_like(tau, dtype=torch.bool))
    else:  # reading the values would wait for the device
        tau = torch.where((tau > 0) & tau.isfinite(), tau, torch.nan)
    block = min(block, max(len(anchors), 1))
    dtype = reference_dtype(anchors.dtype, ieee)
    inputs = anchors.to(dtype), candidates.to(dtype), tau.to(dtype)
    needs = (need_d_anchors, need_d_candidates, need_d_tau)
    gradients = block_gradients(*inputs, scale, block) if any(needs) else inputs
    rows = block_rows(*inputs, block)
    return outputs_of(rows, gradients, scale, needs, need_stats, accumulation_dtype(anchors.dtype))


def _triton(anchors: Tensor, *arguments: Any, **options: Any) -> Outputs:
    """Computes the op by the Triton kernel, or in plain PyTorch where a block is too large for it."""
    from adaftr_fast.kernels.infonce import infonce_blocks, serves_blocks  # imports triton

    run = infonce_blocks if serves_blocks(anchors, arguments[-1]) else _reference
    outputs: Outputs = run(anchors, *arguments, **options)
    return outputs


def _cuda(anchors: Tensor, *arguments: Any, **options: Any) -> Outputs:
    """Runs the kernel, or plain PyTorch on a GPU that is older than the kernels are compiled for."""
    run = _triton if torch.cuda.get_device_capability(anchors.device) >= (8, 0) else _reference
    return run(anchors, *arguments, **options)


def _fake(anchors: Tensor, candidates: Tensor, tau: Tensor, scale: Tensor, *needs_and_block: Any, **_: Any) -> Outputs:
    return fake(anchors, candidates, tau, None, None, None, scale, *needs_and_block)


def _row_loss(*arguments: Any) -> Tensor:
    return block_rows(*arguments).loss


FORMULA = Formula(3, 0, True, _row_loss, block_gradients)
FORMULA.define_gradients(BLOCKS, "int block")

for _name in NAMES:
    FORMULA.define(_name, SCHEMA, _fake)
    library.impl(_name, _triton if _name.endswith("_triton") else _reference, "CompositeExplicitAutograd")
if importlib.util.find_spec("triton") is not None:
    library.impl(BLOCKS, _cuda, "CUDA")
