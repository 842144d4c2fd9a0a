"""Single-DNN: one network per task, with nothing shared (Covington et al., RecSys'16; the baseline
of Table 4).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from adaftr_fast.config import ModelConfig
from adaftr_fast.data.dataset.batch import Batch
from adaftr_fast.models.base import MultiTaskModel
from adaftr_fast.models.shared_bottom import SharedBottom
from adaftr_fast.models.sizes import embedding_widths, first_widths
from adaftr_fast.nn.dense import DenseFields
from adaftr_fast.nn.encoding import NumericEncoding
from adaftr_fast.nn.module_list import ModuleList


class SingleDNN(MultiTaskModel):
    """Applies a separate network per task.

        logit^t = f_t(g_t(e^t))

    Each task has its own embedding tables, bottom g_t and tower f_t, so training one task changes
    no other.

    Args:
        num_embeddings: number of rows of each of the F fields.
        task_names: the T tasks, in the order of the label columns.
        config: the settings. The model reads ``embedding_dim``, ``embedding_dims``, ``attention``,
            ``attention_hidden``, ``expert_hidden`` (widths of each bottom), ``equal_budget`` (with
            ``num_experts``), ``tower_hidden``, ``l2`` and ``l2_form``.
        field_names: the F names that ``config.embedding_dims`` and ``config.attention`` refer to;
            needed only if they name any.
        dense: encodings of the dense fields, if there are any.

    Shape:
        - ids: [B, F], int32 or int64
        - Output: logits [B, T]
    """

    shares_weights = False

    def __init__(
        self,
        num_embeddings: Sequence[int],
        task_names: Sequence[str],
        config: ModelConfig,
        field_names: Sequence[str] | None = None,
        dense: Sequence[NumericEncoding] = (),
    ) -> None:
        super().__init__(task_names)
        features = sum(embedding_widths(config, len(num_embeddings), field_names))
        tasks = len(self.task_names)
        features += DenseFields(dense).out_features
        hidden = first_widths(config, features, tasks, networks=tasks)
        own = replace(config, expert_hidden=hidden, equal_budget=False)
        self.networks = ModuleList(
            SharedBottom(num_embeddings, [task], own, field_names, dense) for task in task_names
        )

    def forward(
        self, ids: Tensor, offsets: Tensor | None = None, dense: Tensor | None = None
    ) -> Tensor:
        return torch.cat([network(ids, offsets, dense) for network in self.networks], 1)

    def start_at(self, rates: Sequence[float]) -> None:
        for network, rate in zip(self.networks, rates, strict=True):
            network.start_at([rate])

    def place_of(self, weight: str) -> tuple[str, str]:
        _, number, rest = weight.split(".", 2)  # networks.<number>.<rest>
        return rest, self.task_names[int(number)]

    def for_task(self, task: str) -> MultiTaskModel:
        return self.networks[self.position(task)]

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        self.check_labels(batch.labels)
        losses: dict[str, Tensor] = {}
        for t, network in enumerate(self.networks):
            for name, term in network.loss(
                replace(batch, labels=batch.labels[:, t : t + 1])
            ).items():
                # the L2 terms are summed
                losses[name] = losses[name] + term if name in losses else term
        return losses
