"""Shared-Bottom: one bottom for all tasks and one tower per task (Caruana, Machine
Learning 1997).
"""

from collections.abc import Sequence

from torch import Tensor

from adaftr_fast.config import ModelConfig
from adaftr_fast.models.base import Backbone
from adaftr_fast.models.sizes import first_widths
from adaftr_fast.nn.mlp import MLP


class SharedBottom(Backbone):
    """Applies one MLP to the embeddings; every task's tower reads its output.

        v = g(e),  logit^t = f_t(v)      (Eq. 2 with one g for all tasks)

    There is no mixture per task. For AdaFTR, v^ctr = v^cvr = v, and v^rel (Eq. 8) is the
    element-wise square of v. The square loses no information, because v >= 0 is the output of a
    ReLU.

    Args:
        num_embeddings: number of rows of each of the F fields.
        task_names: the T tasks, in the order of the label columns.
        config: the settings. The model reads ``embedding_dim``, ``embedding_dims``, ``attention``,
            ``attention_hidden``, ``expert_hidden`` (widths of the bottom), ``equal_budget`` (with
            ``num_experts``), ``tower_hidden``, ``l2`` and ``l2_form``.
        field_names: the F names that ``config.embedding_dims`` and ``config.attention`` refer to;
            needed only if they name any.
        dense: encodings of the dense fields, if there are any.

    Shape:
        - ids: [B, F], int32 or int64
        - Output: logits [B, T]
    """

    def make_layers(self, config: ModelConfig) -> None:
        hidden = first_widths(config, self.embedded_features, len(self.task_names), networks=1)
        self.bottom = MLP(self.embedded_features, hidden)
        self.towers = self.make_towers(self.bottom.out_features, config.tower_hidden)

    def task_inputs(self, embedded: Tensor) -> list[Tensor]:
        return [self.bottom(embedded)[-1]] * len(self.towers)

    def keep_task(self, task: int, names: Sequence[str]) -> None:
        """Keeps the bottom, which every task reads."""
