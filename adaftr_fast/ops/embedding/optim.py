"""Ops of the optimizers, which update the rows of a batch or all dense weights.

Shapes: R rows of the table, E width, U distinct rows of the batch. ``rows`` [U] are int64 and
strictly increasing; ``grad`` is [U, E]. The CUDA kernels also take rows [M] in any order that
repeat, and add the gradients of each first. ``adaftr_fast/ops/embedding/reference/optim.py``
describes the state of the deferred Adam. The caller of ``dense_adam_`` increments the versions of
the weights.
"""

from __future__ import annotations

import torch

from adaftr_fast.ops.embedding.reference import optim as reference
from adaftr_fast.ops.library import define, library

_BATCH = "Tensor rows, Tensor grad"
_ADAGRAD = (
    f"(Tensor(a!) weight, Tensor(b!) total, {_BATCH}, float lr, float weight_decay, float "
    "eps) -> ()"
)
for _schema, _reference in (
    (
        f"embedding_sgd_(Tensor(a!) weight, {_BATCH}, float lr, float weight_decay) -> ()",
        reference.sgd_,
    ),
    (f"embedding_adagrad_{_ADAGRAD}", reference.adagrad_),
    (f"embedding_rowwise_adagrad_{_ADAGRAD}", reference.rowwise_adagrad_),
    (
        f"embedding_lazy_adam_(Tensor(a!) weight, Tensor(b!) moments, {_BATCH}, float step_size, "
        "float weight_decay, "
        "float eps, float beta1, float beta2) -> ()",
        reference.lazy_adam_,
    ),
    (
        f"embedding_adam_(Tensor(a!) weight, Tensor(b!)[] state, {_BATCH}, float lr) -> ()",
        reference.adam_,
    ),
    (
        "dense_adam_(Tensor(a!)[] weights, Tensor[] grads, Tensor(b!)[] exp_avgs, Tensor(c!)[] "
        "exp_avg_sqs, "
        "Tensor(d!)[] steps, float lr, float beta1, float beta2, float eps) -> ()",
        reference.dense_adam_,
    ),
    ("embedding_adam_flush_(Tensor(a!) weight, Tensor(b!)[] state) -> ()", reference.adam_flush_),
):
    define(_schema, torch.no_grad()(_reference), lambda *_: None)
    # An optimizer step is not differentiable.
    library.impl(_schema.partition("(")[0], torch.library.fallthrough_kernel, "Autograd")
