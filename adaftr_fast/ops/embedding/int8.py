"""The look-up in a table of int8.

It is plain PyTorch on every device: a gather and a product, which cost little beside the layers
that read the rows. It is an op so that programs of torch.export check ids, and no size depends on
their values.

R rows of all fields, E width, B batch, F fields, N ids of all bags together.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from adaftr_fast.ops.embedding.reference import int8 as reference
from adaftr_fast.ops.library import define


def _fake(
    weight: Tensor,
    scale: Tensor,
    ids: Tensor,
    offsets: Tensor | None,
    _: Any,
    field_offsets: Tensor,
    __: bool,
) -> Tensor:
    fields = field_offsets.shape[0] - 1
    batch = ids.shape[0] if offsets is None else (offsets.shape[0] - 1) // fields
    return scale.new_empty(batch, fields * weight.shape[1])


define(
    "int8_embedding(Tensor weight, Tensor scale, Tensor ids, Tensor? offsets, Tensor? "
    "per_sample_weights,"
    " Tensor field_offsets, bool mean) -> Tensor",
    reference.int8_embedding,
    _fake,
)


int8_embedding: Callable[..., Tensor] = torch.ops.adaftr_fast.int8_embedding
"""Looks up one id per field, or bags of ids, in a table of int8. The result has no gradient.

Args:
    weight: int8 [R, E].
    scale: [R, 1], floating point: the factor of each row.
    ids: int32 or int64 [B, F], or [N] with ``offsets``, each counted from 0 within its field.
    offsets: int64 [B * F + 1], rising from 0 to N, where each bag begins; None for one id per
        field.
    per_sample_weights: [N] factors of the ids of bags, or None.
    field_offsets: int64 [F + 1]; field f owns the rows ``field_offsets[f]`` to
        ``field_offsets[f + 1] - 1``.
    mean: whether the sum of a bag is divided by its number of ids.

Returns:
    [B, F * E], in the dtype of ``scale``.

Raises:
    IndexError: an id is out of its field's range, on every device.
    TypeError, ValueError: an argument has the wrong dtype or shape.
"""
