"""Pooling of multi-valued fields in plain PyTorch.

B batch, F fields, E width, N ids of all bags together. Bag (b, f) holds ``values[bags[b F + f] : bags[b F + f + 1]]``.
``out[b, f] = scale * sum over i in the bag of weights[i] * weight[offsets[f] + values[i]]``, where scale is 1, or
1 / (number of ids) for the mean; an empty bag gives zeros.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from adaftr_fast.ops.embedding.reference.lookup import check_fields
from adaftr_fast.ops.embedding.reference.optim import caught_up


def check_bags(op: str, values: Tensor, bags: Tensor, weights: Tensor | None, fields: int) -> None:
    """Raise unless values are integers [N] that bags [B F + 1] cut up, and weights, if any, are [N]."""
    if values.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"{op}: values must be int32 or int64, got {values.dtype}")
    if values.dim() != 1:
        raise ValueError(f"{op}: values must be [N], got {list(values.shape)}")
    if bags.dim() != 1 or len(bags) < 1 or (len(bags) - 1) % fields or bags.dtype != torch.int64:
        raise ValueError(f"{op}: offsets must be int64 [B * {fields} + 1], got {bags.dtype} {list(bags.shape)}")
    if bags[0] != 0 or bags[-1] != len(values) or (bags.diff() < 0).any():
        raise ValueError(f"{op}: offsets must rise from 0 to the number of values, {len(values)}")
    if weights is not None and weights.shape != values.shape:
        raise ValueError(f"{op}: weights must be [{len(values)}], got {list(weights.shape)}")


def places(op: str, values: Tensor, bags: Tensor, weights: Tensor | None, offsets: Tensor) -> tuple[Tensor, Tensor]:
    """The bag and the table row of each id, both [N]."""
    check_fields(op, offsets)
    fields = len(offsets) - 1
    check_bags(op, values, bags, weights, fields)
    bag = torch.arange(len(bags) - 1, device=values.device).repeat_interleave(bags.diff())  # [N]
    field = bag % fields
    bad = ((values < 0) | (values >= offsets.diff()[field])).nonzero()
    if len(bad):
        i = int(bad[0])
        f, last = int(field[i]), int(offsets.diff()[field[i]]) - 1
        raise IndexError(
            f"{op}: values[{i}] = {int(values[i])} (row {int(bag[i]) // fields}) is out of range for field {f}, "
            f"whose ids are 0 to {last}"
        )
    return bag, values + offsets[field]


def _factors(bag: Tensor, bags: Tensor, weights: Tensor | None, mean: bool, dtype: torch.dtype) -> Tensor:
    """What each id is multiplied with, [N, 1]."""
    factor = torch.ones(len(bag), dtype=dtype, device=bag.device) if weights is None else weights.to(dtype)
    if mean:
        factor = factor / bags.diff()[bag].to(dtype)
    return factor[:, None]


def embedding_bags(
    weight: Tensor,
    values: Tensor,
    bags: Tensor,
    weights: Tensor | None,
    offsets: Tensor,
    mean: bool,
    state: Sequence[Tensor],
) -> Tensor:
    """Pool values [N] by bags [B F + 1] -> [B, F E]; ``state`` is empty or that of a deferred Adam."""
    bag, rows = places("embedding_bags", values, bags, weights, offsets)
    found = caught_up(weight, state, rows)[0] if state else weight[rows]
    wide = found.double() if weight.dtype == torch.float64 else found.float()
    out = wide.new_zeros(len(bags) - 1, weight.shape[1])
    out.index_add_(0, bag, wide * _factors(bag, bags, weights, mean, wide.dtype))
    return out.to(weight.dtype).reshape(-1, (len(offsets) - 1) * weight.shape[1])


def gradient_terms(
    grad: Tensor, values: Tensor, bags: Tensor, weights: Tensor | None, offsets: Tensor, width: int, mean: bool
) -> tuple[Tensor, Tensor]:
    """The row of each id [N] and what grad [B, F E] adds to its gradient [N, E]."""
    bag, rows = places("embedding_bags_backward", values, bags, weights, offsets)
    wide = grad.double() if grad.dtype == torch.float64 else grad.float()
    return rows, wide.reshape(-1, width)[bag] * _factors(bag, bags, weights, mean, wide.dtype)


def embedding_bags_backward(
    grad: Tensor, values: Tensor, bags: Tensor, weights: Tensor | None, offsets: Tensor, width: int, mean: bool
) -> tuple[Tensor, Tensor]:
    """Merge grad [B, F E] -> the distinct rows in rising order [U], and their summed gradients [U, E]."""
    rows, terms = gradient_terms(grad, values, bags, weights, offsets, width, mean)
    unique, place = torch.unique(rows, return_inverse=True)
    return unique, terms.new_zeros(len(unique), width).index_add_(0, place, terms).to(grad.dtype)
