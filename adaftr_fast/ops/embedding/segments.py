"""Ops on the vectors of the ids of bags, one vector per id, where a bag is not pooled by its mean
or sum alone.

Shapes: B bags, N ids of all bags, E width, R rows of a table. ``offsets`` [B + 1] int64 rise from 0
to N. No op adds in an order that differs from call to call, on any device.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from adaftr_fast.ops.embedding.bags import PAD, bag_of_id
from adaftr_fast.ops.embedding.lookup import runs_cuda_kernels
from adaftr_fast.ops.embedding.reference.lookup import out_of_range, value_at, values_of
from adaftr_fast.ops.library import define, differentiates_references, library


def _rows_of_field(ids: Tensor, first: int, rows: int) -> Tensor:
    if ids.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"look_up_field: ids must be int32 or int64, got {ids.dtype}")
    if ids.dim() != 1:
        raise ValueError(f"look_up_field: ids must be [N], got {list(ids.shape)}")
    if runs_cuda_kernels(ids):  # the look-up reports -1, without making the host wait
        return torch.where((ids < 0) | (ids >= rows), -1, ids.long() + first)
    check_field(ids, rows, "the field")
    return ids.long() + first


def check_field(ids: Tensor, rows: int, field: str) -> None:
    """Raises IndexError if an id of ids [N] is not in the range of a field of ``rows`` ids, which
    the error calls ``field``.
    """
    bad = values_of((ids < 0) | (ids >= rows)).nonzero()
    if len(bad):
        position = bad[0].tolist()
        found = f"ids{position} = {value_at(ids, position)}"
        raise out_of_range("look_up_field", found, field, rows)


def _sum_bags(vectors: Tensor, offsets: Tensor) -> Tensor:
    size = vectors.shape[0]
    positions = torch.arange(size, device=vectors.device)
    if runs_cuda_kernels(vectors):
        positions = positions.masked_fill(positions >= offsets[-1], PAD)
    whole = torch.tensor([0, size], device=vectors.device)
    return torch.ops.adaftr_fast.embedding_bags(
        vectors.contiguous(), positions, offsets, None, whole, False, []
    )


def _repeat_by_bag(vectors: Tensor, offsets: Tensor, size: int) -> Tensor:
    bag = bag_of_id(offsets.new_empty(size), offsets)
    # not behind the last bag, where CUDA leaves ids without meaning
    inside = bag < vectors.shape[0]
    repeated = vectors.index_select(0, torch.where(inside, bag, 0))
    return torch.where(inside[:, None], repeated, 0)


define(
    "rows_of_field(Tensor ids, int first, int rows) -> Tensor",
    _rows_of_field,
    lambda ids, *_: ids.new_empty(ids.shape, dtype=torch.int64),
)
define(
    "sum_bags(Tensor vectors, Tensor offsets) -> Tensor",
    _sum_bags,
    lambda vectors, offsets: vectors.new_empty(offsets.shape[0] - 1, vectors.shape[1]),
)
define(
    "repeat_by_bag(Tensor vectors, Tensor offsets, SymInt size) -> Tensor",
    _repeat_by_bag,
    lambda vectors, offsets, size: vectors.new_empty(size, vectors.shape[1]),
)


def _setup_sum(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    vectors, offsets = inputs
    ctx.save_for_backward(offsets)
    ctx.size = vectors.shape[0]


def _backward_of_sum(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    (offsets,) = ctx.saved_tensors
    return repeat_by_bag(grad, offsets, ctx.size), None


def _setup_repeat(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(inputs[1])


def _backward_of_repeat(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
    (offsets,) = ctx.saved_tensors
    return sum_bags(grad, offsets), None, None


torch.library.register_autograd(
    "adaftr_fast::sum_bags", _backward_of_sum, setup_context=_setup_sum, lib=library
)
torch.library.register_autograd(
    "adaftr_fast::repeat_by_bag", _backward_of_repeat, setup_context=_setup_repeat, lib=library
)


def rows_of_field(ids: Tensor, first: int, rows: int) -> Tensor:
    """Returns the table rows of ids [N] of a field, int64 [N], given its first row and its number
    of rows.

    Errors name ``FusedEmbedding.look_up_field``, which calls it.

    Raises:
        IndexError: an id is out of range. On CUDA its row is -1, which the look-up reports.
        TypeError: ids are neither int32 nor int64.
        ValueError: ids are not [N].
    """
    if differentiates_references():
        return _rows_of_field(ids, first, rows)
    found: Tensor = torch.ops.adaftr_fast.rows_of_field(ids, first, rows)
    return found


def sum_bags(vectors: Tensor, offsets: Tensor) -> Tensor:
    """Returns the sum of the vectors [N, E] of each bag, [B, E]; zeros for an empty bag.

    Raises:
        ValueError: offsets do not rise from 0 to N; on CUDA a later op raises it.
    """
    if differentiates_references():
        # the last one of ids behind the last bag, on CUDA
        sums = vectors.new_zeros(len(offsets), vectors.shape[1])
        bag = bag_of_id(offsets.new_empty(vectors.shape[0]), offsets)
        return sums.index_add(0, bag, vectors)[:-1]
    return torch.ops.adaftr_fast.sum_bags(vectors, offsets)


def max_bags(vectors: Tensor, offsets: Tensor, counted: Tensor) -> Tensor:
    """Returns the largest elements of the vectors [N, E] of each bag, [B, E]; zeros for an empty
    bag.

    It is composed of PyTorch's ops: one pass over the vectors, which are stored. Equal largest
    elements share the gradient, as in torch.amax.

    Args:
        vectors: [N, E], floating point.
        offsets: [B + 1], int64.
        counted: bool [N], False where a vector is not of its bag.
    """
    bags = offsets.shape[0] - 1
    bag = bag_of_id(offsets.new_empty(vectors.shape[0]), offsets)
    # the last one of what does not count, and on CUDA of ids behind the last bag
    bag = torch.where(counted, bag, bags)[:, None].expand_as(vectors)
    largest = vectors.new_zeros(bags + 1, vectors.shape[1])
    return largest.scatter_reduce(0, bag, vectors, "amax", include_self=False)[:-1]


def repeat_by_bag(vectors: Tensor, offsets: Tensor, size: int) -> Tensor:
    """Returns the vector of each id's bag, [N, E], given those of the bags, [B, E], and N =
    ``size``.
    """
    if differentiates_references():
        return _repeat_by_bag(vectors, offsets, size)
    return torch.ops.adaftr_fast.repeat_by_bag(vectors, offsets, size)
