"""PLE: task experts and shared experts in progressive extraction layers (Tang et al., RecSys'20).

Shapes: B batch, T tasks, k experts, v width of an expert's output.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from adaftr_fast.config import ModelConfig
from adaftr_fast.models.base import Backbone
from adaftr_fast.models.sizes import first_widths
from adaftr_fast.nn.mlp import Experts
from adaftr_fast.nn.module_list import ModuleList
from adaftr_fast.nn.stacks import mix


class ExtractionLayer(nn.Module):
    """Maps the inputs of T task streams and one shared stream to those of the next extraction
    layer.

        x^t -> sum_i softmax(W_t x^t + b_t)_i S^t_i

    where S^t stacks the outputs of task t's experts, which read x^t, and of the shared experts,
    which read the shared stream (PLE paper, Eqs. 1-5, whose gates have no bias b_t;
    docs/decisions.md). The shared stream becomes a mixture of all experts' outputs, by a gate that
    reads the shared stream (Eqs. 6-8). The ``last`` layer computes no shared stream, because
    nothing reads it.

    Args:
        in_features: width of every stream's input.
        tasks: T, the number of tasks.
        task_experts: number of experts per task.
        shared_experts: number of shared experts.
        hidden: widths of each expert's layers.
        last: if True, omits the shared stream's output.
    """

    def __init__(
        self,
        in_features: int,
        tasks: int,
        task_experts: int,
        shared_experts: int,
        hidden: Sequence[int],
        *,
        last: bool,
    ) -> None:
        super().__init__()
        own = task_experts + shared_experts
        every = tasks * task_experts + shared_experts
        counts = [task_experts] * tasks + [shared_experts]
        self.experts = ModuleList(Experts(in_features, count, hidden) for count in counts)
        gated = [own] * tasks + ([] if last else [every])
        self.gates = ModuleList(nn.Linear(in_features, experts) for experts in gated)
        self.gated_streams = list(range(len(gated)))

    def extra_repr(self) -> str:
        return f"tasks={len(self.experts) - 1}"

    def forward(self, streams: Sequence[Tensor]) -> list[Tensor]:
        """Maps the T task streams and then the shared stream, [B, in] each, to the next layer's,
        [B, v] each.
        """
        outputs = [experts(x) for experts, x in zip(self.experts, streams)]  # each [B, k, v]
        readable = [torch.cat((own, outputs[-1]), 1) for own in outputs[:-1]] + [
            torch.cat(outputs, 1)
        ]
        mixed = []
        # without the shared stream in the last layer
        for gate, stream in zip(self.gates, self.gated_streams):
            mixed += mix(readable[stream], gate(streams[stream]).unsqueeze(1))
        return mixed

    def with_streams(self, experts: Sequence[int], gates: Sequence[int]) -> ExtractionLayer:
        """Returns a layer with the experts and the gates of some streams, which shares its
        parameters with this one.

        Args:
            experts: positions of the streams whose experts it has, in order; it takes these
                streams.
            gates: positions of the streams that it returns, among ``experts``.
        """
        layer = copy.copy(self)
        layer._modules = dict(self._modules)
        layer.experts = ModuleList(self.experts[stream] for stream in experts)
        layer.gates = ModuleList(self.gates[stream] for stream in gates)
        layer.gated_streams = [list(experts).index(stream) for stream in gates]
        return layer


class PLE(Backbone):
    """Applies extraction layers with task and shared experts; task t's tower reads the output v^t
    of its stream.

    All streams of the first extraction layer read the concatenated embeddings e.

    Args:
        num_embeddings: number of rows of each of the F fields.
        task_names: the T tasks, in the order of the label columns.
        config: the settings. The model reads ``embedding_dim``, ``embedding_dims``, ``attention``,
            ``attention_hidden``, ``num_experts``, ``shared_experts``, ``task_experts``,
            ``extraction_layers``, ``expert_hidden``, ``equal_budget``, ``tower_hidden``, ``l2`` and
            ``l2_form``.
        field_names: the F names that ``config.embedding_dims`` and ``config.attention`` refer to;
            needed only if they name any.
        dense: encodings of the dense fields, if there are any.

    Shape:
        - ids: [B, F], int32 or int64
        - Output: logits [B, T]
    """

    def make_layers(self, config: ModelConfig) -> None:
        tasks = len(self.task_names)
        own = config.task_experts
        shared = config.num_experts if config.shared_experts is None else config.shared_experts
        hidden = first_widths(config, self.embedded_features, tasks, networks=shared + tasks * own)
        last = config.extraction_layers - 1
        widths = [self.embedded_features] + [hidden[-1]] * last
        self.layers = ModuleList(
            ExtractionLayer(width, tasks, own, shared, hidden, last=layer == last)
            for layer, width in enumerate(widths)
        )
        self.towers = self.make_towers(hidden[-1], config.tower_hidden)

    def task_inputs(self, embedded: Tensor) -> list[Tensor]:
        streams = [embedded] * len(self.layers[0].experts)
        for layer in self.layers:
            streams = layer(streams)
        return streams

    def keep_task(self, task: int, names: Sequence[str]) -> None:
        """Keeps the streams that the task's one depends on: the shared stream mixes the experts of
        every stream.
        """
        every = list(range(len(names) + 1))
        own = [task, len(names)]
        last = len(self.layers) - 1
        experts = [own if layer == last else every for layer in range(last + 1)]
        gates = [*experts[1:], [task]]
        self.layers = ModuleList(map(ExtractionLayer.with_streams, self.layers, experts, gates))
