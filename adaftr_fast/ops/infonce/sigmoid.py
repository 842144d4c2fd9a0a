"""The loss :func:`sigmoid_contrast` (Zhai et al., 2023), and its op.

``torch.ops.adaftr_fast.sigmoid_contrast`` computes the loss and its gradients in one pass over the
similarities. With anchors a_r, candidates b_j, z_rj = logit_scale a_r . b_j + logit_bias and the
column y_r of row r's positive (Zhai et al., 2023, Eq. 1, without the division by B)

    loss = sum_r (softplus(-z_{r, y_r}) + sum_{j != y_r} softplus(z_rj))

A row whose positive is -100 has negatives alone. The reference runs on blocks of rows, so that no
backend stores the B x N logits.

Shapes: B rows (anchors), N candidates, d hidden width, W ranks.
"""

from numbers import Real
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributed import ProcessGroup

from adaftr_fast.ops.infonce.arguments import (
    check_no_tangents,
    check_representations,
    check_vectors,
    op_name,
)
from adaftr_fast.ops.infonce.autograd import DifferentiableOp, accumulation_dtype, chunks_of_rows
from adaftr_fast.ops.infonce.candidates import Direction, across_ranks
from adaftr_fast.ops.infonce.reference import check_positive_range
from adaftr_fast.ops.library import check_local

SCHEMA = (
    "(Tensor anchors, Tensor candidates, Tensor logit_scale, Tensor logit_bias, Tensor? positive, "
    "bool need_d_anchors,"
    " bool need_d_candidates) -> (Tensor loss, Tensor d_anchors, Tensor d_candidates, Tensor "
    "d_logit_scale,"
    " Tensor d_logit_bias)"
)


