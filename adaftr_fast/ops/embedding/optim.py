"""Ops of the optimizers, which update the rows of a batch or all dense weights.

Shapes: R rows of the table, E width, U distinct rows of the batch. ``rows`` [U] are int64 and strictly increasing;
``grad`` is [U, E]. The CUDA kernels also take rows [M] in any order that repeat, and add the gradients of each first.
``adaftr_fast/ops/embedding/reference/optim.py`` describes the state of the deferred Adam.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

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
}
for _name, (_schema, _reference) in _SCHEMAS.items():
    library.define(_name + _schema)
    library.impl(_name, torch.no_grad()(_reference), "CompositeExplicitAutograd")
    library.impl(_name, torch.library.fallthrough_kernel, "Autograd")  # an optimizer step is not differentiable
    torch.library.register_fake(f"adaftr_fast::{_name}", lambda *_: None, lib=library)
