"""Single-DNN: a network for each task, nothing shared (Covington et al., RecSys'16; the reference row of Table 4)."""

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
    """y^t = f_t(g_t(e^t)): embedding tables, bottom and tower are the task's own, so training one task moves no other.

    Args:
        num_embeddings: rows of each field's table, of which every task has one.
        embedding_dim: E.
        task_names: the tasks, in the order of the labels' columns.
        bottom_hidden, tower_hidden: widths of the layers of g_t and f_t, which together are one MLP.
        l2: weight of the L2 term.
    """

    def __init__(
        self,
        num_embeddings: Sequence[int],
        embedding_dim: int,
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
                losses[name] = losses[name] + term if name in losses else term  # the L2 terms add up
        return losses
