"""Stacks of dense layers, mixtures of experts and log-losses in plain PyTorch: the ground truth for
the kernels' tests.

Shapes: B rows, T tasks, k experts, v width of an expert.

A layer is y = relu(x W^T + b) with W [out, in] and b [out], or the same without the relu. Backward,
with g the gradient of y, set to 0 where the relu is inactive:

    dx = g W,  dW = g^T x,  db = sum of g over the rows

A mixture is out_t = sum_i w_ti g_i with w_t = softmax(logits_t). Backward, with s_ti = dout_t .
g_i:

    dg_i = sum_t w_ti dout_t,  dlogits_ti = w_ti (s_ti - sum_j w_tj s_tj)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def mlp(
    inputs: Sequence[Tensor],
    reads: Sequence[int],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    depths: Sequence[int],
    rectified: Sequence[int],
    reduced: bool = False,
) -> list[Tensor]:
    """Computes every layer's output [B, out], stack after stack.

    Args:
        inputs: [B, width] each.
        reads: per stack, the index of the input that its first layer reads.
        weights: of all layers, stack after stack.
        biases: of all layers, stack after stack.
        depths: per stack, the number of its layers.
        rectified: per stack, the number of its layers, counted from the first, that end in a relu.
        reduced: if True, the outputs are bfloat16.
    """
    outputs: list[Tensor] = []
    for read, depth, relus in zip(reads, depths, rectified):
        x = inputs[read]
        for index in range(depth):
            weight = weights[len(outputs)]
            bias = biases[len(outputs)]
            x = torch.nn.functional.linear(x.to(weight.dtype), weight, bias)
            x = torch.relu(x) if index < relus else x
            outputs.append(x.bfloat16() if reduced else x)
    return outputs


def mlp_backward(
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
    """Computes the gradients of inputs (empty where not ``wanted``), weights and biases from those
    of the outputs.

    Raises:
        ValueError: an output is not [B, out] of its layer.
    """
    for number, (output, weight) in enumerate(zip(outputs, weights, strict=True)):
        if output.shape != (len(inputs[0]), len(weight)):
            raise ValueError(
                f"mlp_backward: outputs[{number}] must be [{len(inputs[0])}, {len(weight)}], got "
                f"{list(output.shape)}"
            )
    d_inputs = [torch.zeros(x.shape, dtype=weights[0].dtype, device=x.device) for x in inputs]
    d_weights, d_biases = ([torch.zeros_like(p) for p in each] for each in (weights, biases))
    first = 0
    for read, depth, relus in zip(reads, depths, rectified):
        g: Tensor | None = None  # the gradient from the next layer
        for index in reversed(range(depth)):
            layer = first + index
            upstream = gradients[layer]
            if upstream is not None:
                upstream = upstream.to(weights[layer].dtype)
                g = upstream if g is None else g + upstream
            if g is None:
                continue
            if index < relus:
                g = torch.where(outputs[layer] <= 0, 0, g)
            x = outputs[layer - 1] if index else inputs[read]
            d_weights[layer], d_biases[layer] = g.T @ x.to(g.dtype), g.sum(0)
            g = g @ weights[layer]
        if g is not None:
            d_inputs[read] += g
        first += depth
    d_inputs = [
        d.to(x.dtype) if want else x.new_empty(0) for d, x, want in zip(d_inputs, inputs, wanted)
    ]
    return [*d_inputs, *d_weights, *d_biases]


def mixture(experts: Tensor, logits: Tensor) -> list[Tensor]:
    """Mixes experts [B, k, v] by the softmax of logits [B, T, k] -> T tensors [B, v]."""
    wide = torch.promote_types(experts.dtype, torch.float32)
    mixed = logits.to(wide).softmax(2) @ experts.to(wide)
    return [each.to(experts.dtype).clone() for each in mixed.unbind(1)]


def mixture_backward(
    gradients: Sequence[Tensor | None], experts: Tensor, logits: Tensor
) -> tuple[Tensor, Tensor]:
    """Computes the gradients of experts and logits from those of the T mixtures."""
    wide = torch.promote_types(experts.dtype, torch.float32)
    zero = experts.new_zeros(experts.shape[0], experts.shape[2], dtype=wide)
    g = torch.stack([zero if each is None else each.to(wide) for each in gradients], 1)  # [B, T, v]
    weights = logits.to(wide).softmax(2)
    s = g @ experts.to(wide).transpose(1, 2)  # [B, T, k]
    d_logits = weights * (s - (weights * s).sum(2, keepdim=True))
    return (weights.transpose(1, 2) @ g).to(experts.dtype), d_logits.to(logits.dtype)


def log_loss(
    logits: Tensor, labels: Tensor, weight: Tensor | None, divisor: float
) -> tuple[Tensor, Tensor]:
    """Computes the log-losses of logits [B, T], their sum over the rows divided by ``divisor``
    [T], and the derivative of that by each logit [B, T].

    Args:
        labels: [B, T], in [0, 1].
        weight: [B], a factor of each row; None for 1.
    """
    factors = 1.0 if weight is None else weight.to(logits.dtype)[:, None]
    each = torch.nn.functional.binary_cross_entropy_with_logits(
        logits, labels.to(logits.dtype), reduction="none"
    )
    slopes = (logits.detach().sigmoid() - labels) * factors / divisor
    return (each * factors).sum(0) / divisor, slopes
