"""The multi-field embedding in plain PyTorch: the ground truth that the kernels are tested against.

Shapes: B batch, F fields, E width, R rows of all fields, U distinct rows of one batch.

Forward: ``out[b, f] = weight[field_offsets[f] + ids[b, f]]``. Backward: the gradient of a row is
the sum of the gradients of its look-ups, ``dweight[r] = sum over (b, f) with field_offsets[f] +
ids[b, f] = r of grad[b, f]``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from adaftr_fast.ops.embedding.reference.optim import caught_up


def check_fields(op: str, field_offsets: Tensor) -> None:
    """Checks that field_offsets are int64 [F + 1] with F >= 1."""
    if field_offsets.dim() != 1 or field_offsets.dtype != torch.int64 or len(field_offsets) < 2:
        got = f"{field_offsets.dtype} {list(field_offsets.shape)}"
        raise ValueError(f"{op}: field_offsets must be int64 [F + 1] of F >= 1 fields, got {got}")


def check_columns(op: str, ids: Tensor, fields: int) -> None:
    """Checks that ids are int32 or int64 [B, F]."""
    if ids.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"{op}: ids must be int32 or int64, got {ids.dtype}")
    if ids.dim() != 2 or ids.shape[1] != fields:
        raise ValueError(
            f"{op}: ids must be [B, {fields}] (one column per field), got {list(ids.shape)}"
        )


def values_of(x: Tensor) -> Tensor:
    """Returns the values of a tensor that transforms of torch.func have wrapped, with the
    dimensions of vmap; the result of an elementwise op has them first.
    """
    while torch._C._functorch.is_functorch_wrapped_tensor(x):
        x = torch._C._functorch.get_unwrapped(x)
    return x


def value_at(x: Tensor, position: Sequence[int]) -> int:
    """Returns one of the values of integers x, at a position among the values of a tensor of its
    shape.
    """
    values = values_of(x + 0)
    return int(values[tuple(position[len(position) - values.dim() :])])


def out_of_range(op: str, found: str, field: str, rows: int) -> IndexError:
    """Returns the error for an id that is not in a field's range.

    Args:
        op: what was called.
        found: the id and its place.
        field: what the field is called, as of ``named_field``.
        rows: the number of ids of the field.
    """
    return IndexError(f"{op}: {found} is out of range for {field}, whose ids are 0 to {rows - 1}")


def named_field(f: int, names: Sequence[str] = ()) -> str:
    """Returns what errors call a field: its position, and its name if it has another one."""
    return f"field {f} ({names[f]!r})" if names and names[f] != str(f) else f"field {f}"


def check_ids(op: str, ids: Tensor, field_offsets: Tensor, names: Sequence[str] = ()) -> None:
    """Checks that ids are int32 or int64 [B, F] and within their fields' ranges; the error names
    the first bad id, and its field by ``names``.
    """
    check_fields(op, field_offsets)
    check_columns(op, ids, len(field_offsets) - 1)
    bad = values_of((ids < 0) | (ids >= field_offsets.diff())).nonzero()
    if len(bad):
        position = bad[0].tolist()
        f = position[-1]
        rows = int(field_offsets[f + 1] - field_offsets[f])
        found = f"ids{position} = {value_at(ids, position)}"
        raise out_of_range(op, found, named_field(f, names), rows)


def fused_embedding(
    weight: Tensor, ids: Tensor, field_offsets: Tensor, state: Sequence[Tensor] = ()
) -> Tensor:
    """Looks up weight [R, E] at ids [B, F]; the rows of field f begin at ``field_offsets[f]`` ->
    [B, F * E].

    With the ``state`` of a deferred Adam, rows that have skipped steps are read at their current
    values.
    """
    check_ids("fused_embedding", ids, field_offsets)
    rows = embedding_rows(ids, field_offsets)
    found = weight[rows]
    if state:
        found = caught_up("fused_embedding", weight, state, rows)[0].to(weight.dtype)
    return found.reshape(len(ids), ids.shape[1] * weight.shape[1])


def fused_embedding_backward(
    grad: Tensor, ids: Tensor, field_offsets: Tensor, width: int
) -> tuple[Tensor, Tensor]:
    """Merges grad [B, F * E] -> the distinct rows in ascending order [U], and their summed
    gradients [U, E].
    """
    check_ids("fused_embedding_backward", ids, field_offsets)
    return merge_rows(embedding_rows(ids, field_offsets), grad.reshape(-1, width))


def embedding_and_squares_backward(
    grad: Tensor,
    ids: Tensor,
    field_offsets: Tensor,
    width: int,
    looked_up: Tensor,
    of_squares: Tensor,
) -> tuple[Tensor, Tensor]:
    """Merges the gradient of look-ups whose sum of squares has the gradient ``of_squares``, 0-dim.

    That is grad + 2 of_squares looked_up, both [B, F * E], in place of grad of
    ``fused_embedding_backward``.
    """
    return fused_embedding_backward(grad + 2 * of_squares * looked_up, ids, field_offsets, width)


def embedding_rows(ids: Tensor, field_offsets: Tensor) -> Tensor:
    """Returns the table's row of each id of ids [B, F], int64 [B * F]."""
    return (ids + field_offsets[:-1]).flatten()


def merge_rows(rows: Tensor, grad: Tensor, num_rows: int = 0) -> tuple[Tensor, Tensor]:
    """Sums the gradients grad [M, E] of each row -> the distinct rows in ascending order [U], and
    their sums [U, E].
    """
    unique, inverse = torch.unique(rows, return_inverse=True)
    return unique, grad.new_zeros(len(unique), grad.shape[1]).index_add_(0, inverse, grad)


def strictly_rising(rows: Tensor) -> bool:
    """Returns whether rows [U] are distinct and sorted."""
    return bool((rows[1:] > rows[:-1]).all())
