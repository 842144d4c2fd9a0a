"""What every model is: predictions for T tasks from F categorical fields, and the loss that trains them.

Shapes: B batch, F fields, E embedding width, T tasks, v width of a tower's input, h width of a tower's layer.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adaftr_fast.nn.embedding import FusedEmbedding
from adaftr_fast.nn.mlp import Tower, run_towers
from adaftr_fast.nn.norms import squared_norm
from adaftr_fast.nn.relatedness import weighted_mean

if TYPE_CHECKING:
    from adaftr_fast.data.dataset.batch import Batch

LOSS_TERMS = ("l2", "relatedness", "contrast")  # beside one a task


def check_weight(model: str, name: str, value: float) -> None:
    """Raise ValueError unless a loss term's weight is finite and >= 0."""
    if not 0 <= value < math.inf:
        raise ValueError(f"{model}: {name} must be a finite weight >= 0, got {value}")


class Representations(NamedTuple):
    """What a backbone computes on the way to its logits."""

    embedded: Tensor  # [B, F*E], e_r
    inputs: list[Tensor]  # per task [B, v]: what its tower reads, v^ctr and v^cvr of Eq. 3
    hidden: list[list[Tensor]]  # per task, per tower layer [B, h], after ReLU
    logits: Tensor  # [B, T]


class MultiTaskModel(nn.Module, ABC):
    """A model owns its losses: the trainer minimises the sum of what ``loss`` returns and asks no more.

    Raises:
        ValueError: no task, a task named twice, or one named as another term of the loss.
    """

    def __init__(self, task_names: Sequence[str]) -> None:
        super().__init__()
        self.task_names = list(task_names)
        if not self.task_names:
            raise ValueError(f"{type(self).__name__}: task_names must name at least one task")
        if len(set(self.task_names)) < len(self.task_names) or set(self.task_names) & set(LOSS_TERMS):
            raise ValueError(
                f"{type(self).__name__}: task_names must be distinct and none of {', '.join(LOSS_TERMS)}, "
                f"got {self.task_names}"
            )

    @abstractmethod
    def forward(self, ids: Tensor, offsets: Tensor | None = None) -> Tensor:
        """ids [B, F] int32 or int64, or those of multi-valued fields [N] with offsets [B * F + 1] -> logits [B, T]."""

    @abstractmethod
    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """The weighted terms of the objective (Eq. 14), each 0-dim."""

    def check_labels(self, labels: Tensor) -> None:
        """Raise ValueError unless labels are [B, T]."""
        if labels.dim() != 2 or labels.shape[1] != len(self.task_names):
            raise ValueError(
                f"{type(self).__name__}: labels must be [B, {len(self.task_names)}], a column for each of "
                f"{', '.join(self.task_names)}, got {list(labels.shape)}"
            )

    def served(self) -> MultiTaskModel:
        """What gives the logits, without what only the loss needs."""
        return self

    def diagnostics(self, batch: Batch) -> dict[str, Tensor]:
        """Per-instance values worth a look, each [B], such as the learned temperature."""
        return {}


class Backbone(MultiTaskModel):
    """A model whose task inputs and tower layers can be seen, so that AdaFTR can stand over it.

    A subclass makes ``towers``, a :class:`Tower` a task with the same widths for all, and says in ``task_inputs`` what
    they read; one whose towers exchange anything also says how, in ``read_towers``.
    """

    towers: nn.ModuleList

    def __init__(
        self, num_embeddings: Sequence[int], embedding_dim: int, task_names: Sequence[str], l2: float = 1e-6
    ) -> None:
        super().__init__(task_names)
        check_weight(type(self).__name__, "l2", l2)
        self.l2 = l2
        self.embedding = FusedEmbedding(num_embeddings, embedding_dim)
        self.embedded_features = len(num_embeddings) * embedding_dim

    @abstractmethod
    def task_inputs(self, embedded: Tensor) -> list[Tensor]:
        """g of Eq. 2: embedded [B, F*E] -> what each task's tower reads, T of [B, v]."""

    def read_towers(self, inputs: list[Tensor]) -> tuple[list[list[Tensor]], Tensor]:
        """f of Eq. 2: T of [B, v] -> (per task, per layer [B, h] after ReLU; logits [B, T])."""
        hidden, logits = run_towers(self.towers, inputs)
        return hidden, torch.cat(logits, 1)

    def represent(self, ids: Tensor, offsets: Tensor | None = None) -> Representations:
        """Everything from the embedding to the logits; a multi-valued field is the mean of its ids' vectors."""
        embedded = self.embedding(ids, offsets)
        inputs = self.task_inputs(embedded)
        return Representations(embedded, inputs, *self.read_towers(inputs))

    def forward(self, ids: Tensor, offsets: Tensor | None = None) -> Tensor:
        return self.represent(ids, offsets).logits

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        return self.task_losses(self.represent(*batch.features), batch)

    def task_losses(self, seen: Representations, batch: Batch) -> dict[str, Tensor]:
        """Eq. 4 (with the "1 -" its second logarithm lacks in print) for each task, and the L2 term of Eq. 14."""
        self.check_labels(batch.labels)
        each = F.binary_cross_entropy_with_logits(seen.logits, batch.labels, reduction="none")  # [B, T]
        means = weighted_mean(each, batch.weight, batch.weight_mean).unbind()
        losses = dict(zip(self.task_names, means, strict=True))
        if self.l2:
            losses["l2"] = self._penalty(seen.embedded)
        return losses

    def _penalty(self, embedded: Tensor) -> Tensor:
        """l2 times the squared norm of the dense weights and that of an instance's looked-up rows, a mean over B."""
        parts = (module.parameters() for module in self.children() if module is not self.embedding)
        dense = [p for p in dict.fromkeys(chain(self.parameters(recurse=False), *parts)) if p.dim() > 1]
        return squared_norm([*dense, embedded], [self.l2] * len(dense) + [self.l2 / len(embedded)])

    def _make_towers(self, in_features: int, hidden: Sequence[int]) -> nn.ModuleList:
        return nn.ModuleList(Tower(in_features, hidden) for _ in self.task_names)
