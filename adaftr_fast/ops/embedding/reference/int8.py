"""Rows of int8 with a scale each, in plain PyTorch.

A row of codes q stands for s q, where s = max |w| / 127 is the scale of the row w that was rounded.
A value is off by s / 2 at most, and zeros stay zeros.

R rows of all fields, E width, B batch, F fields, N ids of all bags together.
"""

from __future__ import annotations

import torch
from torch import Tensor

from adaftr_fast.ops.embedding.reference.bags import factors, resolve_ids
from adaftr_fast.ops.embedding.reference.lookup import check_ids, embedding_rows


def round_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Rounds rows [R, E] -> their codes, int8 [R, E], and their scales, float32 [R, 1]."""
    weight = weight.float()
    scale = weight.abs().amax(1, keepdim=True) / 127
    codes = (weight / scale.masked_fill(scale == 0, 1)).round().clamp(-127, 127).to(torch.int8)
    return codes, scale


def int8_embedding(
    weight: Tensor,
    scale: Tensor,
    ids: Tensor,
    offsets: Tensor | None,
    per_sample_weights: Tensor | None,
    field_offsets: Tensor,
    mean: bool,
) -> Tensor:
    """Looks up ids [B, F], or pools the ids [N] of bags, in the dtype of ``scale`` -> [B, F E]."""
    if weight.dtype != torch.int8 or scale.shape != (weight.shape[0], 1):
        expected = f"int8 weight [R, E] and scale [R, 1], got {weight.dtype} {list(weight.shape)}"
        raise ValueError(f"int8_embedding: expected {expected} and {list(scale.shape)}")
    if offsets is None:
        check_ids("int8_embedding", ids, field_offsets)
        rows = embedding_rows(ids, field_offsets)
    else:
        bag, rows = resolve_ids("int8_embedding", ids, offsets, per_sample_weights, field_offsets)
    vectors = weight[rows].to(scale.dtype) * scale[rows]
    if offsets is not None:
        vectors = vectors * factors(bag, offsets, per_sample_weights, mean, vectors.dtype)
        vectors = vectors.new_zeros(len(offsets) - 1, weight.shape[1]).index_add_(0, bag, vectors)
    return vectors.reshape(-1, (len(field_offsets) - 1) * weight.shape[1])
