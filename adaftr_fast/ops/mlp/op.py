"""``torch.ops.adaftr_fast.mlp``, ``mixture`` and ``log_loss``: stacks of dense layers, mixtures of
experts, and log-losses, each in one pass.

Shapes: B rows, T tasks, k experts, v width of an expert. ``adaftr_fast/ops/mlp/reference.py`` gives
the formulas. On CPU, a block of rows passes through all layers while it is in cache, forward and
backward.

With ``reduced`` (autocast to bfloat16) the outputs are bfloat16. On CPUs with AVX512-BF16 or ARM's
FEAT_BF16, both operands of every product are rounded to bfloat16 as they are read: inputs, weights,
and the gradient of a layer's pre-activation. The gradient of the bias sums the rounded values.
Weights, their gradients and all sums are float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from adaftr_fast.ops.library import define, key_of_cpp_gradient
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
    "mlp(Tensor[] inputs, int[] reads, Tensor[] weights, Tensor[] biases, int[] depths, int[] "
    "rectified,"
    " bool reduced=False) -> Tensor[]",
    reference.mlp,
    key=key_of_cpp_gradient(),
)
define(
    "mlp_backward(Tensor?[] gradients, Tensor[] inputs, Tensor[] outputs, int[] reads, Tensor[] "
    "weights,"
    " Tensor[] biases, int[] depths, int[] rectified, int[] wanted) -> Tensor[]",
    reference.mlp_backward,
    _mlp_backward_fake,
)
define(
    "mixture(Tensor experts, Tensor logits) -> Tensor[]",
    reference.mixture,
    key=key_of_cpp_gradient(),
)
define(
    "mixture_backward(Tensor?[] gradients, Tensor experts, Tensor logits) -> (Tensor, Tensor)",
    reference.mixture_backward,
    lambda gradients, experts, logits: (
        experts.new_empty(experts.shape),
        logits.new_empty(logits.shape),
    ),
)
define(
    "log_loss(Tensor logits, Tensor labels, Tensor? weight, float divisor) -> (Tensor, Tensor)",
    reference.log_loss,
    key=key_of_cpp_gradient(),
)
