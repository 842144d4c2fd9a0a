"""Ops of the optimizers, which update the rows of a batch or all dense weights, and the look-up through Adam's deferred
steps.

Shapes: R rows of the table, E width, U distinct rows of the batch. ``rows`` [U] are int64 and strictly increasing;
``grad`` is [U, E]. The CUDA kernels also take rows [M] in any order that repeat, and add the gradients of each first.
``adaftr_fast/ops/embedding/reference/optim.py`` describes the state of the deferred Adam.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from adaftr_fast._extension import is_built
from adaftr_fast.ops.embedding.lookup import sparse_gradient
from adaftr_fast.ops.embedding.reference import optim as reference
from adaftr_fast.ops.library import library

_BATCH = "Tensor rows, Tensor grad"
_ADAGRAD = f"(Tensor(a!) weight, Tensor(b!) total, {_BATCH}, float lr, float weight_decay, float eps) -> ()"
_SCHEMAS: dict[str, tuple[str, Callable[..., Any]]] = {
    "embedding_sgd_": (f"(Tensor(a!) weight, {_BATCH}, float lr, float weight_decay) -> ()", reference.sgd_),
    "embedding_adagrad_": (_ADAGRAD, reference.adagrad_),
    "embedding_rowwise_adagrad_": (_ADAGRAD, reference.rowwise_adagrad_),
    "embedding_lazy_adam_": (
        f"(Tensor(a!) weight, Tensor(b!) moments, {_BATCH}, float step_size, float weight_decay, float eps, "
        "float beta1, float beta2) -> ()",
        reference.lazy_adam_,
    ),
    "embedding_adam_": (f"(Tensor(a!) weight, Tensor(b!)[] state, {_BATCH}, float lr) -> ()", reference.adam_),
    "dense_adam_": (
        "(Tensor(a!)[] weights, Tensor[] grads, Tensor(b!)[] exp_avgs, Tensor(c!)[] exp_avg_sqs, Tensor(d!)[] steps, "
        "float lr, float beta1, float beta2, float eps) -> ()",
        reference.dense_adam_,
    ),
    "embedding_adam_flush_": ("(Tensor(a!) weight, Tensor(b!)[] state) -> ()", reference.adam_flush_),
    "deferred_embedding": (
        "(Tensor weight, Tensor ids, Tensor field_offsets, Tensor[] state) -> Tensor",
        reference.deferred_embedding,
    ),
}
for _name, (_schema, _reference) in _SCHEMAS.items():
    library.define(_name + _schema)
    library.impl(_name, torch.no_grad()(_reference), "CompositeExplicitAutograd")
    if _name != "deferred_embedding":  # an optimizer step is not differentiable
        library.impl(_name, torch.library.fallthrough_kernel, "Autograd")
        torch.library.register_fake(f"adaftr_fast::{_name}", lambda *_: None, lib=library)


@torch.library.register_fake("adaftr_fast::deferred_embedding", lib=library)
def _deferred_embedding_fake(weight: Tensor, ids: Tensor, field_offsets: Tensor, state: Sequence[Tensor]) -> Tensor:
    return weight.new_empty(ids.shape[0], ids.shape[1] * weight.shape[1])


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    weight, ids, field_offsets, state = inputs
    ctx.save_for_backward(ids, field_offsets)
    ctx.shape = weight.shape
    ctx.states = len(state)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | list[None] | None, ...]:
    ids, field_offsets = ctx.saved_tensors
    # The deferred steps do not depend on this batch, so the gradient is that of the plain look-up.
    return sparse_gradient(grad, ids, field_offsets, ctx.shape), None, None, [None] * ctx.states


if not is_built():  # csrc/cpu/embedding/autograd.cpp registers a faster formula
    torch.library.register_autograd(
        "adaftr_fast::deferred_embedding", _backward, setup_context=_setup_context, lib=library
    )


def deferred_embedding(weight: Tensor, ids: Tensor, field_offsets: Tensor, state: Sequence[Tensor]) -> Tensor:
    """Looks up the current values of rows whose steps of Adam are deferred; writes nothing.

    Arguments, result and errors are those of ``fused_embedding``; ``state`` is the optimizer's list of tensors.
    """
    return torch.ops.adaftr_fast.deferred_embedding(weight, ids, field_offsets, state)