def sigmoid_contrast(
    h_ctr: Tensor,
    h_cvr: Tensor,
    logit_scale: Tensor | float,
    logit_bias: Tensor | float,
    *,
    positive_index: Tensor | None = None,
    reduction: Literal["mean", "sum"] = "mean",
    backend: Literal["auto", "reference", "cpu", "triton"] = "auto",
    process_group: ProcessGroup | None = None,
) -> Tensor:
    """Computes the sigmoid loss of SigLIP between two sets of representations (Zhai et al., 2023,
    Eq. 1).

    With anchors a = ``h_ctr``, candidates b = ``h_cvr`` and logits z_rj = logit_scale a_r . b_j +
    logit_bias, each pair is classified by itself as positive or negative:

        loss = -1/B sum_r (log sigmoid(z_{r, y_r}) + sum_{j != y_r} log sigmoid(-z_rj))

    where y_r is the index of the row's positive. The B x N logits are never stored.

    The loss is differentiable in ``h_ctr``, ``h_cvr``, ``logit_scale`` and ``logit_bias``. It can
    be differentiated twice; the second derivative is computed in plain PyTorch, which stores the B
    x N logits. Sums are accumulated in float32, or in float64 for float64 inputs. The CPU kernel
    computes products of half types in float32 and flushes denormals to zero. From 256 rows a thread
    on, the last bits of its gradient of ``h_cvr`` may depend on the number of threads. The Triton
    kernel rounds the sigmoids to half types for their products, and float32 products follow
    ``torch.set_float32_matmul_precision`` on CUDA: IEEE float32 with "highest", else TF32. It has
    been compiled for sm_80 and sm_90 and run under Triton's interpreter, but not on a GPU. Other
    devices run plain PyTorch on blocks of rows.

    ``torch.func.grad`` and ``vjp`` are supported outside ``torch.compile``; ``vmap`` and ``jacrev``
    call the loss in a loop.

    Args:
        h_ctr: anchors [B, d]; float32, bfloat16, float16 or float64, any strides.
        h_cvr: candidates [N, d], of the same types. If the two types differ, both are converted to
            the wider one.
        logit_scale: factor of the similarities > 0, 0-dim or a float. ``torch.compile`` treats a
            float as a constant.
        logit_bias: added to every logit, 0-dim or a float.
        positive_index: [B] int64, the index of each row's positive among the candidates. -100: the
            row has no positive, and all its pairs are negative, as with the candidates of another
            rank. Default: ``arange(B)``, which requires N >= B.
        reduction: "mean" (the sum over all pairs divided by B; 0 if B = 0) or "sum".
        backend: "auto" selects C++ on CPU, Triton on CUDA, and plain PyTorch in blocks of rows on
            GPUs below compute capability 8.0. "reference", "cpu" and "triton" select one backend.
            "triton" accepts CPU tensors only under TRITON_INTERPRET=1.
        process_group: if given, the candidates of every row are the ``h_cvr`` of all ranks, as if
            the ranks' rows were one batch. The ranks may have different B and N, including 0.
            ``positive_index`` counts this rank's candidates. All ranks must call the function, and
            either all or none must run backward. With "mean", a rank's loss is W times its share of
            the mean over all ranks' rows, so that the mean of the ranks' losses, and of their
            gradients under DistributedDataParallel, equals that of one process. With "sum", sum the
            ranks' gradients instead. Not supported within ``torch.compile``.

    Shape:
        - h_ctr: [B, d]
        - h_cvr: [N, d]
        - logit_scale, logit_bias: 0-dim
        - Output: 0-dim; float32, or float64 for float64 inputs

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: an argument has the wrong shape, device or value, or differs between ranks where
            it must not.
        NotImplementedError: an input carries a forward-mode tangent.
        RuntimeError: on CPU, a logit_scale that is not positive and finite, a logit_bias that is
            not finite, or a positive_index out of range. On CUDA the values are not checked,
            because that would wait for the device; they give NaN where there is a pair.

    Example:
        >>> image, text = torch.randn(2, 1024, 64).unbind()
        >>> scale, bias = torch.tensor(10.0, requires_grad=True), torch.tensor(-10.0, requires_grad=True)
        >>> loss = adaftr_fast.sigmoid_contrast(image, text, scale, bias)
        >>> loss.backward()
    """
    check_representations("sigmoid_contrast", h_ctr, h_cvr)
    name = op_name("sigmoid_contrast", "sigmoid_contrast", backend, h_ctr)
    check_no_tangents("sigmoid_contrast", h_ctr, h_cvr, logit_scale, logit_bias)
    check_vectors("sigmoid_contrast", h_ctr, h_cvr, True, positive_index=positive_index)
    if reduction not in ("mean", "sum"):
        raise ValueError(f"sigmoid_contrast: reduction must be 'mean' or 'sum', got {reduction!r}")
    dtype = torch.promote_types(h_ctr.dtype, h_cvr.dtype)
    h_ctr = h_ctr.to(dtype)
    h_cvr = h_cvr.to(dtype)
    scale = _scalar("logit_scale", logit_scale, h_ctr)
    bias = _scalar("logit_bias", logit_bias, h_ctr)
    pairs = Direction(h_ctr, h_cvr, positive_index)
    rows = float(len(h_ctr))
    if process_group is not None:
        must_agree = {
            "whether h_cvr needs a gradient": torch.is_grad_enabled() and h_cvr.requires_grad
        }
        batch = across_ranks("sigmoid_contrast", process_group, h_ctr, h_cvr, must_agree)
        pairs = batch.gather(pairs, batch.columns)
        rows = sum(batch.rows) / batch.world_size
    found = SIGMOID.call(name, pairs._asdict() | {"logit_scale": scale, "logit_bias": bias})
    return found["loss"] / (rows or 1) if reduction == "mean" else found["loss"]


