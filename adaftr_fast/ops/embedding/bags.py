"""Ops that pool multi-valued fields: the ids of a bag give one vector.

B batch, F fields, E width, N ids of all bags together, U distinct rows of one batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from adaftr_fast.ops.embedding.reference import bags as reference
from adaftr_fast.ops.library import library

_BAGS = "Tensor values, Tensor bags, Tensor? weights, Tensor offsets"
library.define(f"embedding_bags(Tensor weight, {_BAGS}, bool mean, Tensor[] state) -> Tensor")
library.define(f"embedding_bags_backward(Tensor grad, {_BAGS}, int width, bool mean) -> (Tensor, Tensor)")
library.impl("embedding_bags", reference.embedding_bags, "CompositeExplicitAutograd")
library.impl("embedding_bags_backward", reference.embedding_bags_backward, "CompositeExplicitAutograd")


@torch.library.register_fake("adaftr_fast::embedding_bags", lib=library)
def _fake(weight, values, bags, weights, offsets, mean, state) -> Tensor:
    fields = offsets.shape[0] - 1
    return weight.new_empty((bags.shape[0] - 1) // fields, fields * weight.shape[1])


@torch.library.register_fake("adaftr_fast::embedding_bags_backward", lib=library)
def _backward_fake(grad, values, bags, weights, offsets, width, mean) -> tuple[Tensor, Tensor]:
    unique = torch.library.get_ctx().new_dynamic_size()
    return values.new_empty(unique, dtype=torch.int64), grad.new_empty(unique, width)


def _setup_context(ctx, inputs: tuple, output: Tensor) -> None:
    weight, values, bags, weights, offsets, mean, state = inputs
    ctx.save_for_backward(values, bags, weights, offsets)
    ctx.shape, ctx.mean, ctx.states = weight.shape, mean, len(state)


def _sparse_gradient(ctx, grad: Tensor) -> Tensor:
    values, bags, weights, offsets = ctx.saved_tensors
    if torch.is_grad_enabled():  # create_graph=True: by PyTorch's own ops, which can be differentiated again
        rows, terms = reference.gradient_terms(grad, values, bags, weights, offsets, ctx.shape[1], ctx.mean)
        return torch.sparse_coo_tensor(rows[None], terms.to(grad.dtype), ctx.shape, check_invariants=False).coalesce()
    merge = torch.ops.adaftr_fast.embedding_bags_backward
    rows, sums = merge(grad, values, bags, weights, offsets, ctx.shape[1], ctx.mean)
    return torch.sparse_coo_tensor(rows[None], sums, ctx.shape, is_coalesced=True, check_invariants=False)


def _backward(ctx, grad: Tensor) -> tuple:
    return _sparse_gradient(ctx, grad), None, None, None, None, None, [None] * ctx.states


torch.library.register_autograd("adaftr_fast::embedding_bags", _backward, setup_context=_setup_context, lib=library)


def embedding_bags(
    weight: Tensor,
    values: Tensor,
    bags: Tensor,
    weights: Tensor | None,
    offsets: Tensor,
    mean: bool,
    state: Sequence[Tensor] = (),
) -> Tensor:
    """Pool the ids of each bag into one vector.

    Args:
        weight: [R, E], floating point, contiguous.
        values: [N], int32 or int64; an id counts from 0 within its field.
        bags: [B * F + 1], int64, rising from 0 to N; bag b * F + f holds field f of row b.
        weights: [N] factors of the ids, in float64 beside a float64 table, else float32; no gradient. Or None.
        offsets: [F + 1], int64; field f owns the rows ``offsets[f]`` to ``offsets[f + 1] - 1``.
        mean: divide by the number of ids in the bag.
        state: of a deferred Adam (adaftr_fast.optim.Adam), to read rows through to their present values.

    Returns:
        [B, F * E]; an empty bag gives zeros. The gradient of weight is a coalesced sparse tensor, and can
        itself be differentiated (create_graph=True).

    Raises:
        IndexError: an id is out of its field's range; the message names the position, the id and the range.
        TypeError, ValueError: a dtype or a shape does not fit.
    """
    return torch.ops.adaftr_fast.embedding_bags(weight, values, bags, weights, offsets, mean, list(state))
