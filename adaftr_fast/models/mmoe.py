"""MMoE: shared experts and one gate per task (Ma et al., KDD'18; the paper's backbone, Eqs. 2 and
3).
"""

from collections.abc import Sequence

from torch import Tensor, nn

from adaftr_fast.config import ModelConfig
from adaftr_fast.models.base import Backbone
from adaftr_fast.nn.mlp import Experts
from adaftr_fast.nn.stacks import mix


class MMoE(Backbone):
    """Mixes shared experts by a gate per task; each task's tower reads its mixture.

        v^t = sum_i softmax(W_t e + b_t)_i g_i(e)      (Eq. 3)
        logit^t = f_t(v^t)                             (Eq. 2)

    where e are the concatenated embeddings, g_i the experts, W_t and b_t the gate and f_t the tower
    of task t. The gate of Ma et al. has no bias b_t (docs/decisions.md).

    Args:
        num_embeddings: number of rows of each of the F fields.
        task_names: the T tasks, in the order of the label columns.
        config: the settings. The model reads ``embedding_dim``, ``embedding_dims``, ``attention``,
            ``attention_hidden``, ``num_experts``, ``expert_hidden``, ``tower_hidden``, ``l2`` and
            ``l2_form``.
        field_names: the F names that ``config.embedding_dims`` and ``config.attention`` refer to;
            needed only if they name any.
        dense: encodings of the dense fields, if there are any.

    Shape:
        - ids: [B, F], int32 or int64
        - Output: logits [B, T]

    Example:
        >>> model = MMoE([1000, 50], ["click", "conversion"], ModelConfig())
        >>> logits = model(torch.randint(0, 50, (32, 2)))  # [32, 2]
    """

    def make_layers(self, config: ModelConfig) -> None:
        self.experts = Experts(self.embedded_features, config.num_experts, config.expert_hidden)
        self.gates = nn.Linear(self.embedded_features, len(self.task_names) * config.num_experts)
        self.towers = self.make_towers(self.experts.out_features, config.tower_hidden)

    def task_inputs(self, embedded: Tensor) -> list[Tensor]:
        experts, logits = self.experts.with_gates(self.gates, embedded)  # [B, k, v], [B, T * k]
        return mix(experts, logits.unflatten(1, (len(self.towers), -1)))

    def keep_task(self, task: int, names: Sequence[str]) -> None:
        rows = slice(task * self.experts.num_experts, (task + 1) * self.experts.num_experts)
        gate = nn.Linear(self.gates.in_features, self.experts.num_experts, device="meta")
        gate.weight, gate.bias = (
            nn.Parameter(each.detach()[rows].clone()) for each in self.gates.parameters()
        )
        self.gates = gate
