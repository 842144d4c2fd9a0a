"""Shared-Bottom: one bottom for all tasks, a tower each (Caruana, Machine Learning 1997)."""

from collections.abc import Sequence

from torch import Tensor

from adaftr_fast.models.base import Backbone
from adaftr_fast.nn.mlp import MLP


class SharedBottom(Backbone):
    """v = g(e), one MLP; every task's tower reads the same v (Eq. 2 with a single g).

    There is no mixture per task, so for AdaFTR v^ctr = v^cvr = v and v^rel (Eq. 8) is the element-wise square of v,
    which says as much as v itself, v >= 0 being the output of a ReLU.

    Args:
        num_embeddings: rows of each field's table.
        embedding_dim: E.
        task_names: the tasks, in the order of the labels' columns.
        bottom_hidden, tower_hidden: widths of the layers of g and of each tower.
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
        super().__init__(num_embeddings, embedding_dim, task_names, l2)
        self.bottom = MLP(self.embedded_features, bottom_hidden)
        self.towers = self._make_towers(self.bottom.out_features, tower_hidden)

    def task_inputs(self, embedded: Tensor) -> list[Tensor]:
        return [self.bottom(embedded)[-1]] * len(self.towers)
