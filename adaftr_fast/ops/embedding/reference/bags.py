"""Pooling of multi-valued fields in plain PyTorch: the ground truth that the kernels are tested
against.

Shapes: B batch, F fields, E width, N ids of all bags. Bag (b, f) holds
``values[offsets[b F + f] : offsets[b F + f + 1]]``. Its vector is
``out[b, f] = scale * sum over i in the bag of per_sample_weights[i] * weight[field_offsets[f] +
values[i]]`` with scale 1 for the sum and 1 / (number of ids) for the mean. An empty bag gives
zeros.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from adaftr_fast.ops.embedding.reference.lookup import (
    check_fields,
    merge_rows,
    named_field,
    out_of_range,
    value_at,
    values_of,
)
from adaftr_fast.ops.embedding.reference.optim import caught_up


def check_bags(
    op: str, values: Tensor, offsets: Tensor, per_sample_weights: Tensor | None, fields: int
) -> None:
    """Checks that values are integers [N], offsets [B F + 1] cover them, and per_sample_weights, if
    any, are [N].
    """
    if fields < 1:
        raise ValueError(f"{op}: fields must be >= 1, got {fields}")
    if values.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"{op}: values must be int32 or int64, got {values.dtype}")
    if values.dim() != 1:
        raise ValueError(f"{op}: values must be [N], got {list(values.shape)}")
    if (
        offsets.dim() != 1
        or len(offsets) < 1
        or (len(offsets) - 1) % fields
        or offsets.dtype != torch.int64
    ):
        raise ValueError(
            f"{op}: offsets must be int64 [B * {fields} + 1], got {offsets.dtype} "
            f"{list(offsets.shape)}"
        )
    wrong = (offsets[0] != 0) | (offsets[-1] != len(values)) | (offsets.diff() < 0).any()
    if values_of(wrong).any():
        raise ValueError(f"{op}: offsets must rise from 0 to the number of values, {len(values)}")
    if per_sample_weights is not None and per_sample_weights.shape != values.shape:
        raise ValueError(
            f"{op}: per_sample_weights must be [{len(values)}], got "
            f"{list(per_sample_weights.shape)}"
        )


def bag_of_id(values: Tensor, offsets: Tensor) -> Tensor:
    """Returns the bag of each position of values [N], [N]; behind the last bag, the number of
    bags.
    """
    positions = torch.arange(values.shape[0], device=values.device)
    return torch.searchsorted(offsets, positions, right=True) - 1


def resolve_ids(
    op: str,
    values: Tensor,
    offsets: Tensor,
    per_sample_weights: Tensor | None,
    field_offsets: Tensor,
    names: Sequence[str] = (),
) -> tuple[Tensor, Tensor]:
    """Returns the bag and the table row of each id, both [N]. Errors call fields by ``names``.

    Raises:
        IndexError, TypeError, ValueError: as :func:`adaftr_fast.ops.embedding.bags.embedding_bags`,
            in the name of ``op``.
    """
    check_fields(op, field_offsets)
    fields = len(field_offsets) - 1
    check_bags(op, values, offsets, per_sample_weights, fields)
    bag = bag_of_id(values, offsets)
    field = bag % fields
    bad = values_of((values < 0) | (values >= field_offsets.diff()[field])).nonzero()
    if len(bad):
        position = bad[0].tolist()
        f = value_at(field, position)
        row = value_at(bag, position) // fields
        rows = int(field_offsets[f + 1] - field_offsets[f])
        found = f"values{position} = {value_at(values, position)} (row {row})"
        raise out_of_range(op, found, named_field(f, names), rows)
    return bag, values + field_offsets[field]


def select_bags(
    values: Tensor,
    offsets: Tensor,
    per_sample_weights: Tensor | None,
    chosen: Sequence[int],
    fields: int,
) -> tuple[Tensor, Tensor]:
    """Returns the positions in values [N] of the selected fields' ids [M], and their bags' offsets
    [B * C + 1].

    ``chosen`` are the indices of C of the F = ``fields`` fields, in ascending order.
    """
    check_bags("embedding_bags", values, offsets, per_sample_weights, fields)
    counts = offsets.diff().reshape(-1, fields)  # [B, F]
    keep = torch.zeros_like(counts, dtype=torch.bool)
    keep[:, chosen] = True
    ends = counts[:, chosen].flatten().cumsum(0)
    positions = keep.flatten().repeat_interleave(counts.flatten()).nonzero().flatten()  # [M]
    return positions, torch.cat([ends.new_zeros(1), ends])


def compute_dtype(tensor: Tensor) -> torch.dtype:
    """Returns the dtype of arithmetic on ``tensor``: float64 if it is float64, else float32."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def factors(
    bag: Tensor, offsets: Tensor, per_sample_weights: Tensor | None, mean: bool, dtype: torch.dtype
) -> Tensor:
    """Returns the factor of each id's row in its bag's vector, [N, 1]."""
    if per_sample_weights is None:
        factor = torch.ones(bag.shape[0], dtype=dtype, device=bag.device)
    else:
        factor = per_sample_weights.to(dtype)
    if mean:
        factor = factor / offsets.diff()[bag].to(dtype)
    return factor[:, None]


def embedding_bags(
    weight: Tensor,
    values: Tensor,
    offsets: Tensor,
    per_sample_weights: Tensor | None,
    field_offsets: Tensor,
    mean: bool,
    state: Sequence[Tensor],
) -> Tensor:
    """Pools values [N] by offsets [B F + 1] -> [B, F E]; ``state`` is empty or that of a deferred
    Adam.
    """
    bag, rows = resolve_ids("embedding_bags", values, offsets, per_sample_weights, field_offsets)
    found = caught_up("embedding_bags", weight, state, rows)[0] if state else weight[rows]
    wide = found.to(compute_dtype(weight))
    terms = wide * factors(bag, offsets, per_sample_weights, mean, wide.dtype)
    out = wide.new_zeros(len(offsets) - 1, weight.shape[1]).index_add(0, bag, terms)
    return out.to(weight.dtype).reshape(-1, (len(field_offsets) - 1) * weight.shape[1])


def gradient_terms(
    grad: Tensor,
    bag: Tensor,
    offsets: Tensor,
    per_sample_weights: Tensor | None,
    width: int,
    mean: bool,
) -> Tensor:
    """Returns the term that grad [B, F E] adds to the gradient of the row of each id, [N, E]."""
    wide = grad.to(compute_dtype(grad))
    return wide.reshape(-1, width)[bag] * factors(
        bag, offsets, per_sample_weights, mean, wide.dtype
    )


def embedding_bags_backward(
    grad: Tensor,
    values: Tensor,
    offsets: Tensor,
    per_sample_weights: Tensor | None,
    field_offsets: Tensor,
    width: int,
    mean: bool,
) -> tuple[Tensor, Tensor]:
    """Merges grad [B, F E] -> the distinct rows in ascending order [U], and their summed gradients
    [U, E].
    """
    bag, rows = resolve_ids(
        "embedding_bags_backward", values, offsets, per_sample_weights, field_offsets
    )
    terms = gradient_terms(grad, bag, offsets, per_sample_weights, width, mean)
    unique, sums = merge_rows(rows, terms)
    return unique, sums.to(grad.dtype)
