"""Linear: a wide logistic regression over the same ids and numbers, the model to compare with first."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from adaftr_fast.config import ModelConfig
from adaftr_fast.data.dataset.batch import Batch
from adaftr_fast.models.base import MultiTaskModel, log_odds
from adaftr_fast.nn.dense import DenseFields
from adaftr_fast.nn.embedding import FusedEmbedding
from adaftr_fast.nn.encoding import NumericEncoding
from adaftr_fast.ops.norms import squared_norm


class Linear(MultiTaskModel):
    """Sums one weight per id, and one per component of a number.

        logit^t = b^t + sum_f w_f^t[id_f] + u^t · d

    The weights of a multi-valued field are averaged. Tasks share nothing: column t of the table of
    width T holds the weights of task t.

    Args:
        num_embeddings: number of rows of each of the F fields.
        task_names: the T tasks, in the order of the label columns.
        config: the settings. The model reads ``l2`` and ``l2_form``.
        field_names: not read.
        dense: encodings of the dense fields, if there are any.

    Shape:
        - ids: [B, F], int32 or int64
        - Output: logits [B, T]
    """

    def __init__(
        self,
        num_embeddings: Sequence[int],
        task_names: Sequence[str],
        config: ModelConfig,
        field_names: Sequence[str] | None = None,
        dense: Sequence[NumericEncoding] = (),
    ) -> None:
        super().__init__(task_names)
        tasks = len(self.task_names)
        self.config = config
        self.embedding = FusedEmbedding(num_embeddings, tasks)
        self.dense_fields = DenseFields(dense) if dense else None
        components = self.dense_fields.out_features if self.dense_fields else 0
        self.numbers = nn.Parameter(torch.zeros(tasks, components))
        self.bias = nn.Parameter(torch.zeros(tasks))

    def forward(
        self, ids: Tensor, offsets: Tensor | None = None, dense: Tensor | None = None
    ) -> Tensor:
        return self._logits(self.embedding(ids, offsets), dense)

    def _logits(self, weights: Tensor, dense: Tensor | None) -> Tensor:
        """Sums the weights of the ids [B, F * T] and those of the numbers -> [B, T]."""
        logits: Tensor = weights.unflatten(1, (-1, len(self.task_names))).sum(1) + self.bias
        if self.dense_fields is None:
            return logits
        components: Tensor = self.dense_fields(dense)
        return logits + components @ self.numbers.T

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        weights = self.embedding(batch.ids, batch.offsets)
        losses = self.log_losses(self._logits(weights, batch.dense), batch)
        if self.config.l2:
            squares = squared_norm([self.numbers, weights], [1.0, 1.0 / len(weights)])
            is_squared = self.config.l2_form == "squared"
            losses["l2"] = self.config.l2 * (squares if is_squared else squares.sqrt())
        return losses

    def start_at(self, rates: Sequence[float]) -> None:
        with torch.no_grad():
            self.bias.copy_(self.bias.new_tensor([log_odds(rate) for rate in rates]))

    def for_task(self, task: str) -> MultiTaskModel:
        t = self.position(task)
        dense = self.dense_fields.encodings if self.dense_fields else ()
        alone = Linear(self.embedding.num_embeddings, [task], self.config, dense=dense)
        alone.to(self.bias)
        column = slice(t, t + 1)
        with torch.no_grad():
            alone.embedding.weight.copy_(self.embedding.weight[:, column])
            alone.numbers.copy_(self.numbers[column])
            alone.bias.copy_(self.bias[column])
        return alone
