"""Stacks of dense layers and mixtures of experts: in one pass where the CPU kernels apply, else
layer by layer.

Shapes: B rows, T tasks, k experts, v width of an expert.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

import adaftr_fast.ops.mlp.op  # noqa: F401  # defines the ops
from adaftr_fast._extension import has_cpp_gradients
from adaftr_fast.ops.library import is_eager


class Stack(NamedTuple):
    """A sequence of linear layers, each followed by a ReLU."""

    layers: Sequence[nn.Linear]
    linear_end: bool = False  # if True, no ReLU follows the last layer


def run_stacks(stacks: Sequence[Stack], inputs: Sequence[Tensor]) -> list[list[Tensor]]:
    """Computes every layer's output [B, out] of every stack; stack s reads ``inputs[s]`` [B, in].

    PyTorch's own layers are used on other devices and dtypes, and in compiled and exported
    programs, whose compiler fuses them. They are also used without gradients, so that a model and
    its exported programs predict the same bits.
    """
    if not (all(map(_is_plain, stacks)) and _has_kernel(inputs, stacks[0].layers[0].weight)):
        return [_run_plain(stack, x) for stack, x in zip(stacks, inputs)]
    distinct = list({id(x): x for x in inputs}.values())
    reads = [next(i for i, x in enumerate(distinct) if x is each) for each in inputs]
    layers = [layer for stack in stacks for layer in stack.layers]
    depths = [len(stack.layers) for stack in stacks]
    outputs = iter(
        torch.ops.adaftr_fast.mlp(
            distinct,
            reads,
            [layer.weight for layer in layers],
            [layer.bias for layer in layers],
            depths,
            [depth - stack.linear_end for stack, depth in zip(stacks, depths)],
        )
    )
    return [[next(outputs) for _ in stack.layers] for stack in stacks]


def mix(experts: Tensor, logits: Tensor) -> list[Tensor]:
    """Mixes experts [B, k, v] by the softmax of each task's logits [B, T, k] -> T
    tensors [B, v].
    """
    if _has_kernel((experts, logits)):
        mixed: list[Tensor] = torch.ops.adaftr_fast.mixture(experts, logits)
        return mixed
    return list((logits.softmax(2) @ experts).unbind(1))


def _run_plain(stack: Stack, x: Tensor) -> list[Tensor]:
    outputs = []
    for index, layer in enumerate(stack.layers):
        x = layer(x)
        if not (stack.linear_end and index == len(stack.layers) - 1):
            x = torch.relu(x)
        outputs.append(x)
    return outputs


def _is_plain(stack: Stack) -> bool:
    """Returns whether all layers are plain ``nn.Linear`` with a bias and without hooks."""
    return all(
        type(layer) is nn.Linear
        and layer.bias is not None
        and not (layer._forward_hooks or layer._forward_pre_hooks)
        and not (layer._backward_hooks or layer._backward_pre_hooks)
        for layer in stack.layers
    )


def _has_kernel(inputs: Sequence[Tensor], weight: Tensor | None = None) -> bool:
    """Returns whether the CPU kernels apply: eager mode with gradients, float32, or bfloat16 under
    autocast.
    """
    if not (is_eager() and torch.is_grad_enabled() and has_cpp_gradients()):
        return False
    autocast = torch.is_autocast_enabled("cpu")
    if autocast and torch.get_autocast_dtype("cpu") != torch.bfloat16:
        return False
    dtypes = (torch.float32, torch.bfloat16) if autocast else (torch.float32,)
    fits = all(x.dtype in dtypes and x.device.type == "cpu" for x in inputs)
    return fits and (weight is None or weight.dtype == torch.float32)
