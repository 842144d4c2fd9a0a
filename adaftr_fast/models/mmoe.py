"""MMoE: shared experts, one gate a task (Ma et al., KDD'18; the paper's backbone, Eqs. 2 and 3)."""

from collections.abc import Sequence

from torch import Tensor, nn

from adaftr_fast.models.base import Backbone
from adaftr_fast.nn.mlp import Experts
from adaftr_fast.nn.stacks import mix


class MMoE(Backbone):
    """v^t = sum_i softmax(W_t e)_i g_i(e) for every task t; its tower f_t reads v^t.

    Args:
        num_embeddings: rows of each field's table.
        embedding_dim: E.
        task_names: the tasks, in the order of the labels' columns.
        num_experts: k of Eq. 3.
        expert_hidden, tower_hidden: widths of the layers of g_i and of f_t.
        l2: weight of the L2 term.
    """

    def __init__(
        self,
        num_embeddings: Sequence[int],
        embedding_dim: int,
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
        experts, logits = self.experts.beside(self.gates, embedded)  # [B, k, v], [B, T * k]
        return mix(experts, logits.unflatten(1, (len(self.towers), -1)))
