"""``torch.ops.adaftr_fast.mlp`` and ``mixture``: stacks of dense layers, and mixtures of experts, each in one pass.

Shapes: B rows, T tasks, k experts, v width of an expert. ``adaftr_fast/ops/mlp/reference.py`` gives the formulas. On
CPU, a block of rows passes through all layers while it is in cache, forward and backward.

With ``reduced`` (autocast to bfloat16) the outputs are bfloat16. On CPUs with AVX512-BF16, both operands of every
product are rounded to bfloat16 as they are read: inputs, weights, and the gradient of a layer's pre-activation. The
gradient of the bias sums the rounded values. Weights, their gradients and all sums are float32.
"""

from __future__ import annotations

from collections.abc import Sequence

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
for _name in ("mlp", "mixture"):
    # csrc/cpu/mlp/autograd.cpp registers the gradient; without it, PyTorch's ops have theirs.
    library.impl(
        _name, getattr(reference, _name), "CompositeExplicitAutograd" if is_built() else "CompositeImplicitAutograd"
    )
    library.impl(f"{_name}_backward", getattr(reference, f"{_name}_backward"), "CompositeExplicitAutograd")


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


@torch.library.register_fake("adaftr_fast::mixture_backward", lib=library)
def _mixture_backward_fake(
    gradients: Sequence[Tensor | None], experts: Tensor, logits: Tensor
) -> tuple[Tensor, Tensor]:
    return experts.new_empty(experts.shape), logits.new_empty(logits.shape)
