"""Ops of the multi-field embedding: look-up, and the backward that merges duplicate ids.

B batch, F fields, E width, R rows of all fields together, U distinct rows of one batch.
The gradient of ``weight`` is a sparse tensor whose indices rise strictly; it passes through ``torch.compile``
because the merge is an op of dense tensors and the sparse tensor is only put together around its results.
"""

from __future__ import annotations

import torch
from torch import Tensor

from adaftr_fast._extension import is_built
from adaftr_fast.ops.embedding.reference import lookup as reference
from adaftr_fast.ops.library import library

library.define("fused_embedding(Tensor weight, Tensor ids, Tensor offsets) -> Tensor")
library.define("fused_embedding_backward(Tensor grad, Tensor ids, Tensor offsets, int width) -> (Tensor, Tensor)")
library.define("strictly_rising(Tensor rows) -> bool")
library.define("advise_huge_pages_(Tensor(a!) table) -> ()")
library.impl("fused_embedding", reference.fused_embedding, "CompositeExplicitAutograd")
library.impl("fused_embedding_backward", reference.fused_embedding_backward, "CompositeExplicitAutograd")
library.impl("strictly_rising", reference.strictly_rising, "CompositeExplicitAutograd")
library.impl("advise_huge_pages_", lambda table: None, "CompositeExplicitAutograd")


@torch.library.register_fake("adaftr_fast::fused_embedding", lib=library)
def _fused_embedding_fake(weight: Tensor, ids: Tensor, offsets: Tensor) -> Tensor:
    return weight.new_empty(ids.shape[0], ids.shape[1] * weight.shape[1])


@torch.library.register_fake("adaftr_fast::fused_embedding_backward", lib=library)
def _fused_embedding_backward_fake(grad: Tensor, ids: Tensor, offsets: Tensor, width: int) -> tuple[Tensor, Tensor]:
    unique = torch.library.get_ctx().new_dynamic_size()
    return ids.new_empty(unique, dtype=torch.int64), grad.new_empty(unique, width)


def _setup_context(ctx, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    weight, ids, offsets = inputs
    ctx.save_for_backward(ids, offsets)
    ctx.shape = weight.shape


def sparse_gradient(grad: Tensor, ids: Tensor, offsets: Tensor, shape: torch.Size) -> Tensor:
    """The coalesced sparse gradient of a table [R, E] from that of its look-ups, grad [B, F * E]."""
    if torch.is_grad_enabled():  # create_graph=True: by PyTorch's own ops, which can be differentiated again
        rows = (ids + offsets[:-1]).flatten()
        return torch.sparse_coo_tensor(rows[None], grad.reshape(-1, shape[1]), shape, check_invariants=False).coalesce()
    rows, values = torch.ops.adaftr_fast.fused_embedding_backward(grad, ids, offsets, shape[1])
    # Nothing to check or to merge: the rows are in range, distinct and sorted.
    return torch.sparse_coo_tensor(rows[None], values, shape, is_coalesced=True, check_invariants=False)


def _backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
    return sparse_gradient(grad, *ctx.saved_tensors, ctx.shape), None, None


if not is_built():  # csrc/cpu/embedding/autograd.cpp does the same, faster
    torch.library.register_autograd(
        "adaftr_fast::fused_embedding", _backward, setup_context=_setup_context, lib=library
    )


def fused_embedding(weight: Tensor, ids: Tensor, offsets: Tensor) -> Tensor:
    """Look up one id of each field in one table that holds the fields one after another.

    Args:
        weight: [R, E], floating point, contiguous.
        ids: [B, F], int32 or int64; column f counts from 0 within field f.
        offsets: [F + 1], int64; field f owns the rows ``offsets[f]`` to ``offsets[f + 1] - 1``.

    Returns:
        [B, F * E], the rows side by side in field order. The gradient of weight is a coalesced sparse tensor, and can
        itself be differentiated (create_graph=True).

    Raises:
        IndexError: an id is out of its field's range; the message names the position, the id and the range.
        TypeError: ids are neither int32 nor int64.
        ValueError: a shape does not fit.
    """
    return torch.ops.adaftr_fast.fused_embedding(weight, ids, offsets)


def coalesce_gradient(weight: Tensor) -> None:
    """Make ``weight.grad`` coalesced again; a post-accumulate-grad hook for weight [R, E].

    Autograd drops the mark "coalesced" when it takes a sparse gradient over, and adds two of them by laying
    their rows one after another.
    """
    grad = weight.grad
    if grad is None or not grad.is_sparse or grad.is_coalesced():
        return
    if grad.requires_grad:  # create_graph=True
        weight.grad = grad.coalesce()
        return
    rows = grad._indices()[0]
    if torch.ops.adaftr_fast.strictly_rising(rows):
        grad._coalesced_(True)
        return
    # Merging duplicate rows is the backward of a single field of R rows.
    whole = torch.tensor([0, weight.shape[0]], device=rows.device)
    merge = torch.ops.adaftr_fast.fused_embedding_backward
    rows, values = merge(grad._values(), rows[:, None], whole, weight.shape[1])
    weight.grad = torch.sparse_coo_tensor(rows[None], values, weight.shape, is_coalesced=True, check_invariants=False)


def empty_table(*size: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Tensor:
    """An uninitialised tensor for rows that are looked up at random: on the CPU it asks for huge pages."""
    table = torch.empty(*size, device=device, dtype=dtype)
    torch.ops.adaftr_fast.advise_huge_pages_(table)
    return table
