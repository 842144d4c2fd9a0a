"""Ops of the multi-field embedding: the look-ups, and the backward that merges duplicate ids.

With the state of a deferred Adam (``adaftr_fast/ops/embedding/reference/optim.py`` describes it), a
look-up reads rows at their current values; it writes nothing.

Shapes: B batch, F fields, E width, R rows of all fields, U distinct rows of one batch.

The gradient of ``weight`` is a sparse tensor whose indices are strictly increasing, or a dense one,
as ``sparse`` says. Graphs of ``torch.compile`` return a sparse one with a row per look-up, because
a graph breaks at an op whose result depends on values in its size; a hook of the parameter merges
the rows outside of the graph. Inductor compiles graphs with dense gradients alone.

``embedding_and_squares`` also returns the sum of the squares of its result, for a penalty on the
looked-up rows. The gradient of the penalty is added where the gradients of the look-ups are merged,
so that none of the size of the look-ups [B, F * E] is written for it.

``field_offsets`` holds the first row of each field.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from adaftr_fast._extension import has_cpp_gradients, has_cuda_kernels
from adaftr_fast.ops.embedding.reference import lookup as reference
from adaftr_fast.ops.library import define, differentiates_references, key_of_cpp_gradient, library
from adaftr_fast.ops.norms import squared_norm


def runs_cuda_kernels(tensor: Tensor) -> bool:
    """Returns whether the CUDA kernels run the embedding's ops on ``tensor``. They never make the
    host wait.

    So where a size depends on values, they take a bound. The gradient of a table stays uncoalesced,
    with a row per look-up, until an optimizer's op merges it. ``merge_rows`` and ``select_bags``
    return as many rows as they take.
    """
    return tensor.is_cuda and has_cuda_kernels()


def merges_later(grad: Tensor) -> bool:
    """Returns whether the gradient of a table keeps a row per look-up, for a hook or an optimizer
    to merge.

    It does where CUDA kernels run, and in graphs of torch.compile, whose tensors are of a subclass
    while it traces.
    """
    return runs_cuda_kernels(grad) or type(grad) is not Tensor


def some_of(rows: Tensor) -> Any:
    """Returns a size up to the number of rows that depends on values, or that number, which CUDA
    kernels take in its place.
    """
    from torch.fx.experimental.symbolic_shapes import statically_known_true  # takes long to import

    # inductor cannot read some of no rows
    if runs_cuda_kernels(rows) or statically_known_true(rows.shape[0] == 0):
        return rows.shape[0]
    return torch.library.get_ctx().new_dynamic_size()


def _merged_fake(
    grad: Tensor, ids: Tensor, field_offsets: Tensor, width: int, *_: Tensor
) -> tuple[Tensor, Tensor]:
    unique = torch.library.get_ctx().new_dynamic_size()
    return ids.new_empty(unique, dtype=torch.int64), grad.new_empty(unique, width)


def _merge_rows_fake(rows: Tensor, grad: Tensor, num_rows: int) -> tuple[Tensor, Tensor]:
    unique = some_of(rows)
    return rows.new_empty(unique), grad.new_empty(unique, grad.shape[1])


def _embedding_and_squares(
    weight: Tensor, ids: Tensor, field_offsets: Tensor, state: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    looked_up = fused_embedding(weight, ids, field_offsets, state)
    return looked_up, squared_norm([looked_up])


_IDS = "Tensor ids, Tensor field_offsets"
define(
    f"fused_embedding(Tensor weight, {_IDS}, Tensor[] state, *, bool sparse=True) -> Tensor",
    lambda *arguments, sparse=True: reference.fused_embedding(*arguments),
    lambda weight, ids, *_, **__: weight.new_empty(ids.shape[0], ids.shape[1] * weight.shape[1]),
)
define(
    f"fused_embedding_backward(Tensor grad, {_IDS}, int width) -> (Tensor, Tensor)",
    reference.fused_embedding_backward,
    _merged_fake,
)
define(
    f"embedding_and_squares(Tensor weight, {_IDS}, Tensor[] state) -> (Tensor, Tensor)",
    _embedding_and_squares,
    key=key_of_cpp_gradient(),
)
define(
    f"embedding_and_squares_backward(Tensor grad, {_IDS}, int width, Tensor looked_up, Tensor "
    "of_squares)"
    " -> (Tensor, Tensor)",
    reference.embedding_and_squares_backward,
    _merged_fake,
)
define(
    f"embedding_rows({_IDS}) -> Tensor",
    reference.embedding_rows,
    lambda ids, field_offsets: field_offsets.new_empty(ids.numel()),
)
define(
    "merge_rows(Tensor rows, Tensor grad, int num_rows) -> (Tensor, Tensor)",
    reference.merge_rows,
    _merge_rows_fake,
)
define(
    "sum_rows(Tensor rows, Tensor terms, SymInt num_rows) -> Tensor",
    lambda rows, terms, num_rows: merged_rows(
        rows, terms, torch.Size([num_rows, terms.shape[1]])
    ).to_dense(),
    lambda rows, terms, num_rows: terms.new_empty(num_rows, terms.shape[1]),
)
define("strictly_rising(Tensor rows) -> bool", reference.strictly_rising)
define("raise_reported(Tensor device) -> ()", lambda device: None)
define("advise_huge_pages_(Tensor(a!) table) -> ()", lambda table: None)
_ops = torch.ops.adaftr_fast


def _setup_context(
    ctx: Any, inputs: tuple[Any, ...], keyword_only_inputs: dict[str, Any], output: Tensor
) -> None:
    weight, ids, field_offsets, state = inputs
    ctx.save_for_backward(ids, field_offsets)
    ctx.shape = weight.shape
    ctx.sparse = keyword_only_inputs["sparse"]
    ctx.no_gradients = [None] * len(state)


def sparse_rows(rows: Tensor, values: Tensor, shape: torch.Size, coalesced: bool = False) -> Tensor:
    """Returns a sparse tensor of rows [U] of a table with the values [U, E], whose indices are in
    range, and which are distinct and sorted if ``coalesced``.
    """
    return torch.sparse_coo_tensor(
        rows[None], values, shape, is_coalesced=coalesced, check_invariants=False
    )


def merged_rows(rows: Tensor, terms: Tensor, shape: torch.Size) -> Tensor:
    """Returns a sparse tensor with the sum of the terms [M, E] of each of the rows [M] of a table.

    With CUDA kernels it keeps M rows: each distinct row has its sum once, and zeros where it
    repeats. The host does not wait.
    """
    if runs_cuda_kernels(terms):
        found, sums = _ops.merge_rows(rows, terms, shape[0])
        return sparse_rows(found, sums, shape)
    # The backward of a look-up in a single field of R rows merges them.
    field_offsets = torch.tensor([0, shape[0]], device=rows.device)
    merge = _ops.fused_embedding_backward
    found, sums = merge(terms, rows[:, None], field_offsets, shape[1])
    return sparse_rows(found, sums, shape, coalesced=True)


def gradient_of_terms(rows: Tensor, terms: Tensor, shape: torch.Size, sparse: bool) -> Tensor:
    """Returns the gradient of a table [R, E], sparse or dense, given the terms [M, E] of rows [M].

    Rows that repeat in a sparse one are merged later, unless it can be differentiated.
    """
    again = torch.is_grad_enabled()  # create_graph=True: PyTorch's own ops are differentiated again
    if sparse:
        found = sparse_rows(rows, terms, shape)
        return found.coalesce() if again else found
    if again:
        return terms.new_zeros(shape).index_add(0, rows, terms)
    return _ops.sum_rows(rows, terms, shape[0])


def table_gradient(
    grad: Tensor, ids: Tensor, field_offsets: Tensor, shape: torch.Size, sparse: bool = True
) -> Tensor:
    """Returns the gradient of a table [R, E], given the gradient of its look-ups [B, F * E].

    A sparse one is coalesced, unless repeated rows are merged later.
    """
    if sparse and not torch.is_grad_enabled() and not merges_later(grad):
        rows, values = _ops.fused_embedding_backward(grad, ids, field_offsets, shape[1])
        return sparse_rows(rows, values, shape, coalesced=True)
    rows = _ops.embedding_rows(ids, field_offsets)
    return gradient_of_terms(rows, grad.reshape(-1, shape[1]), shape, sparse)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | list[None] | None, ...]:
    ids, field_offsets = ctx.saved_tensors
    # The deferred steps do not depend on this batch, so the gradient is that of the plain look-up.
    of_weight = table_gradient(grad, ids, field_offsets, ctx.shape, ctx.sparse)
    return of_weight, None, None, ctx.no_gradients


if not has_cpp_gradients():  # csrc/autograd/embedding.cpp registers a faster formula
    torch.library.register_autograd(
        "adaftr_fast::fused_embedding", _backward, setup_context=_setup_context, lib=library
    )


def fused_embedding(
    weight: Tensor,
    ids: Tensor,
    field_offsets: Tensor,
    state: Sequence[Tensor] = (),
    *,
    sparse: bool = True,
) -> Tensor:
    """Looks up one id per field in a table that holds the rows of all fields, one field after
    another.

    The gradient of ``weight`` can itself be differentiated (create_graph=True). Under the
    transforms of torch.func and in forward mode, plain PyTorch computes dense ones.

    Args:
        weight: [R, E], floating point, contiguous.
        ids: [B, F], int32 or int64; column f counts from 0 within field f.
        field_offsets: [F + 1] int64; field f owns the rows ``field_offsets[f]`` to
            ``field_offsets[f + 1] - 1``.
        state: the state of a deferred Adam (adaftr_fast.optim.Adam). If given, rows are read at
            their current values.
        sparse: whether the gradient of ``weight`` is sparse, coalesced except on CUDA, or dense.

    Returns:
        [B, F * E], the rows concatenated in field order.

    Raises:
        IndexError: an id is out of its field's range; the message names the position, the id and
            the range. On CUDA a later op, or :func:`raise_bad_ids`, raises it, and the id's vector
            is zero.
        TypeError: ids are neither int32 nor int64.
        ValueError: an argument has the wrong shape.
    """
    if differentiates_references():
        return reference.fused_embedding(weight, ids, field_offsets, state)
    return _ops.fused_embedding(weight, ids, field_offsets, state, sparse=sparse)


embedding_and_squares: Callable[..., tuple[Tensor, Tensor]] = _ops.embedding_and_squares
"""Looks up as :func:`fused_embedding`, whose arguments and errors it has.

