"""PLE: task experts and shared experts in progressive extraction layers (Tang et al., RecSys'20).

Shapes: B batch, T tasks, k experts, v width of an expert's output.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from adaftr_fast.models.base import Backbone
from adaftr_fast.nn.mlp import Experts
from adaftr_fast.nn.stacks import mix


class ExtractionLayer(nn.Module):
    """Maps the inputs of T task streams and one shared stream to those of the next extraction layer.

        x^t -> sum_i softmax(W_t x^t)_i S^t_i

    where S^t stacks the outputs of task t's experts, which read x^t, and of the shared experts, which read the shared
    stream (PLE paper, Eqs. 1-5). The shared stream becomes a mixture of all experts' outputs, by a gate that reads the
    shared stream (Eqs. 6-8). The ``last`` layer computes no shared stream, because nothing reads it.

    Args:
        in_features: width of every stream's input.
        tasks: T, the number of tasks.
        task_experts: number of experts per task.
        shared_experts: number of shared experts.
        hidden: widths of each expert's layers.
        last: if True, omits the shared stream's output.
    """

    def __init__(
        self, in_features: int, tasks: int, task_experts: int, shared_experts: int, hidden: Sequence[int], *, last: bool
    ) -> None:
        super().__init__()
        own, every = task_experts + shared_experts, tasks * task_experts + shared_experts
        counts = [task_experts] * tasks + [shared_experts]
        self.experts = nn.ModuleList(Experts(in_features, count, hidden) for count in counts)
        gated = [own] * tasks + ([] if last else [every])
        self.gates = nn.ModuleList(nn.Linear(in_features, experts) for experts in gated)

    def forward(self, streams: Sequence[Tensor]) -> list[Tensor]:
        """Maps the T task streams and then the shared stream, [B, in] each, to the next layer's, [B, v] each."""
        outputs = [experts(x) for experts, x in zip(self.experts, streams)]  # each [B, k, v]
        readable = [torch.cat((own, outputs[-1]), 1) for own in outputs[:-1]] + [torch.cat(outputs, 1)]
        mixed = []
        for gate, x, experts in zip(self.gates, streams, readable):  # without the shared stream in the last layer
            mixed += mix(experts, gate(x).unsqueeze(1))
        return mixed


class PLE(Backbone):
    """Applies extraction layers with task and shared experts; task t's tower reads the output v^t of its stream.

    All streams of the first extraction layer read the concatenated embeddings e.

    Args:
        num_embeddings: number of ids of each of the F fields.
        embedding_dim: E, the width of all fields, or one width per field.
        task_names: the T tasks, in the order of the label columns.
        shared_experts: number of shared experts in each extraction layer.
        task_experts: number of experts per task in each extraction layer.
        extraction_layers: number of extraction layers; with one, the model is CGC.
        expert_hidden: widths of the layers of each expert.
        tower_hidden: widths of the layers of each tower.
        l2: weight of the L2 term.

    Shape:
        - ids: [B, F], int32 or int64
        - Output: logits [B, T]

    Raises:
        ValueError: ``extraction_layers`` < 1 or ``expert_hidden`` is empty.
    """

    def __init__(
        self,
        num_embeddings: Sequence[int],
        embedding_dim: int | Sequence[int],
        task_names: Sequence[str],
        *,
        shared_experts: int = 3,
        task_experts: int = 1,
        extraction_layers: int = 2,
        expert_hidden: Sequence[int] = (64,),
        tower_hidden: Sequence[int] = (64, 32, 16),
        l2: float = 1e-6,
    ) -> None:
        super().__init__(num_embeddings, embedding_dim, task_names, l2)
        if extraction_layers < 1 or not expert_hidden:
            raise ValueError(
                "PLE: expected extraction_layers >= 1 and one or more widths in expert_hidden, got "
                f"{extraction_layers} and {list(expert_hidden)}"
            )
        widths = [self.embedded_features] + [expert_hidden[-1]] * (extraction_layers - 1)
        tasks = len(self.task_names)
        self.layers = nn.ModuleList(
            ExtractionLayer(
                width, tasks, task_experts, shared_experts, expert_hidden, last=layer == extraction_layers - 1
            )
            for layer, width in enumerate(widths)
        )
        self.towers = self._make_towers(expert_hidden[-1], tower_hidden)

    def task_inputs(self, embedded: Tensor) -> list[Tensor]:
        streams = [embedded] * (len(self.towers) + 1)
        for layer in self.layers:
            streams = layer(streams)
        return streams
