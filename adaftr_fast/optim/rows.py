"""Optimizers that leave a row unchanged while it has no gradient.

``weight_decay`` is L2, added to the gradient of the rows of the batch: a row that is not looked up
does not decay.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import adaftr_fast.ops.embedding.optim  # noqa: F401  # defines the ops
from adaftr_fast.optim.base import Parameters, RowOptimizer, check_at_least_0, state_table

_ops = torch.ops.adaftr_fast


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
        self, params: Parameters, lr: float = 1e-3, *, weight_decay: float = 0.0, **options: Any
    ) -> None:
        check_at_least_0("SGD", lr=lr, weight_decay=weight_decay)
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay}, options)

    def _new_state(self, weight: nn.Parameter) -> dict[str, Tensor]:
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
        *,
        weight_decay: float = 0.0,
        eps: float = 1e-10,
        initial_accumulator_value: float = 0.0,
        **options: Any,
    ) -> None:
        values = {"lr": lr, "weight_decay": weight_decay, "eps": eps}
        self._initial = initial_accumulator_value
        check_at_least_0(type(self).__name__, **values, initial_accumulator_value=self._initial)
        super().__init__(params, values, options)

    def _twin_options(self, defaults: dict[str, Any]) -> dict[str, Any]:
        return {**defaults, "initial_accumulator_value": self._initial}

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        for weight in self._weights():
            self._state_of(weight)  # as torch.optim.Adagrad, which has state before its first step

    def _new_state(self, weight: nn.Parameter) -> dict[str, Tensor]:
        return {"sum": state_table(weight, *weight.shape).fill_(self._initial)}

    def _whole(self, weight: nn.Parameter, state: Any) -> dict[str, Any]:
        return {"step": torch.tensor(0.0), **state}  # which counts for lr_decay alone


class RowwiseAdagrad(Adagrad):
    """Computes Adagrad with one number per row: G <- G + mean over E of g². Takes the arguments of
    :class:`Adagrad`.

    Parameters that are not tables have Adagrad's G, with a number per element.
    """

    _op = _ops.embedding_rowwise_adagrad_

    def _new_state(self, weight: nn.Parameter) -> dict[str, Tensor]:
        return {"sum": state_table(weight, len(weight)).fill_(self._initial)}

    def _whole(self, weight: nn.Parameter, state: Any) -> dict[str, Any]:
        raise TypeError(
            "RowwiseAdagrad.torch_state_dict: torch.optim has no optimizer with a number per row"
        )
