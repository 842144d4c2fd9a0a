"""Where a run stands, and the running means of its epoch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass
class Progress:
    """What, besides weights and optimizer states, a run needs to go on as if it had never stopped.

    Attributes:
        epoch: the epoch being trained, from 1.
        step: steps done in it; the loader's position, since (seed, epoch, step) sets the next batch.
        total_steps: steps done in all epochs.
        seconds: time spent training in it.
        best_epoch: the epoch with the best mean validation AUC, ``best_auc``; 0 before the first validation.
        epochs: one record a finished epoch, as in metrics.jsonl.
    """

    epoch: int = 1
    step: int = 0
    total_steps: int = 0
    seconds: float = 0.0
    best_epoch: int = 0
    best_auc: float = -np.inf
    epochs: list[dict[str, Any]] = field(default_factory=list)

    def next_epoch(self, record: dict[str, Any]) -> None:
        """Closes the epoch that ``record`` is of."""
        self.epochs.append(record)
        self.epoch, self.step, self.seconds = self.epoch + 1, 0, 0.0


class RunningMean:
    """Means of named 0-dim tensors over steps, summed where they are and read only when asked."""

    def __init__(self, sums: dict[str, Tensor] | None = None, steps: int = 0) -> None:
        self.sums: dict[str, Tensor] = dict(sums or {})  # float64
        self._steps = steps

    def add(self, terms: dict[str, Tensor]) -> None:
        for name, term in terms.items():
            value = term.detach().double()
            self.sums[name] = self.sums[name] + value if name in self.sums else value
        self._steps += 1

    def means(self) -> dict[str, float]:
        if not self.sums:
            return {}
        return dict(zip(self.sums, (torch.stack(list(self.sums.values())) / self._steps).tolist()))

    def text(self) -> str:
        return ", ".join(f"{name} {mean:.4f}" for name, mean in self.means().items())