def _scalar(name: str, x: Tensor | float, h: Tensor) -> Tensor:
    """Returns x as a 0-dim tensor of the accumulation type on the device of h."""
    acc = accumulation_dtype(h.dtype)
    if not isinstance(x, Tensor):
        if isinstance(x, bool) or not isinstance(x, Real):
            raise TypeError(
                f"sigmoid_contrast: {name} must be a number or a 0-dim tensor, got "
                f"{type(x).__name__}"
            )
        return h.new_full((), float(x), dtype=acc)
    check_local("sigmoid_contrast", name, x)
    if x.dtype == torch.bool or x.is_complex():
        raise TypeError(f"sigmoid_contrast: {name} must be a real number, got {x.dtype}")
    if x.numel() != 1:
        raise ValueError(
            f"sigmoid_contrast: {name} must hold one number, got shape {tuple(x.shape)}"
        )
    return x.reshape(()).to(h.device, acc)


def sigmoid_rows(
    anchors: Tensor,  # [B, d]
    candidates: Tensor,  # [N, d]
    logit_scale: Tensor,  # []
    logit_bias: Tensor,  # []
    positive: Tensor,  # [B] int64
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Computes the loss and, in closed form, its gradients in the four inputs; stores the B x N
    logits.
    """
    s = anchors @ candidates.T
    is_positive = torch.arange(candidates.shape[0], device=s.device) == positive[:, None]
    sign = torch.where(is_positive, -1.0, 1.0).to(s)
    z = sign * (logit_scale * s + logit_bias)
    d_z = sign * z.sigmoid()  # [B, N]
    d_s = logit_scale * d_z
    s = s.masked_fill((d_z == 0) & ~s.isfinite(), 0.0)  # sigmoid(z) z -> 0
    # F.softplus rounds softplus(z) to z from 20 on.
    return -F.logsigmoid(-z).sum(), d_s @ candidates, d_s.T @ anchors, (d_z * s).sum(), d_z.sum()


def _closed_form(positive: Tensor | None, scale: Tensor, **inputs: Tensor) -> tuple[Tensor, ...]:
    """Computes the gradients times ``scale``, 0-dim."""
    anchors = inputs["anchors"]
    positive = torch.arange(len(anchors), device=anchors.device) if positive is None else positive
    return tuple(d * scale for d in sigmoid_rows(**inputs, positive=positive)[1:])


def _reference(
    anchors: Tensor,
    candidates: Tensor,
    logit_scale: Tensor,
    logit_bias: Tensor,
    positive: Tensor | None,
    **_: bool,
) -> dict[str, Tensor]:
    # on other devices, reading the values would wait for the device
    if anchors.device.type == "cpu":
        _check_values(logit_scale, logit_bias, positive, candidates.shape[0])
    acc = accumulation_dtype(anchors.dtype)
    a, b, scale, bias = (
        x.to(anchors.device, acc) for x in (anchors, candidates, logit_scale, logit_bias)
    )
    positive = torch.arange(len(a), device=a.device) if positive is None else positive
    totals = [torch.zeros_like(x) for x in (scale, a, b, scale, bias)]  # the loss, and the d_x
    for rows in chunks_of_rows(len(a), len(b)):
        found = sigmoid_rows(a[rows], b, scale, bias, positive[rows])
        for total, x in zip((totals[0], totals[1][rows], *totals[2:]), found):
            total.add_(x)
    return dict(zip(SIGMOID.outputs, totals))


def _check_values(
    logit_scale: Tensor, logit_bias: Tensor, positive: Tensor | None, num_candidates: int
) -> None:
    """Checks the values of the scale, the bias and positive, as the C++ kernel does."""
    scale = logit_scale.item()
    bias = logit_bias.item()
    if not 0 < scale < float("inf"):
        raise RuntimeError(
            f"sigmoid_contrast: logit_scale must be positive and finite, got {scale}"
        )
    if not -float("inf") < bias < float("inf"):
        raise RuntimeError(f"sigmoid_contrast: logit_bias must be finite, got {bias}")
    if positive is not None:
        check_positive_range("sigmoid_contrast", positive, num_candidates)


SIGMOID = DifferentiableOp(
    "sigmoid_contrast", SCHEMA, closed_form=_closed_form, reference=_reference, needs_sm_80=True
)
