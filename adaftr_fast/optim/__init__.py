"""Optimizers that update only the rows of ``FusedEmbedding`` tables that a batch looked up. They
take the steps of torch.optim on the other parameters of a model.
"""

from adaftr_fast.optim.adam import Adam, AdamW, LazyAdam
from adaftr_fast.optim.clip import clip_grad_norm_, clip_grad_value_
from adaftr_fast.optim.rows import SGD, Adagrad, RowwiseAdagrad

__all__ = [
    "SGD",
    "Adagrad",
    "Adam",
    "AdamW",
    "LazyAdam",
    "RowwiseAdagrad",
    "clip_grad_norm_",
    "clip_grad_value_",
]
