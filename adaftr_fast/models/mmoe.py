"""MMoE: shared experts and one gate per task (Ma et al., KDD'18; the paper's backbone, Eqs. 2 and 3)."""

from collections.abc import Sequence

from torch import Tensor, nn

from adaftr_fast.models.base import Backbone
from adaftr_fast.nn.mlp import Experts
from adaftr_fast.nn.stacks import mix


class MMoE(Backbone):
    """Mixes shared experts by a gate per task; each task's tower reads its mixture.

        v^t = sum_i softmax(W_t e)_i g_i(e)      (Eq. 3)
        logit^t = f_t(v^t)                       (Eq. 2)

    where e are the concatenated embeddings, g_i the experts, W_t the gate and f_t the tower of task t.

    Args:
        num_embeddings: number of ids of each of the F fields.
        embedding_dim: E, the width of all fields, or one width per field.
        task_names: the T tasks, in the order of the label columns.
        num_experts: k, the number of experts.
        expert_hidden: widths of the layers of each expert g_i.
        tower_hidden: widths of the layers of each tower f_t.
        l2: weight of the L2 term.

    Shape:
        - ids: [B, F], int32 or int64
        - Output: logits [B, T]

    Example:
        >>> model = MMoE(num_embeddings=[1000, 50], embedding_dim=8, task_names=["click", "conversion"])
        >>> logits = model(torch.randint(0, 50, (32, 2)))  # [32, 2]
    """

    def __init__(
        self,
        num_embeddings: Sequence[int],
        embedding_dim: int | Sequence[int],
        task_names: Sequence[str],
        *,
        num_experts: int = 3,
        expert_hidden: Sequence[int] = (64,),
        tower_hidden: Sequence[int] = (64, 32, 16),
        l2: float = 1e-6,
    ) -> None:
        super().__init__(num_embeddings, embedding_dim, task_names, l2)
        self.experts = Experts(self.embedded_features, num_experts, expert_hidden)
        self.gates = nn.Linear(self.embedded_features, len(task_names) * num_experts)
        self.towers = self._make_towers(self.experts.out_features, tower_hidden)

    def task_inputs(self, embedded: Tensor) -> list[Tensor]:
        experts, logits = self.experts.with_gates(self.gates, embedded)  # [B, k, v], [B, T * k]
        return mix(experts, logits.unflatten(1, (len(self.towers), -1)))
