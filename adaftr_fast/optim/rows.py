"""Optimizers that leave a row unchanged while it has no gradient.

``weight_decay`` is L2, added to the gradient of the rows of the batch: a row that is not looked up
does not decay.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import adaftr_fast.ops.embedding.optim  # noqa: F401  # defines the ops
from adaftr_fast.nn.embedding_table import insert_rows
from adaftr_fast.ops.embedding.lookup import empty_table
from adaftr_fast.optim.base import Parameters, RowOptimizer, check_at_least
from adaftr_fast.optim.dense import DenseAdam

_ops = torch.ops.adaftr_fast


def state_table(weight: Tensor, *size: int) -> Tensor:
    """Returns zeros for optimizer state: float64 beside float64 weights, float32 beside
    all others.
    """
    dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
    return empty_table(*size, device=weight.device, dtype=dtype).zero_()


class SGD(RowOptimizer):
    """Computes w <- w - lr (g + λ w). Equals torch.optim.SGD on sparse gradients.

    Args:
        params: see :class:`RowOptimizer`.
        lr: learning rate >= 0.
        weight_decay: λ >= 0.
        options: see :class:`RowOptimizer`.
    """

    _twin = torch.optim.SGD
    _op = _ops.embedding_sgd_
    _scalars = ("weight_decay",)

    def __init__(
        self, params: Parameters, lr: float = 1e-3, weight_decay: float = 0.0, **options: Any
    ) -> None:
        check_at_least("SGD", 0, lr=lr, weight_decay=weight_decay)
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay}, options)

    def _new_state(self, weight: nn.Parameter) -> dict[str, Any]:
        return {}


class Adagrad(RowOptimizer):
    """Computes G <- G + g², w <- w - lr g / (sqrt(G) + ε). Equals torch.optim.Adagrad.

    Args:
        params: see :class:`RowOptimizer`.
        lr: learning rate >= 0.
        weight_decay: λ >= 0, with g + λ w in place of g.
        eps: ε >= 0.
        initial_accumulator_value: G before the first step, >= 0.
        options: see :class:`RowOptimizer`.
    """

    _twin = torch.optim.Adagrad
    _op = _ops.embedding_adagrad_
    _scalars = ("weight_decay", "eps")

    def __init__(
        self,
        params: Parameters,
        lr: float = 1e-2,
        weight_decay: float = 0.0,
        eps: float = 1e-10,
        initial_accumulator_value: float = 0.0,
        **options: Any,
    ) -> None:
        check_at_least(type(self).__name__, 0, lr=lr, weight_decay=weight_decay, eps=eps)
        check_at_least(type(self).__name__, 0, initial_accumulator_value=initial_accumulator_value)
        self._initial = initial_accumulator_value
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "eps": eps}, options)

    def _twin_options(self, defaults: dict[str, Any]) -> dict[str, Any]:
        return {**defaults, "initial_accumulator_value": self._initial}

    def _grow(self, old: nn.Parameter, new: nn.Parameter, at: int, rows: int) -> None:
        total = self.state[new]["sum"]
        fresh = total.new_full((rows, *total.shape[1:]), self._initial)
        self.state[new]["sum"] = insert_rows(total, at, fresh)

    def _new_state(self, weight: nn.Parameter) -> dict[str, Any]:
        return {"sum": state_table(weight, *weight.shape).fill_(self._initial)}


class RowwiseAdagrad(Adagrad):
    """Computes Adagrad with one number per row: G <- G + mean over E of g². Takes the arguments of
    :class:`Adagrad`.

    Parameters that are not tables have Adagrad's G, with a number per element.
    """

    _op = _ops.embedding_rowwise_adagrad_

    def _new_state(self, weight: nn.Parameter) -> dict[str, Any]:
        return {"sum": state_table(weight, len(weight)).fill_(self._initial)}


class LazyAdam(RowOptimizer):
    """Computes Adam on the rows with a gradient, and leaves the moments of other rows. Equals
    torch.optim.SparseAdam.

    The result is not that of dense Adam, which :class:`adaftr_fast.optim.Adam` computes. Parameters
    that are not tables take the steps of torch.optim.Adam.

    Args:
        params: see :class:`RowOptimizer`.
        lr: learning rate >= 0.
        betas: decay of the first and of the second moment, each in [0, 1).
        eps: ε >= 0.
        weight_decay: λ >= 0, with g + λ w in place of g.
        options: see :class:`RowOptimizer`.
    """

    _twin = DenseAdam

    def __init__(
        self,
        params: Parameters,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        **options: Any,
    ) -> None:
        check_at_least("LazyAdam", 0, lr=lr, eps=eps, weight_decay=weight_decay)
        check_betas("LazyAdam", betas)
        super().__init__(
            params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}, options
        )

    def _new_state(self, weight: nn.Parameter) -> dict[str, Any]:
        rows, width = weight.shape
        return {"step": 0, "moments": state_table(weight, rows, 2, width)}

    def _update(
        self, weight: nn.Parameter, rows: Tensor, grad: Tensor, group: dict[str, Any]
    ) -> None:
        state = self.state[weight]
        beta1, beta2 = group["betas"]
        state["step"] += 1
        step_size = (
            float(group["lr"]) * (1 - beta2 ** state["step"]) ** 0.5 / (1 - beta1 ** state["step"])
        )
        _ops.embedding_lazy_adam_(
            weight,
            state["moments"],
            rows,
            grad,
            step_size,
            group["weight_decay"],
            group["eps"],
            beta1,
            beta2,
        )

    def _entry(self, weight: nn.Parameter) -> dict[str, Any]:
        return moments_entry(self.state[weight]["step"], self.state[weight]["moments"])

    def _restore(self, weight: nn.Parameter, entry: dict[str, Any]) -> None:
        self.state[weight]["step"] = int(entry["step"])
        restore_moments(self.state[weight]["moments"], entry)


def check_betas(name: str, betas: tuple[float, float]) -> None:
    """Raises ValueError unless both betas are in [0, 1)."""
    if not all(0 <= beta < 1 for beta in betas):
        raise ValueError(f"{name}: betas must be in [0, 1), got {betas}")


def moments_entry(step: int, moments: Tensor) -> dict[str, Any]:
    """Returns the state of an Adam under the names of torch.optim; ``moments`` [R, 2, E]."""
    return {
        "step": torch.tensor(float(step)),
        "exp_avg": moments[:, 0].contiguous(),
        "exp_avg_sq": moments[:, 1].contiguous(),
    }


def restore_moments(moments: Tensor, entry: dict[str, Any]) -> None:
    """Writes what ``moments_entry`` returned into ``moments`` [R, 2, E]."""
    moments[:, 0].copy_(entry["exp_avg"])
    moments[:, 1].copy_(entry["exp_avg_sq"])
