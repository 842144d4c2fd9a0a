"""Rows of a table as int8, in the format of FBGEMM and ``torch.ops.quantized.embedding_bag_byte_prepack``.

A row of width E is E + 8 bytes: E unsigned numbers q, then the row's scale s and minimum m in float32. It stands for
s q + m, with s = (maximum - m) / 255, so a value is off by s / 2 at most. torch divides by
maximum - m + 1e-8 to find q, so this holds only where maximum - m is well above 1e-8.

R rows, E width, N look-ups, K bags.
"""

from __future__ import annotations

import torch
from torch import Tensor

from adaftr_fast.ops.embedding.bags import bag_of_id


def pack_rows(weight: Tensor) -> Tensor:
    """Returns rows [R, E] as uint8 [R, E + 8], on the CPU."""
    packed: Tensor = torch.ops.quantized.embedding_bag_byte_prepack(weight.detach().cpu().float())
    return packed


def unpack_rows(packed: Tensor) -> Tensor:
    """Returns packed rows [R, E + 8] as float32 [R, E]."""
    tail = packed[:, -8:].clone(memory_format=torch.contiguous_format)  # a view of one row may not be aligned
    scale, minimum = tail.view(torch.float32).split(1, 1)
    return torch.addcmul(minimum, packed[:, :-8].float(), scale)


def sum_rows(packed: Tensor, rows: Tensor, offsets: Tensor, factors: Tensor | None) -> Tensor:
    """Returns the sum of the rows of each bag, weighted by factors, float32 [K, E].

    Args:
        packed: [R, E + 8], uint8.
        rows: [N], int64, from 0 to R - 1.
        offsets: [K + 1], int64, from 0 to N in non-decreasing order.
        factors: [N], float32, or None.
    """
    if not packed.is_cpu:
        return sum_rows_plain(packed, rows, offsets, factors)
    pool = torch.ops.quantized.embedding_bag_byte_rowwise_offsets
    pooled: Tensor = pool(packed, rows, offsets, False, 0, False, factors, None, True)
    return pooled


def sum_rows_plain(packed: Tensor, rows: Tensor, offsets: Tensor, factors: Tensor | None) -> Tensor:
    """Returns what ``sum_rows`` does, in plain PyTorch, on any device."""
    values = unpack_rows(packed[rows])
    if factors is not None:
        values = values * factors[:, None]
    pooled = values.new_zeros(offsets.shape[0] - 1, values.shape[1])
    return pooled.index_add_(0, bag_of_id(rows, offsets), values)
