"""Progress of a run, and running means of the loss terms of an epoch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass
class Progress:
    """What a run needs to resume, besides its state.

    Attributes:
        epoch: the current epoch, counted from 1.
        step: the number of steps done in this epoch. (seed, epoch, step) determines the next batch.
        validated: the step of this epoch after which the model was last validated.
        total_steps: the number of steps done in all epochs.
        seconds: training time since the last validation, in seconds.
        best_epoch: the epoch with the best validation metric; 0 before the first validation.
        best_auc: the metric of ``best_epoch``, by default the mean AUC (``evaluation.monitored``).
        epochs: the records of all validations, as in metrics.jsonl.

    Raises:
        ValueError: a number of steps is negative, or larger than that of all epochs.
    """

    epoch: int = 1
    step: int = 0
    validated: int = 0
    total_steps: int = 0
    seconds: float = 0.0
    best_epoch: float = 0
    best_auc: float = -math.inf
    epochs: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.epoch < 1 or not 0 <= self.validated <= self.step <= self.total_steps:
            raise ValueError(
                "progress must have epoch >= 1 and 0 <= validated <= step <= total_steps, got "
                f"{self.epoch} and {self.validated}, {self.step} and {self.total_steps}"
            )

    @property
    def new_steps(self) -> int:
        """The number of steps since the last validation."""
        return self.step - self.validated

    @property
    def position(self) -> int:
        """Orders the snapshots of a run: a validation comes after the step before it."""
        return self.total_steps + len(self.epochs) + 1

    def add(self, record: dict[str, Any], ends_epoch: bool) -> None:
        """Adds the record of a validation, after which the next epoch may start."""
        self.epochs.append(record)
        if ends_epoch:
            self.epoch = self.epoch + 1
            self.step = 0
        self.validated = self.step
        self.seconds = 0.0


def epochs_after(validations: int, per_epoch: int) -> float:
    """Returns the number of epochs trained at a validation, which is its number over that of an
    epoch; an int if 1.
    """
    return validations if per_epoch == 1 else validations / per_epoch


MEAN = "mean/"  # begins the names of the sums in a snapshot


class RunningMean:
    """Means of named 0-dim tensors over steps, accumulated in float64 on the tensors' device.

    Args:
        saved: the tensors of a snapshot, among them what ``state`` returned.
        steps: the number of steps before.
    """

    def __init__(self, saved: Mapping[str, Tensor] | None = None, steps: int = 0) -> None:
        found = saved or {}
        self._sums = {
            name.removeprefix(MEAN): found[name] for name in found if name.startswith(MEAN)
        }
        self._names: list[str] = []  # of the last step; the sums of its terms are views of _total
        self._total = torch.zeros(0, dtype=torch.float64)
        self._steps = steps

    def state(self) -> dict[str, Tensor]:
        """Returns the sums by their names in a snapshot, without copying them."""
        return {MEAN + name: value for name, value in self._sums.items()}

    def add(self, terms: dict[str, Tensor]) -> None:
        """Adds the terms of one step, which does not wait for the device."""
        self._steps += 1
        if not terms:
            return
        values = torch.stack(list(terms.values())).detach()
        if list(terms) != self._names:  # in the first step, as a rule
            zero = values.new_zeros((), dtype=torch.float64)
            rest = {name: value.to(values.device) for name, value in self._sums.items()}
            self._names = list(terms)
            self._total = torch.stack([rest.pop(name, zero) for name in terms])
            self._sums = rest | dict(zip(terms, self._total))
        self._total += values

    def means(self) -> dict[str, float]:
        """Returns the means by name, which waits for the device."""
        if not self._sums:
            return {}
        total = torch.stack(list(self._sums.values()))
        return dict(zip(self._sums, (total / self._steps).tolist()))