Returns the rows [B, F * E], and the sum of the squares of their elements, 0-dim. Both pass a
gradient to ``weight``.
"""


def coalesce_gradient(weight: Tensor) -> None:
    """Coalesces ``weight.grad`` of a table [R, E], or of another parameter.

    Autograd clears the coalesced flag when it takes over a sparse gradient, and adds two sparse
    gradients by concatenating their rows. With CUDA kernels it is merged as by ``merged_rows``.
    """
    grad = weight.grad
    if grad is None or not grad.is_sparse or grad.is_coalesced():
        return
    of_table = (grad.sparse_dim(), grad.dense_dim()) == (1, 1)
    if grad.requires_grad or not of_table:  # by create_graph=True, or torch.gather
        weight.grad = grad.coalesce()
        return
    rows = grad._indices()[0]
    if not runs_cuda_kernels(grad) and _ops.strictly_rising(rows):
        grad._coalesced_(True)
    else:
        weight.grad = merged_rows(rows, grad._values(), weight.shape)


def coalesce_unless_on_cuda(weight: Tensor) -> None:
    """Coalesces ``weight.grad``, unless a CUDA kernel does in the update; a post-accumulate-grad
    hook for a table.
    """
    # reads attributes in a fifth of the time of a DeferredParameter
    with torch._C.DisableTorchFunctionSubclass():
        if not runs_cuda_kernels(weight):
            coalesce_gradient(weight)


def raise_bad_ids(device: torch.device) -> None:
    """Raises the error of a look-up on a CUDA ``device`` that has run; does nothing for other
    devices.

    The host does not wait for look-ups that have not run: synchronize first, or call it where a
    result is read anyway.

    Raises:
        IndexError: an id was out of its field's range. The message names one such id, and its row
            and field.
        ValueError: the offsets of bags did not rise from 0 to the number of ids.
    """
    if device.type == "cuda" and has_cuda_kernels():
        _ops.raise_reported(torch.empty(0, device=device))


def empty_table(
    *size: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
) -> Tensor:
    """Returns an uninitialised tensor for random row access; on the CPU it advises the system to
    use huge pages.
    """
    table = torch.empty(*size, device=device, dtype=dtype)
    _ops.advise_huge_pages_(table)
    return table
