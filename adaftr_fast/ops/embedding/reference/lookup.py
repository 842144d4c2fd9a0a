"""The multi-field embedding in plain PyTorch: the truth the kernels are tested against.

B batch, F fields, E width, R rows of all fields together, U distinct rows of one batch.

Forward: ``out[b, f] = weight[offsets[f] + ids[b, f]]``. Backward: the gradient of a row is the sum of the
gradients of its look-ups, ``dweight[r] = sum over (b, f) with offsets[f] + ids[b, f] = r of grad[b, f]``.
"""

from __future__ import annotations

import torch
from torch import Tensor


def check_fields(op: str, offsets: Tensor) -> None:
    """Raise for offsets that are no int64 [F + 1]."""
    if offsets.dim() != 1 or offsets.dtype != torch.int64 or len(offsets) < 2:
        got = f"{offsets.dtype} {list(offsets.shape)}"
        raise ValueError(f"{op}: the tables' offsets must be int64 [F + 1] of F >= 1 fields, got {got}")


def check_columns(op: str, ids: Tensor, fields: int) -> None:
    """Raise for ids that are no int32 or int64 [B, F]."""
    if ids.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"{op}: ids must be int32 or int64, got {ids.dtype}")
    if ids.dim() != 2 or ids.shape[1] != fields:
        raise ValueError(f"{op}: ids must be [B, {fields}] (one column a field), got {list(ids.shape)}")


def check_ids(op: str, ids: Tensor, offsets: Tensor) -> None:
    """Raise for ids that are no int32/int64 [B, F] or out of their field's range, naming the first."""
    check_fields(op, offsets)
    check_columns(op, ids, len(offsets) - 1)
    bad = ((ids < 0) | (ids >= offsets.diff())).nonzero()
    if len(bad):
        b, f = bad[0].tolist()
        last = int(offsets[f + 1] - offsets[f]) - 1
        raise IndexError(
            f"{op}: ids[{b}, {f}] = {int(ids[b, f])} is out of range for field {f}, whose ids are 0 to {last}"
        )


def fused_embedding(weight: Tensor, ids: Tensor, offsets: Tensor) -> Tensor:
    """Look up weight [R, E] at ids [B, F], where field f begins at offsets[f] of [F + 1] -> [B, F * E]."""
    check_ids("fused_embedding", ids, offsets)
    return weight[ids + offsets[:-1]].flatten(1)  # [B, F * E]


def fused_embedding_backward(grad: Tensor, ids: Tensor, offsets: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Merge grad [B, F * E] -> the distinct rows in rising order [U], and their summed gradients [U, E]."""
    check_ids("fused_embedding_backward", ids, offsets)
    rows, place = torch.unique(ids + offsets[:-1], return_inverse=True)  # [U], [B, F]
    values = grad.new_zeros(len(rows), width)  # [U, E]
    values.index_add_(0, place.flatten(), grad.reshape(-1, width))
    return rows, values


def strictly_rising(rows: Tensor) -> bool:
    """Whether rows [U] are distinct and sorted."""
    return bool((rows[1:] > rows[:-1]).all())
