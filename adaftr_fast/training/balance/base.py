"""Base classes of the balances. Shapes: T tasks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from adaftr_fast.errors import TrainingError


class Balance(nn.Module, ABC):
    """Decides what each task contributes to a step.

    The stepper makes it the child ``balance`` of the model that it trains. Its tensors are then moved, trained,
    broadcast and saved in snapshots together with the model's. They are not part of ``state_dict()``, because
    checkpoints hold what predictions need.

    Only the terms of the loss that are named after tasks are balanced; the others keep the weights that they have.

    Args:
        task_names: T names.
    """

    def __init__(self, task_names: Sequence[str]) -> None:
        super().__init__()
        self.task_names = list(task_names)

    def split(self, terms: Mapping[str, Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Returns the losses of the tasks, and the other terms.

        Raises:
            TrainingError: a task has no term.
        """
        for task in self.task_names:
            if task not in terms:
                raise TrainingError(
                    f"training.balance: expected a term of the loss for the task {task!r}, got {', '.join(terms)}"
                )
        others = [term for name, term in terms.items() if name not in self.task_names]
        return [terms[task] for task in self.task_names], others

    def task_weights(self) -> Tensor | None:
        """Returns the learned weights of the tasks' losses, detached [T]; None if there are none."""
        return None

    def after_update(self) -> None:
        """Runs after each update by the optimizers."""

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        pass

    def _load_from_state_dict(self, *_: Any) -> None:
        pass


class LossBalance(Balance):
    """A balance that changes the loss, of which one backward is taken."""

    @abstractmethod
    def total(self, terms: Mapping[str, Tensor], share: float) -> Tensor:
        """Returns the loss to minimize, 0-dim.

        Args:
            terms: the terms of the loss, 0-dim; those of a part of the batch are multiplied by ``share``.
            share: share of the part in the batch.
        """


class GradientBalance(Balance):
    """A balance that combines the gradients of the tasks, each from a backward of its own.

    What it does to a gradient is a factor per task, so a step adds up multiples of the T gradients.
    """

    @abstractmethod
    def factors(self, products: Tensor, losses: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Returns the factors of the tasks' gradients [T]: of shared parameters, and of those that one task has.

        Args:
            products: the inner products of the gradients of the shared parameters, float64 [T, T].
            losses: the losses [T].
            step: number of the step, counted from 1 over all epochs.
        """


def tensor_dtype(model: nn.Module) -> torch.dtype:
    """Returns the dtype of learned weights of the losses of ``model``: float64 for a model in float64, else float32."""
    return torch.promote_types(next(model.parameters()).dtype, torch.float32)
