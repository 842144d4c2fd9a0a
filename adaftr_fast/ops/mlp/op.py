"""``torch.ops.adaftr_fast.mlp`` and ``mixture``: stacks of dense layers, and mixtures of experts, each in one pass.

Shapes: B rows, T tasks, k experts, v width of an expert. ``adaftr_fast/ops/mlp/reference.py`` gives the formulas. On
CPU, a block of rows passes through all layers while it is in cache, forward and backward.

With ``reduced`` (autocast to bfloat16) the outputs are bfloat16. On CPUs with AVX512-BF16 or ARM's FEAT_BF16, both
operands of every product are rounded to bfloat16 as they are read: inputs, weights, and the gradient of a layer's
pre-activation. The gradient of the bias sums the rounded values. Weights, their gradients and all sums are float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from adaftr_fast._extension import has_cpp_gradients, is_built
from adaftr_fast.ops.library import define, key_of_cpp_gradient, library
from adaftr_fast.ops.mlp import reference


def _mlp_backward_fake(
    gradients: Any,
    inputs: Sequence[Tensor],
    outputs: Any,
    reads: Any,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    depths: Any,
    rectified: Any,
    wanted: Sequence[int],
) -> list[Tensor]:
    d_inputs = [x.new_empty(x.shape if want else (0,)) for x, want in zip(inputs, wanted)]
    return [*d_inputs, *(p.new_empty(p.shape) for p in (*weights, *biases))]


define(
    "mlp(Tensor[] inputs, int[] reads, Tensor[] weights, Tensor[] biases, int[] depths, int[] rectified,"
    " bool reduced=False) -> Tensor[]",
    reference.mlp,
    key=key_of_cpp_gradient(),
)
define(
    "mlp_backward(Tensor?[] gradients, Tensor[] inputs, Tensor[] outputs, int[] reads, Tensor[] weights,"
    " Tensor[] biases, int[] depths, int[] rectified, int[] wanted) -> Tensor[]",
    reference.mlp_backward,
    _mlp_backward_fake,
)


def _autocast_mlp(inputs: Sequence[Tensor], *others: Any, reduced: bool = False) -> list[Tensor]:
    """Calls the op under autocast, as csrc/autograd/mlp.cpp does."""
    narrow = torch.get_autocast_dtype("cpu") == torch.bfloat16 and inputs[0].dtype != torch.float64
    with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU)):
        outputs: list[Tensor] = torch.ops.adaftr_fast.mlp(inputs, *others[:5], reduced or narrow or any(others[5:]))
    return outputs


if is_built() and not has_cpp_gradients():
    library.impl("mlp", _autocast_mlp, "AutocastCPU")
define("mixture(Tensor experts, Tensor logits) -> Tensor[]", reference.mixture, key=key_of_cpp_gradient())
define(
    "mixture_backward(Tensor?[] gradients, Tensor experts, Tensor logits) -> (Tensor, Tensor)",
    reference.mixture_backward,
    lambda gradients, experts, logits: (experts.new_empty(experts.shape), logits.new_empty(logits.shape)),
)
