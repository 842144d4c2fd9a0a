"""Single-DNN: one network per task, with nothing shared (Covington et al., RecSys'16; the baseline of Table 4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from adaftr_fast.models.base import MultiTaskModel
from adaftr_fast.models.shared_bottom import SharedBottom

if TYPE_CHECKING:
    from adaftr_fast.data.dataset.batch import Batch


class SingleDNN(MultiTaskModel):
    """Applies a separate network per task.

        logit^t = f_t(g_t(e^t))

    Each task has its own embedding tables, bottom g_t and tower f_t, so training one task changes no other.

    Args:
        num_embeddings: number of ids of each of the F fields; every task has a table per field.
        embedding_dim: E, the width of all fields, or one width per field.
        task_names: the T tasks, in the order of the label columns.
        bottom_hidden: widths of the layers of g_t, which form one MLP with those of f_t.
        tower_hidden: widths of the layers of f_t.
        l2: weight of the L2 term.

    Shape:
        - ids: [B, F], int32 or int64
        - Output: logits [B, T]
    """

    def __init__(
        self,
        num_embeddings: Sequence[int],
        embedding_dim: int | Sequence[int],
        task_names: Sequence[str],
        *,
        bottom_hidden: Sequence[int] = (64,),
        tower_hidden: Sequence[int] = (64, 32, 16),
        l2: float = 1e-6,
    ) -> None:
        super().__init__(task_names)
        self.networks = nn.ModuleList(
            SharedBottom(
                num_embeddings, embedding_dim, [task], bottom_hidden=bottom_hidden, tower_hidden=tower_hidden, l2=l2
            )
            for task in task_names
        )

    def forward(self, ids: Tensor, offsets: Tensor | None = None) -> Tensor:
        return torch.cat([network(ids, offsets) for network in self.networks], 1)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        self.check_labels(batch.labels)
        losses: dict[str, Tensor] = {}
        for t, network in enumerate(self.networks):
            for name, term in network.loss(replace(batch, labels=batch.labels[:, t : t + 1])).items():
                losses[name] = losses[name] + term if name in losses else term  # the L2 terms are summed
        return losses
