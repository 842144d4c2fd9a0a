"""ESMM: rates of a funnel as products of conditional probabilities (Ma et al., SIGIR'18).

Shapes: B batch, T tasks, D width of the concatenated embeddings, v width of the output of a bottom,
h width of a layer of a tower.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from adaftr_fast.config import ModelConfig
from adaftr_fast.models.base import Backbone
from adaftr_fast.models.sizes import first_widths
from adaftr_fast.nn.mlp import MLP, run_towers
from adaftr_fast.nn.module_list import ModuleList
from adaftr_fast.nn.stacks import Stack, run_stacks


class ESMM(Backbone):
    """Predicts each stage of a funnel as the rate of the stage before times the conditional rate of
    a network.

        p_ctcvr = p_ctr * p_cvr          (ESMM paper, Eq. 1)

    Both factors are networks over shared embeddings. The loss is the cross-entropy of p_ctr and of
    p_ctcvr over all impressions (Eq. 3), so p_cvr is trained without a selection of clicked rows,
    and p_ctcvr <= p_ctr always holds. The logits of the conversion task are those of p_ctcvr, as in
    every model here (docs/decisions.md).

    With more than two tasks, each one is a factor of the ones after it. The tasks must therefore be
    the stages of a funnel, in order; click and conversion are the paper's.

    Args:
        num_embeddings: number of rows of each of the F fields.
        task_names: the T tasks, in the order of the funnel and of the label columns.
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

    def make_layers(self, config: ModelConfig) -> None:
        tasks = len(self.task_names)
        hidden = first_widths(config, self.embedded_features, tasks, networks=tasks)
        self.bottoms = ModuleList(MLP(self.embedded_features, hidden) for _ in self.task_names)
        self.towers = self.make_towers(hidden[-1], config.tower_hidden)

    def task_inputs(self, embedded: Tensor) -> list[Tensor]:
        stacks = [Stack([*bottom.layers]) for bottom in self.bottoms]
        return [layers[-1] for layers in run_stacks(stacks, [embedded] * len(stacks))]

    def read_towers(self, inputs: list[Tensor]) -> tuple[list[list[Tensor]], Tensor]:
        hidden, conditional = self.conditional_logits(inputs)
        return hidden, chain(conditional)

    def keep_task(self, task: int, names: Sequence[str]) -> None:
        if task:
            raise self.not_alone(
                names[task], f"its rate is a product with those of {', '.join(names[:task])}"
            )
        self.bottoms = ModuleList([self.bottoms[0]])

    def start_at(self, rates: Sequence[float]) -> None:
        # those given the stage before; with rows outside the funnel a later one may be the larger
        conditional = [min(b / a, 0.999) for a, b in pairwise(rates)]
        super().start_at([*rates[:1], *conditional])

    def is_conditional(self, task: str) -> bool:
        return task in self.task_names[1:]

    def conditional_logits(self, inputs: list[Tensor]) -> tuple[list[list[Tensor]], Tensor]:
        """Returns the towers' layers, and the logits [B, T] of each stage's rate given the stage
        before, as p_cvr.
        """
        hidden, logits = run_towers(self.towers, inputs)
        conditional = torch.cat(logits, 1)
        return hidden, conditional.to(torch.promote_types(conditional.dtype, torch.float32))


def chain(conditional: Tensor) -> Tensor:
    """Maps the logits z_t of conditional probabilities [B, T] to the logits of their products over
    t, [B, T].

    The odds against p_1 p_2 are those of both factors and their product, exp(-z_1) + exp(-z_2) +
    exp(-z_1 - z_2), so

        logit(p_1 p_2) = -logsumexp(-z_1, -z_2, -z_1 - z_2)

    which neither overflows nor cancels.
    """
    logits = [conditional[:, 0]]
    for z in conditional.unbind(1)[1:]:
        against = torch.stack((-logits[-1], -z, -logits[-1] - z))
        logits.append(-against.logsumexp(0))
    return torch.stack(logits, 1)
