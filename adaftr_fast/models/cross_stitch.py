"""Cross-Stitch: towers whose activations are mixed after every layer (Misra et al., CVPR'16)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from adaftr_fast.config import ModelConfig
from adaftr_fast.models.shared_bottom import SharedBottom
from adaftr_fast.nn.module_list import ModuleList

# initial weight of the task's own activations, as in Misra et al.; the others share the rest
OWN_SHARE = 0.9


class CrossStitchUnit(nn.Module):
    """Mixes the tasks' activations linearly (Cross-Stitch paper, Eq. 1).

        x~^t = sum_s alpha_ts x^s      with learned alpha [T, T]

    Args:
        tasks: T, the number of tasks.

    Shape:
        - Input: T tensors [B, h]
        - Output: T tensors [B, h]
    """

    def __init__(self, tasks: int) -> None:
        super().__init__()
        other = (1 - OWN_SHARE) / max(1, tasks - 1)
        self.alpha = nn.Parameter(
            torch.full((tasks, tasks), other).fill_diagonal_(1 - other * (tasks - 1))
        )

    def extra_repr(self) -> str:
        return f"tasks={len(self.alpha)}"

    def forward(self, x: Sequence[Tensor]) -> list[Tensor]:
        return list(torch.einsum("ts,sbh->tbh", self.alpha, torch.stack(tuple(x))).unbind())


class CrossStitch(SharedBottom):
    """Adds a cross-stitch unit after every tower layer of a :class:`SharedBottom`.

        x^t_l = ReLU(W^t_l x~^t_{l-1} + b^t_l),  x~_l = alpha_l x_l,  x~^t_0 = v

    The logit reads the last x~^t. The original, made for convolutions, has one alpha per channel.
    Here there is one per tower layer, T^2 L numbers in all (Table 1 of the AdaFTR paper: 4L). The
    AdaFTR paper shares the first layer in every model without experts (Section 3.1.4); here that is
    the bottom. AdaFTR over this model contrasts x~.

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
        super().make_layers(config)
        self.stitches = ModuleList(CrossStitchUnit(len(self.towers)) for _ in config.tower_hidden)

    def read_towers(self, inputs: list[Tensor]) -> tuple[list[list[Tensor]], Tensor]:
        x = inputs
        layers = []
        for stitch, *linears in zip(self.stitches, *(tower.mlp.layers for tower in self.towers)):
            x = stitch([torch.relu(linear(each)) for linear, each in zip(linears, x)])
            layers.append(x)
        logits = torch.cat([tower.logit(each) for tower, each in zip(self.towers, x)], 1)
        return [list(hidden) for hidden in zip(*layers)], logits

    def keep_task(self, task: int, names: Sequence[str]) -> None:
        raise self.not_alone(names[task], "its towers exchange activations")
