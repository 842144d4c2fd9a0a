"""``torch.ops.adaftr_fast.mlp`` and ``mixture``: stacks of dense layers, and mixtures of experts, each in one pass.

Shapes: B rows, T tasks, k experts, v width of an expert. ``adaftr_fast/ops/mlp/reference.py`` gives the formulas. On
CPU, a block of rows passes through all layers while it is in cache, forward and backward.

With ``reduced`` (autocast to bfloat16) the outputs are bfloat16. On CPUs with AVX512-BF16, both operands of every
product are rounded to bfloat16 as they are read: inputs, weights, and the gradient of a layer's pre-activation. The
gradient of the bias sums the rounded values. Weights, their gradients and all sums are float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from adaftr_fast._extension import is_built
from adaftr_fast.ops.library import library
from adaftr_fast.ops.mlp import reference

library.define(
    "mlp(Tensor[] inputs, int[] reads, Tensor[] weights, Tensor[] biases, int[] depths, int[] rectified,"
    " bool reduced=False) -> Tensor[]"
)
library.define(
    "mlp_backward(Tensor?[] gradients, Tensor[] inputs, Tensor[] outputs, int[] reads, Tensor[] weights,"
    " Tensor[] biases, int[] depths, int[] rectified, int[] wanted) -> Tensor[]"
)
library.define("mixture(Tensor experts, Tensor logits) -> Tensor[]")
library.define("mixture_backward(Tensor?[] gradients, Tensor experts, Tensor logits) -> (Tensor, Tensor)")
for _name in ("mlp", "mlp_backward", "mixture", "mixture_backward"):
    library.impl(_name, getattr(reference, _name), "CompositeExplicitAutograd")


@torch.library.register_fake("adaftr_fast::mlp", lib=library)
def _mlp_fake(
    inputs: Sequence[Tensor],
    reads: Sequence[int],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    depths: Sequence[int],
    rectified: Sequence[int],
    reduced: bool = False,
) -> list[Tensor]:
    dtype = torch.bfloat16 if reduced else weights[0].dtype
    return [inputs[0].new_empty(inputs[0].shape[0], weight.shape[0], dtype=dtype) for weight in weights]


@torch.library.register_fake("adaftr_fast::mlp_backward", lib=library)
def _mlp_backward_fake(
    gradients: Sequence[Tensor | None],
    inputs: Sequence[Tensor],
    outputs: Sequence[Tensor],
    reads: Sequence[int],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    depths: Sequence[int],
    rectified: Sequence[int],
    wanted: Sequence[int],
) -> list[Tensor]:
    d_inputs = [x.new_empty(x.shape if want else (0,)) for x, want in zip(inputs, wanted)]
    return [*d_inputs, *(p.new_empty(p.shape) for p in (*weights, *biases))]


@torch.library.register_fake("adaftr_fast::mixture", lib=library)
def _mixture_fake(experts: Tensor, logits: Tensor) -> list[Tensor]:
    return [experts.new_empty(experts.shape[0], experts.shape[2]) for _ in range(logits.shape[1])]


@torch.library.register_fake("adaftr_fast::mixture_backward", lib=library)
def _mixture_backward_fake(
    gradients: Sequence[Tensor | None], experts: Tensor, logits: Tensor
) -> tuple[Tensor, Tensor]:
    return experts.new_empty(experts.shape), logits.new_empty(logits.shape)


def _mlp_setup(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    x, ctx.reads, weights, biases, ctx.depths, ctx.rectified, _ = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*x, *weights, *biases, *output)
    ctx.sizes = len(x), len(weights)


def _mlp_backward(ctx: Any, gradients: Sequence[Tensor | None]) -> tuple[Sequence[Tensor | None] | None, ...]:
    n, layers = ctx.sizes
    saved = ctx.saved_tensors
    x, weights = saved[:n], saved[n : n + layers]
    biases, outputs = saved[n + layers : n + 2 * layers], saved[n + 2 * layers :]
    gradients = torch.ops.adaftr_fast.mlp_backward(
        list(gradients), x, outputs, ctx.reads, weights, biases, ctx.depths, ctx.rectified, [1] * n
    )
    found = gradients[:n], None, gradients[n : n + layers], gradients[n + layers :], None, None, None
    return found[: len(ctx.needs_input_grad)]  # the dispatcher drops arguments that equal their default


def _mixture_setup(ctx: Any, inputs: tuple[Tensor, Tensor], output: list[Tensor]) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs)


def _mixture_backward(ctx: Any, gradients: Sequence[Tensor | None]) -> tuple[Tensor, Tensor]:
    return torch.ops.adaftr_fast.mixture_backward(list(gradients), *ctx.saved_tensors)


if not is_built():  # csrc/cpu/mlp/autograd.cpp registers a faster formula, which also supports double backward
    torch.library.register_autograd("adaftr_fast::mlp", _mlp_backward, setup_context=_mlp_setup, lib=library)
    torch.library.register_autograd(
        "adaftr_fast::mixture", _mixture_backward, setup_context=_mixture_setup, lib=library
    )
