"""Shared-Bottom: one bottom for all tasks and one tower per task (Caruana, Machine Learning 1997)."""

from collections.abc import Sequence

from torch import Tensor

from adaftr_fast.models.base import Backbone
from adaftr_fast.nn.mlp import MLP


class SharedBottom(Backbone):
    """Applies one MLP to the embeddings; every task's tower reads its output.

        v = g(e),  logit^t = f_t(v)      (Eq. 2 with one g for all tasks)

    There is no mixture per task. For AdaFTR, v^ctr = v^cvr = v, and v^rel (Eq. 8) is the element-wise square of v. The
    square loses no information, because v >= 0 is the output of a ReLU.

    Args:
        num_embeddings: number of ids of each of the F fields.
        embedding_dim: E, the width of all fields, or one width per field.
        task_names: the T tasks, in the order of the label columns.
        bottom_hidden: widths of the layers of the bottom g.
        tower_hidden: widths of the layers of each tower f_t.
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
        super().__init__(num_embeddings, embedding_dim, task_names, l2)
        self.bottom = MLP(self.embedded_features, bottom_hidden)
        self.towers = self._make_towers(self.bottom.out_features, tower_hidden)

    def task_inputs(self, embedded: Tensor) -> list[Tensor]:
        return [self.bottom(embedded)[-1]] * len(self.towers)
