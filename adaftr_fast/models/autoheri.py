"""AutoHERI: an upstream task's layers feed a downstream task's, by learned connections (Wei et al., CIKM'21).

Shapes: B batch, T tasks, L layers of a tower, D sum of the widths of all upstream layers.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from adaftr_fast.models.shared_bottom import SharedBottom


class Connections(nn.Module):
    """The edges from every layer of the upstream towers into every layer of one tower.

    Edge i -> j exists with probability p_ij = sigmoid(a_ij), and its expectation takes its place: layer j adds
    P_j [p_1j u_1; p_2j u_2; …] to its pre-activation, where u_i are the upstream layers' outputs.

    Args:
        upstream: widths of the upstream layers.
        layers: widths of the L layers that read them.
    """

    widths: Tensor

    def __init__(self, upstream: Sequence[int], layers: Sequence[int]) -> None:
        super().__init__()
        self.edges = nn.Parameter(torch.zeros(len(layers), len(upstream)))  # a_ij: every edge begins at one half
        self.projections = nn.ModuleList(nn.Linear(sum(upstream), width, bias=False) for width in layers)
        self.register_buffer("widths", torch.tensor(upstream), persistent=False)

    def forward(self, upstream: Tensor) -> list[Tensor]:
        """The upstream layers' outputs side by side [B, D] -> what each of the L layers adds, [B, width]."""
        shares = self.edges.sigmoid().repeat_interleave(self.widths, 1, output_size=upstream.shape[1])  # [L, D]
        return [project(upstream * share) for project, share in zip(self.projections, shares)]


class AutoHERI(SharedBottom):
    """Shared-Bottom where every layer of a tower reads every layer of the towers before it in ``task_names``.

    x_j^t = ReLU(W_j^t x_{j-1}^t + b_j^t + sum_{s<t} sum_i p_ij^{st} P_ij^{st} x_i^s) with x_0^t = v and
    p = sigmoid(a), a learned; the first task, the funnel's first event, has a plain tower.

    From the publication: representations of an upstream task's layers are fed into a downstream task's layers; which,
    is searched in one shot over binary edges, L^2 a pair of tasks, relaxed to their Bernoulli expectation and learned
    with the weights. Reconstructed, no code being public: the projection P by which layers of unlike widths meet; that
    it adds to the pre-activation; that edges take the same steps on the training loss as the weights (the single-level
    form of DARTS, Liu et al., ICLR'19; the AdaFTR paper says "iteratively"); and that the relaxed network predicts, no
    edge being rounded off. The bottom is shared as that paper has it (its Section 3.1.4).

    Args: those of :class:`SharedBottom`, the tasks upstream first.
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
        super().__init__(
            num_embeddings, embedding_dim, task_names, bottom_hidden=bottom_hidden, tower_hidden=tower_hidden, l2=l2
        )
        layers = list(tower_hidden)
        self.connections = nn.ModuleList(Connections(layers * t, layers) for t in range(1, len(self.towers)))

    def read_towers(self, inputs: list[Tensor]) -> tuple[list[list[Tensor]], Tensor]:
        hidden = [self.towers[0].mlp(inputs[0])]
        for tower, x, connections in zip(self.towers[1:], inputs[1:], self.connections):
            upstream = torch.cat([layer for layers in hidden for layer in layers], 1)  # [B, D]
            outputs = []
            for linear, added in zip(tower.mlp.layers, connections(upstream)):
                x = torch.relu(linear(x) + added)
                outputs.append(x)
            hidden.append(outputs)
        logits = torch.cat([tower.logit(layers[-1]) for tower, layers in zip(self.towers, hidden)], 1)
        return hidden, logits
