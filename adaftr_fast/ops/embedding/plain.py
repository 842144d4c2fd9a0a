"""The embedding's ops as PyTorch ops, for programs that run without this package.

They cannot raise, so an id out of its field's range reads row 0 of the field, "unknown". Offsets
must rise from 0 to N. No size depends on a value, as AOTInductor requires. For the CPU.

Shapes: B rows, F fields, N ids of all bags, E width, R rows of a table.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

import adaftr_fast.ops.embedding.int8
import adaftr_fast.ops.embedding.segments  # noqa: F401  # defines the ops of PLAIN


def plain_lookup(
    weight: Tensor,
    ids: Tensor,
    field_offsets: Tensor,
    state: Sequence[Tensor],
    *,
    sparse: bool = True,
) -> Tensor:
    """Computes ``fused_embedding``; deferred updates have been applied, so ``state`` is empty."""
    return nn.functional.embedding(
        _rows(ids, field_offsets.diff(), field_offsets[:-1]), weight
    ).flatten(1)


def plain_bags(
    weight: Tensor,
    values: Tensor,
    offsets: Tensor,
    per_sample_weights: Tensor | None,
    field_offsets: Tensor,
    mean: bool,
    state: Sequence[Tensor],
    *,
    sparse: bool = True,
) -> Tensor:
    """Computes ``embedding_bags``; deferred updates have been applied, so ``state`` is empty."""
    bag, rows = _rows_of_bags(values, offsets, field_offsets)
    vectors = nn.functional.embedding(rows, weight)
    return _pooled(vectors, bag, offsets, per_sample_weights, field_offsets, mean)


def plain_select(
    values: Tensor,
    offsets: Tensor,
    per_sample_weights: Tensor | None,
    chosen: Sequence[int],
    fields: int,
) -> tuple[Tensor, Tensor]:
    """Computes ``select_bags``, with N positions as on CUDA: those from the last offset on have no
    meaning.

    No size depends on a value, as AOTInductor requires.
    """
    chosen_fields = torch.cat([torch.full((1,), f in chosen) for f in range(fields)])
    keep = chosen_fields[_bag_of_id(offsets, values.shape[0]) % fields].long()
    # the chosen ones first
    place = torch.where(keep > 0, keep.cumsum(0) - 1, keep.sum() + (1 - keep).cumsum(0) - 1)
    positions = torch.zeros_like(place).scatter(0, place, torch.arange(values.shape[0]))
    counts = offsets.diff().view(-1, fields).unbind(1)
    ends = torch.stack([counts[f] for f in chosen], 1).flatten().cumsum(0)
    return positions, torch.cat([ends.new_zeros(1), ends])


def plain_int8(
    weight: Tensor,
    scale: Tensor,
    ids: Tensor,
    offsets: Tensor | None,
    per_sample_weights: Tensor | None,
    field_offsets: Tensor,
    mean: bool,
) -> Tensor:
    """Computes ``int8_embedding``."""
    if offsets is None:
        rows = _rows(ids, field_offsets.diff(), field_offsets[:-1])
        return _int8_rows(weight, scale, rows).flatten(1)
    bag, rows = _rows_of_bags(ids, offsets, field_offsets)
    vectors = _int8_rows(weight, scale, rows)
    return _pooled(vectors, bag, offsets, per_sample_weights, field_offsets, mean)


def plain_sum(vectors: Tensor, offsets: Tensor) -> Tensor:
    """Computes ``sum_bags``."""
    return _summed(vectors, _bag_of_id(offsets, vectors.shape[0]), offsets.shape[0] - 1)


def plain_repeat(vectors: Tensor, offsets: Tensor, size: int) -> Tensor:
    """Computes ``repeat_by_bag``."""
    return vectors[_bag_of_id(offsets, size).clamp(max=vectors.shape[0] - 1)]


def _rows(ids: Tensor, sizes: Tensor | int, first: Tensor | int) -> Tensor:
    """Returns the rows of ids of fields that have ``sizes`` rows from ``first`` on; ids out of
    range count as 0.
    """
    return torch.where((ids < 0) | (ids >= sizes), 0, ids) + first


def _int8_rows(weight: Tensor, scale: Tensor, rows: Tensor) -> Tensor:
    return nn.functional.embedding(rows, weight).to(scale.dtype) * nn.functional.embedding(
        rows, scale
    )


def _rows_of_bags(values: Tensor, offsets: Tensor, field_offsets: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the bag and the table row of each id, both [N]."""
    bag = _bag_of_id(offsets, values.shape[0])
    field = bag % (field_offsets.shape[0] - 1)
    return bag, _rows(values, field_offsets.diff()[field], field_offsets[field])


def _pooled(
    vectors: Tensor,
    bag: Tensor,
    offsets: Tensor,
    per_sample_weights: Tensor | None,
    field_offsets: Tensor,
    mean: bool,
) -> Tensor:
    """Pools the vectors [N, E] of bags -> [B, F E]."""
    if per_sample_weights is not None:
        vectors = vectors * per_sample_weights[:, None]
    pooled = _summed(vectors, bag, offsets.shape[0] - 1)
    if mean:
        pooled = pooled / offsets.diff().clamp(min=1)[:, None]
    return pooled.view(-1, (field_offsets.shape[0] - 1) * vectors.shape[1])


def _bag_of_id(offsets: Tensor, size: int) -> Tensor:
    """Returns the bag of each of ``size`` ids: the number of offsets up to it, less one; behind the
    last bag, B.
    """
    starts = offsets.new_zeros(size + 1).scatter_add(0, offsets, torch.ones_like(offsets))
    return starts[:-1].cumsum(0) - 1


def _summed(vectors: Tensor, bag: Tensor, bags: int) -> Tensor:
    index = bag[:, None].expand(-1, vectors.shape[1])
    summed = vectors.new_zeros(bags + 1, vectors.shape[1]).scatter_add(0, index, vectors)
    return summed[:-1]  # without what is behind the last bag


_OPS = torch.ops.adaftr_fast
PLAIN: dict[torch._ops.OperatorBase, Callable[..., Any]] = {
    _OPS.fused_embedding.default: plain_lookup,
    _OPS.embedding_bags.default: plain_bags,
    _OPS.bag_of_id.default: lambda values, offsets: _bag_of_id(offsets, values.shape[0]),
    _OPS.select_bags.default: plain_select,
    _OPS.rows_of_field.default: lambda ids, first, rows: _rows(ids, rows, first).long(),
    _OPS.int8_embedding.default: plain_int8,
    _OPS.sum_bags.default: plain_sum,
    _OPS.repeat_by_bag.default: plain_repeat,
}


def plain_decompositions() -> dict[torch._ops.OperatorBase, Callable[..., Any]]:
    """Returns PyTorch's ops for those that embeddings look up with.

    ``program.run_decompositions(adaftr_fast.plain_decompositions())`` gives a program of
    ``torch.export`` that runs without this package, is compiled by AOTInductor and written as ONNX
    (docs/frameworks.md). An id out of its field's range reads row 0 of the field there. For
    programs on the CPU.
    """
    return dict(PLAIN)
