"""The log-loss of each task, and weighted means over the rows of a batch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

import adaftr_fast.ops.mlp.op  # noqa: F401  # defines the op
from adaftr_fast._extension import has_cpp_gradients
from adaftr_fast.ops.library import is_eager


def log_loss(
    logits: Tensor,
    labels: Tensor,
    weight: Tensor | None = None,
    weight_mean: Tensor | None = None,
) -> Tensor:
    """Computes the mean log-loss of each column of logits [B, T] over the batch -> [T].

    One op computes it where the CPU kernels apply: in eager mode, in float32 and float64.

    Args:
        logits: [B, T].
        labels: [B, T], in [0, 1].
        weight: see :func:`weighted_mean`.
        weight_mean: see :func:`weighted_mean`.
    """
    if logits.dtype != torch.float64 and torch.is_autocast_enabled(logits.device.type):
        logits = logits.float()  # as autocast does for PyTorch's loss
    if not _has_kernel(logits, labels, weight):
        each = F.binary_cross_entropy_with_logits(logits, labels, reduction="none")
        return weighted_mean(each, weight, weight_mean)
    divisor = len(logits) if weight is None else 1
    means: Tensor = torch.ops.adaftr_fast.log_loss(logits, labels, weight, divisor)[0]
    return means if weight is None else means / _total(weight, weight_mean)


def weighted_mean(x: Tensor, weight: Tensor | None, weight_mean: Tensor | None = None) -> Tensor:
    """Computes the mean of x [B, ...] over the batch, weighted by ``weight`` [B] if given.

    If the rows are a part of a batch, as of one rank, pass the mean weight of the whole batch
    (``Batch.weight_mean``) as ``weight_mean``. The mean over equal parts is then that of the batch.
    """
    if weight is None:
        return x.mean(0)
    summed = (x * weight.view(-1, *(1 for _ in x.shape[1:]))).sum(0)
    return summed / _total(weight, weight_mean)


def _total(weight: Tensor, weight_mean: Tensor | None) -> Tensor:
    return weight.sum() if weight_mean is None else len(weight) * weight_mean


def _has_kernel(logits: Tensor, labels: Tensor, weight: Tensor | None) -> bool:
    if not (is_eager() and has_cpp_gradients()):
        return False
    plain = logits.dtype in (torch.float32, torch.float64) and logits.device.type == "cpu"
    constants = (labels,) if weight is None else (labels, weight)
    return plain and not any(each.requires_grad for each in constants)
