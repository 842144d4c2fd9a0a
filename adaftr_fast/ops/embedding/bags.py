"""Ops that pool multi-valued fields: each bag of ids gives one vector.

Shapes: B batch, F fields, E width, N ids of all bags, R rows of all fields, U distinct rows of one
batch.

``offsets`` and ``per_sample_weights`` are those of ``torch.nn.EmbeddingBag``; ``field_offsets``
holds the first row of each field.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from adaftr_fast.ops.embedding.lookup import (
    fused_embedding,
    gradient_of_terms,
    merges_later,
    runs_cuda_kernels,
    some_of,
    sparse_rows,
)
from adaftr_fast.ops.embedding.reference import bags as reference
from adaftr_fast.ops.library import define, differentiates_references, library

PAD = -1
"""The id at positions behind the last bag, which only ``select_bags`` on CUDA leaves."""


def _bags_fake(
    weight: Tensor,
    values: Tensor,
    offsets: Tensor,
    _: Any,
    field_offsets: Tensor,
    *__: Any,
    **___: Any,
) -> Tensor:
    fields = field_offsets.shape[0] - 1
    return weight.new_empty((offsets.shape[0] - 1) // fields, fields * weight.shape[1])


def _backward_fake(
    grad: Tensor,
    values: Tensor,
    offsets: Tensor,
    _: Any,
    field_offsets: Tensor,
    width: int,
    mean: bool,
) -> tuple[Tensor, Tensor]:
    unique = some_of(values)
    return values.new_empty(unique, dtype=torch.int64), grad.new_empty(unique, width)


def _select_bags_fake(
    values: Tensor, offsets: Tensor, _: Any, chosen: Sequence[int], fields: int
) -> tuple[Tensor, Tensor]:
    batch = (offsets.shape[0] - 1) // fields
    return offsets.new_empty(some_of(values)), offsets.new_empty(batch * len(chosen) + 1)


define(
    "bag_of_id(Tensor values, Tensor offsets) -> Tensor",
    reference.bag_of_id,
    lambda values, offsets: offsets.new_empty(values.shape[0]),
)
_BAGS = "Tensor values, Tensor offsets, Tensor? per_sample_weights"
define(
    f"embedding_bags(Tensor weight, {_BAGS}, Tensor field_offsets, bool mean, Tensor[] state, *, "
    "bool sparse=True) -> Tensor",
    lambda *arguments, sparse=True: reference.embedding_bags(*arguments),
    _bags_fake,
)
define(
    f"embedding_bags_backward(Tensor grad, {_BAGS}, Tensor field_offsets, int width, bool mean) -> "
    "(Tensor, Tensor)",
    reference.embedding_bags_backward,
    _backward_fake,
)
define(
    f"select_bags({_BAGS}, int[] chosen, int fields) -> (Tensor, Tensor)",
    reference.select_bags,
    _select_bags_fake,
)


def _setup_context(
    ctx: Any, inputs: tuple[Any, ...], keyword_only_inputs: dict[str, Any], output: Tensor
) -> None:
    weight, values, offsets, per_sample_weights, field_offsets, mean, state = inputs
    learned = per_sample_weights is not None and per_sample_weights.requires_grad
    table = [weight, *state] if learned else []
    ctx.save_for_backward(values, offsets, per_sample_weights, field_offsets, *table)
    ctx.shape = weight.shape
    ctx.mean = mean
    ctx.states = len(state)
    ctx.sparse = keyword_only_inputs["sparse"]


def bag_of_id(values: Tensor, offsets: Tensor) -> Tensor:
    """Returns the bag of each position of values [N], given values and offsets, [N]; at a position
    behind the last bag, the number of bags.

    It is an op because ONNX lacks the search; ``plain_decompositions`` does without.
    """
    if differentiates_references():
        return reference.bag_of_id(values, offsets)
    found: Tensor = torch.ops.adaftr_fast.bag_of_id(values, offsets)
    return found


def _table_gradient(ctx: Any, grad: Tensor) -> Tensor:
    values, offsets, per_sample_weights, field_offsets = ctx.saved_tensors[:4]
    width = ctx.shape[1]
    # create_graph=True: PyTorch's own ops can be differentiated again
    again = torch.is_grad_enabled()
    on_cuda = runs_cuda_kernels(grad)
    if again or (merges_later(grad) and not on_cuda):
        # without the ids behind the last bag; the host waits for their number
        if again and on_cuda:
            values = values[: offsets[-1]]
            per_sample_weights = (
                None if per_sample_weights is None else per_sample_weights[: offsets[-1]]
            )
        # of ids that the look-up checked; no size depends on a value
        bag = bag_of_id(values, offsets)
        rows = values + field_offsets[bag % (field_offsets.shape[0] - 1)]
        terms = reference.gradient_terms(
            grad, bag, offsets, per_sample_weights, width, ctx.mean
        ).to(grad.dtype)
        return gradient_of_terms(rows, terms, ctx.shape, ctx.sparse)
    bags = (values, offsets, per_sample_weights, field_offsets)
    rows, sums = torch.ops.adaftr_fast.embedding_bags_backward(grad, *bags, width, ctx.mean)
    if ctx.sparse:
        return sparse_rows(rows, sums, ctx.shape, coalesced=not on_cuda)
    return gradient_of_terms(rows, sums, ctx.shape, False)


def _factor_gradient(ctx: Any, grad: Tensor) -> Tensor | None:
    """Returns the gradient of per_sample_weights [N], from grad [B, F * E], or None where they need
    none.

    The vector of a bag is the sum of w_i times row r_i, so dL/dw_i is the inner product of the
    bag's gradient and r_i. The mean divides both by the number of ids in the bag. Rows are read as
    the look-up reads them.
    """
    values, offsets, _, field_offsets, *table = ctx.saved_tensors
    if not table:
        return None
    (weight, *state), fields, bags = table, field_offsets.shape[0] - 1, offsets.shape[0] - 1
    bag = bag_of_id(values, offsets)
    inside = bag < bags  # not behind the last bag, where CUDA leaves PAD
    bag = bag.clamp(max=bags - 1)
    ids = torch.where(inside, values + field_offsets[bag % fields], 0)[:, None]
    one_field = field_offsets[::fields].contiguous()  # [0, R]
    rows = fused_embedding(weight, ids, one_field, state, sparse=ctx.sparse)
    dtype = reference.compute_dtype(grad)
    gradient = (rows.to(dtype) * grad.to(dtype).reshape(-1, weight.shape[1])[bag]).sum(1)
    if ctx.mean:
        gradient = gradient / offsets.diff()[bag]
    return torch.where(inside, gradient, 0)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | list[None] | None, ...]:
    of_weight = _table_gradient(ctx, grad) if ctx.needs_input_grad[0] else None
    return of_weight, None, None, _factor_gradient(ctx, grad), None, None, [None] * ctx.states


torch.library.register_autograd(
    "adaftr_fast::embedding_bags", _backward, setup_context=_setup_context, lib=library
)


def embedding_bags(
    weight: Tensor,
    values: Tensor,
    offsets: Tensor,
    per_sample_weights: Tensor | None,
    field_offsets: Tensor,
    mean: bool,
    state: Sequence[Tensor] = (),
    *,
    sparse: bool = True,
) -> Tensor:
    """Pools the ids of each bag into one vector.

    The gradient of ``weight`` can itself be differentiated (create_graph=True).

    Args:
        weight: [R, E], floating point, contiguous.
        values: [N] ids, int32 or int64, each counted from 0 within its field.
        offsets: [B * F + 1] int64, rising from 0 to N; bag b * F + f holds field f of row b.
        per_sample_weights: [N] factors of the ids, float64 for a float64 table and float32
            otherwise, or None.
        field_offsets: [F + 1] int64; field f owns the rows ``field_offsets[f]`` to
            ``field_offsets[f + 1] - 1``.
        mean: if True, divides the sum, weighted or not, by the number of ids in the bag.
        state: the state of a deferred Adam (adaftr_fast.optim.Adam). If given, rows are read at
            their current values.
        sparse: whether the gradient of ``weight`` is sparse, coalesced except on CUDA, or dense.

    Returns:
        [B, F * E]; zeros for an empty bag.

    Raises:
        IndexError: an id is out of its field's range; the message names the position, the id and
            the range. On CUDA a later op, or ``raise_bad_ids``, raises it, and the id counts as a
            vector of zeros; so with bad offsets.
        TypeError, ValueError: an argument has the wrong dtype or shape.
    """
    arguments = (weight, values, offsets, per_sample_weights, field_offsets, mean, list(state))
    if differentiates_references():
        return reference.embedding_bags(*arguments)
    return torch.ops.adaftr_fast.embedding_bags(*arguments, sparse=sparse)


def select_bags(
    values: Tensor,
    offsets: Tensor,
    per_sample_weights: Tensor | None,
    chosen: Sequence[int],
    fields: int,
) -> tuple[Tensor, Tensor]:
    """Selects the bags of some fields. It is an op, so that programs of torch.export check their
    input too.

    Args:
        values: [N], int32 or int64, the ids of all bags.
        offsets: [B * F + 1], int64, rising from 0 to N; bag b * F + f holds field f of row b.
        per_sample_weights: [N] factors of the ids, or None. Only their shape is checked.
        chosen: the indices of the C selected fields, in ascending order.
        fields: F, the number of fields.

    Returns:
        The positions in ``values`` of the selected fields' ids, int64 [M], and their bags' offsets,
        int64 [B * C + 1]. On CUDA, where the host does not know M, N positions: those from the last
        offset on have no meaning.

    Raises:
        TypeError, ValueError: an argument has the wrong dtype or shape.
    """
    arguments = (values, offsets, per_sample_weights, chosen, fields)
    if differentiates_references():
        return reference.select_bags(*arguments)
    found: tuple[Tensor, Tensor] = torch.ops.adaftr_fast.select_bags(*arguments)
    return found
