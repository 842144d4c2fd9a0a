"""``torch.ops.adaftr_fast.sigmoid_contrast``: the sigmoid loss and its gradients in one pass over the similarities.

Shapes: B rows (anchors a_r), N candidates b_j, d hidden width. With z_rj = logit_scale a_r . b_j + logit_bias and the
column y_r of row r's positive (Zhai et al., 2023, Eq. 1, without the division by B)

    loss = sum_r (softplus(-z_{r, y_r}) + sum_{j != y_r} softplus(z_rj))

A row whose positive is NO_POSITIVE has negatives alone. The op also returns the loss's gradients, as ``infonce`` does:
in the accumulation type, empty where not needed. Backward multiplies them by the upstream scalar.

The same schema is registered three times: ``sigmoid_contrast`` (the dispatcher selects C++ on CPU, Triton on CUDA and
the reference elsewhere), ``sigmoid_contrast_reference`` and ``sigmoid_contrast_triton``. The reference runs on blocks
of rows, so that no backend stores the B x N logits.
"""

import importlib.util
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from adaftr_fast.ops.infonce.autograd import Gradients, accumulation_dtype, functional, in_its_types, loop
from adaftr_fast.ops.library import define, library

SCHEMA = (
    "(Tensor anchors, Tensor candidates, Tensor logit_scale, Tensor logit_bias, Tensor? positive, bool need_d_anchors,"
    " bool need_d_candidates) -> (Tensor loss, Tensor d_anchors, Tensor d_candidates, Tensor d_logit_scale,"
    " Tensor d_logit_bias)"
)
NAMES = ("sigmoid_contrast", "sigmoid_contrast_reference", "sigmoid_contrast_triton")
NO_POSITIVE = -100
BLOCK_ELEMENTS = 1 << 22  # of a block of the reference's logits
Outputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def sigmoid_rows(
    anchors: Tensor,  # [B, d]
    candidates: Tensor,  # [N, d]
    logit_scale: Tensor,  # []
    logit_bias: Tensor,  # []
    positive: Tensor,  # [B] int64
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Computes the loss and, in closed form, its gradients in the four inputs; stores the B x N logits."""
    s = anchors @ candidates.T
    is_positive = torch.arange(candidates.shape[0], device=s.device) == positive[:, None]
    sign = torch.where(is_positive, -1.0, 1.0).to(s)
    z = sign * (logit_scale * s + logit_bias)
    d_z = sign * z.sigmoid()  # [B, N]
    d_s = logit_scale * d_z
    s = s.masked_fill((d_z == 0) & ~s.isfinite(), 0.0)  # sigmoid(z) z -> 0
    # F.softplus rounds softplus(z) to z from 20 on.
    return -F.logsigmoid(-z).sum(), d_s @ candidates, d_s.T @ anchors, (d_z * s).sum(), d_z.sum()


@in_its_types
def _reference(
    anchors: Tensor,
    candidates: Tensor,
    logit_scale: Tensor,
    logit_bias: Tensor,
    positive: Tensor | None,
    need_d_anchors: bool,
    need_d_candidates: bool,
) -> Outputs:
    if anchors.device.type == "cpu":  # on other devices, reading the values would wait for the device
        _check_values(logit_scale, logit_bias, positive, candidates.shape[0])
    acc = accumulation_dtype(anchors.dtype)
    a, b, scale, bias = (x.to(anchors.device, acc) for x in (anchors, candidates, logit_scale, logit_bias))
    positive = torch.arange(len(a), device=a.device) if positive is None else positive
    sums = [torch.zeros_like(scale) for _ in range(3)]  # the loss, d_logit_scale, d_logit_bias
    d_a, d_b = torch.zeros_like(a), torch.zeros_like(b)
    height = max(1, BLOCK_ELEMENTS // max(1, len(b)))
    for first in range(0, len(a), height):
        rows = slice(first, first + height)
        loss, d_a[rows], d_block, *d_terms = sigmoid_rows(a[rows], b, scale, bias, positive[rows])
        d_b += d_block
        for total, part in zip(sums, (loss, *d_terms)):
            total += part
    d_a, d_b = (d if need else d.new_empty(0) for d, need in ((d_a, need_d_anchors), (d_b, need_d_candidates)))
    return sums[0], d_a, d_b, sums[1], sums[2]


def _check_values(logit_scale: Tensor, logit_bias: Tensor, positive: Tensor | None, num_candidates: int) -> None:
    """Checks the values of the scale, the bias and positive, as the C++ kernel does."""
    scale, bias = logit_scale.item(), logit_bias.item()
    if not 0 < scale < float("inf"):
        raise RuntimeError(f"sigmoid_contrast: logit_scale must be positive and finite, got {scale}")
    if not -float("inf") < bias < float("inf"):
        raise RuntimeError(f"sigmoid_contrast: logit_bias must be finite, got {bias}")
    if positive is not None:
        outside = (positive != NO_POSITIVE) & ((positive < 0) | (positive >= num_candidates))
        if outside.any():
            row = int(outside.nonzero()[0])
            raise RuntimeError(
                f"sigmoid_contrast: positive_index must be in [0, {num_candidates}) or {NO_POSITIVE}, "
                f"got positive_index[{row}] = {positive[row].item()}"
            )


def _triton(*args: Any) -> Outputs:
    from adaftr_fast.kernels.infonce import sigmoid_contrast  # imports triton, which CPU users may not have installed

    return sigmoid_contrast(*args)


def _cuda(h_ctr: Tensor, *args: Any) -> Outputs:
    """Runs the kernel, or plain PyTorch on a GPU that is older than the kernels are compiled for."""
    run = _triton if torch.cuda.get_device_capability(h_ctr.device) >= (8, 0) else _reference
    return run(h_ctr, *args)


def _fake(
    anchors: Tensor,
    candidates: Tensor,
    logit_scale: Tensor,
    logit_bias: Tensor,
    positive: Tensor | None,
    need_d_anchors: bool,
    need_d_candidates: bool,
) -> Outputs:
    acc = accumulation_dtype(anchors.dtype)

    def empty(like: Tensor, needed: bool) -> Tensor:
        return like.new_empty(like.shape if needed else (0,), dtype=acc)

    gradients = empty(anchors, need_d_anchors), empty(candidates, need_d_candidates)
    loss, d_logit_scale, d_logit_bias = (anchors.new_empty((), dtype=acc) for _ in range(3))
    return loss, *gradients, d_logit_scale, d_logit_bias


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Outputs) -> None:
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*output[1:])
    *tensors, need_d_anchors, need_d_candidates = inputs
    ctx.computed = (need_d_anchors, need_d_candidates, True, True)
    ctx.save_for_backward(*tensors, *output[1:])


def _backward_of(name: str) -> Any:
    """Returns the autograd formula of op ``name``; a recomputation calls the same op."""

    def backward(ctx: Any, g_loss: Tensor | None, *_: Tensor | None) -> Gradients:
        if g_loss is None:
            return (None,) * 7
        # With create_graph=True, and always under torch.func, the gradients are differentiable themselves.
        gradients = _Gradients.apply if torch.is_grad_enabled() else _Gradients.forward
        needs = tuple(ctx.needs_input_grad[:4])
        return *gradients(name, needs, ctx.computed, g_loss, *ctx.saved_tensors), None, None, None

    return backward


class _Gradients(torch.autograd.Function):
    """The gradients by the op, in anchors, candidates, logit_scale and logit_bias; None where not needed.

    Their own derivatives differentiate :func:`sigmoid_rows`, which stores the B x N logits.
    """

    @staticmethod
    def forward(
        name: str, needs: tuple[bool, ...], computed: tuple[bool, ...], g_loss: Tensor, *saved: Any
    ) -> Gradients:
        inputs, gradients = saved[:5], saved[5:]
        if any(w and not c for w, c in zip(needs, computed)):
            gradients = getattr(torch.ops.adaftr_fast, name)(*inputs, *needs[:2])[1:]
        return tuple(
            (g * g_loss).to(x.device, x.dtype) if need else None for g, x, need in zip(gradients, inputs, needs)
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Gradients) -> None:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs[3:9])

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor | None) -> Gradients:
        *inputs, positive = ctx.saved_tensors
        anchors = inputs[1]
        y = torch.arange(len(anchors), device=anchors.device) if positive is None else positive

        def closed_form(g_loss: Tensor, a: Tensor, b: Tensor, scale: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
            """The gradients as functions of g_loss and the four inputs."""
            acc = accumulation_dtype(a.dtype)
            gradients = sigmoid_rows(a.to(acc), b.to(acc), scale.to(acc), bias.to(acc), y)[1:]
            return tuple(g * g_loss for g in gradients)

        values, pull = torch.func.vjp(closed_form, *inputs)[:2]  # mypy: it may return three
        d = pull(tuple(torch.zeros_like(v) if g is None else g.to(v) for g, v in zip(upstream, values)))
        needed = tuple(g if need else None for g, need in zip(d, ctx.needs_input_grad[3:]))
        return None, None, None, *needed, *(None,) * 5

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Gradients, tuple[int | None, ...]]:
        return loop(_Gradients, info.batch_size, in_dims, args)


FunctionalSigmoidContrast = functional(_setup_context, _backward_of)

for _name in NAMES:
    define(_name, SCHEMA, _fake, _setup_context, _backward_of)
    library.impl(_name, _triton if _name.endswith("_triton") else _reference, "CompositeExplicitAutograd")
if importlib.util.find_spec("triton") is not None:
    library.impl("sigmoid_contrast", _cuda, "CUDA")
