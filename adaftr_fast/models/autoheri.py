"""AutoHERI: learned connections from an upstream task's layers to a downstream task's (Wei et al.,
CIKM'21).

Shapes: B batch, T tasks, L layers of a tower, D the sum of the widths of all upstream layers.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from adaftr_fast.config import ModelConfig
from adaftr_fast.models.shared_bottom import SharedBottom
from adaftr_fast.nn.module_list import ModuleList


class Connections(nn.Module):
    """Connects every layer of the upstream towers to every layer of one tower.

    Edge i -> j exists with probability p_ij = sigmoid(a_ij) and is replaced by its expectation.
    Layer j adds

        P_j [p_1j u_1; p_2j u_2; …]

    to its pre-activation, where u_i are the upstream layers' outputs.

    Args:
        upstream: widths of the upstream layers.
        layers: widths of the L layers that read them.

    Shape:
        - Input: [B, D]
        - Output: L tensors [B, width]
    """

    widths: Tensor

    def __init__(self, upstream: Sequence[int], layers: Sequence[int]) -> None:
        super().__init__()
        # a_ij: every edge starts with probability 1/2.
        self.edges = nn.Parameter(torch.zeros(len(layers), len(upstream)))
        self.projections = ModuleList(
            nn.Linear(sum(upstream), width, bias=False) for width in layers
        )
        self.register_buffer("widths", torch.tensor(upstream), persistent=False)

    def extra_repr(self) -> str:
        return f"upstream={self.widths.tolist()}"

    def forward(self, upstream: Tensor) -> list[Tensor]:
        """Maps the concatenated upstream outputs [B, D] to what each of the L layers adds,
        [B, width].
        """
        # [L, D]
        probabilities = self.edges.sigmoid().repeat_interleave(
            self.widths, 1, output_size=upstream.shape[1]
        )
        return [project(upstream * p) for project, p in zip(self.projections, probabilities)]


class AutoHERI(SharedBottom):
    """Extends a :class:`SharedBottom`: every tower layer also reads all layers of the upstream
    tasks' towers.

        x_j^t = ReLU(W_j^t x_{j-1}^t + b_j^t + sum_{s<t} sum_i p_ij^{st} P_ij^{st} x_i^s)

    with x_0^t = v, p = sigmoid(a) and learned a. The tasks s < t are upstream of t. The first task,
    the first event of the funnel, has a plain tower.

    The publication specifies: representations of an upstream task's layers are fed into a
    downstream task's layers. A one-shot search selects the connections among L^2 binary edges per
    pair of tasks. The edges are relaxed to their Bernoulli expectation and learned with the
    weights.

    No code is public, so the following is reconstructed:

    - A projection P connects layers of different widths, and its output is added to the
      pre-activation.
    - The edges are updated on the training loss in the same steps as the weights (the single-level
      form of DARTS, Liu et al., ICLR'19; the AdaFTR paper says "iteratively").
    - The relaxed network makes the predictions; edges are not rounded to 0 or 1.

    The bottom is shared, as in the AdaFTR paper (Section 3.1.4).

    The publication's model covers the entire space of a funnel: it predicts conversion over all
    impressions through the probabilities of the stages before. This class omits that. As in every
    model of Table 4, each task has a logit of its own, and its cross-entropy over all impressions
    is the loss (Eq. 4 of the AdaFTR paper). The second task's prediction is therefore p_ctcvr, not
    p_ctr times a conditional rate, and is not bounded by p_ctr. :class:`ESMM` has that
    decomposition.

    Args:
        num_embeddings: number of rows of each of the F fields.
        task_names: the T tasks, upstream tasks first, in the order of the label columns.
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
        super().make_layers(config)
        layers = config.tower_hidden
        self.connections = ModuleList(
            Connections(layers * t, layers) for t in range(1, len(self.towers))
        )

    def read_towers(self, inputs: list[Tensor]) -> tuple[list[list[Tensor]], Tensor]:
        hidden = [self.towers[0].mlp(inputs[0])]
        for tower, x, connections in zip(self.towers[1:], inputs[1:], self.connections):
            upstream = torch.cat([layer for layers in hidden for layer in layers], 1)  # [B, D]
            outputs = []
            for linear, added in zip(tower.mlp.layers, connections(upstream)):
                x = torch.relu(linear(x) + added)
                outputs.append(x)
            hidden.append(outputs)
        logits = torch.cat(
            [tower.logit(layers[-1]) for tower, layers in zip(self.towers, hidden)], 1
        )
        return hidden, logits

    def keep_task(self, task: int, names: Sequence[str]) -> None:
        if task:
            raise self.not_alone(names[task], f"its tower reads those of {', '.join(names[:task])}")
        self.connections = ModuleList()
