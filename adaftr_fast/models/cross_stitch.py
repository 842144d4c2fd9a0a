"""Cross-Stitch: towers whose activations are mixed after every layer (Misra et al., CVPR'16)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from adaftr_fast.models.shared_bottom import SharedBottom

OWN_SHARE = 0.9  # Misra et al. begin near the identity: a task keeps .9 of its activations, others give the rest


class CrossStitchUnit(nn.Module):
    """x~^t = sum_s alpha_ts x^s for the tasks' activations x^1 … x^T, [B, h] each; alpha [T, T] is learned (Eq. 1)."""

    def __init__(self, tasks: int) -> None:
        super().__init__()
        other = (1 - OWN_SHARE) / max(1, tasks - 1)
        self.alpha = nn.Parameter(torch.full((tasks, tasks), other).fill_diagonal_(1 - other * (tasks - 1)))

    def forward(self, x: Sequence[Tensor]) -> list[Tensor]:
        return list(torch.einsum("ts,sbh->tbh", self.alpha, torch.stack(tuple(x))).unbind())


class CrossStitch(SharedBottom):
    """Shared-Bottom with a cross-stitch unit after every layer of the towers.

    x^t_l = ReLU(W^t_l x~^t_{l-1} + b^t_l), x~_l = alpha_l x_l, x~^t_0 = v; the logit reads the last x~^t. What is one
    number a channel's layer in the original, made for convolutions, is one a tower's layer here: T^2 L in all (Table 1
    of the AdaFTR paper: 4L). That paper shares the first layer in every model without experts (its Section 3.1.4), here
    the bottom; AdaFTR over it contrasts x~.

    Args: those of :class:`SharedBottom`.
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
        self.stitches = nn.ModuleList(CrossStitchUnit(len(self.towers)) for _ in tower_hidden)

    def read_towers(self, inputs: list[Tensor]) -> tuple[list[list[Tensor]], Tensor]:
        x, layers = inputs, []
        for stitch, *linears in zip(self.stitches, *(tower.mlp.layers for tower in self.towers)):
            x = stitch([torch.relu(linear(each)) for linear, each in zip(linears, x)])
            layers.append(x)
        logits = torch.cat([tower.logit(each) for tower, each in zip(self.towers, x)], 1)
        return [list(hidden) for hidden in zip(*layers)], logits
