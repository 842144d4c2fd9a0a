"""The public loss :func:`sigmoid_contrast` (Zhai et al., 2023).

Shapes: B rows (anchors), N candidates, d hidden width, W ranks.
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch._compile import _disable_dynamo
from torch.distributed import ProcessGroup

from adaftr_fast.ops.infonce.autograd import accumulation_dtype
from adaftr_fast.ops.infonce.candidates import Candidates, CrossRankBatch
from adaftr_fast.ops.infonce.checks import check_no_tangents, check_positive_index, check_representations, op_name
from adaftr_fast.ops.infonce.sigmoid_op import FunctionalSigmoidContrast


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
    """Computes the sigmoid loss of SigLIP between two sets of representations (Zhai et al., 2023, Eq. 1).

    With anchors a = ``h_ctr``, candidates b = ``h_cvr`` and logits z_rj = logit_scale a_r . b_j + logit_bias, each pair
    is classified by itself as positive or negative:

        loss = -1/B sum_r (log sigmoid(z_{r, y_r}) + sum_{j != y_r} log sigmoid(-z_rj))

    where y_r is the index of the row's positive. The B x N logits are never stored.

    The loss is differentiable in ``h_ctr``, ``h_cvr``, ``logit_scale`` and ``logit_bias``. It can be differentiated
    twice; the second derivative is computed in plain PyTorch, which stores the B x N logits. Sums are accumulated in
    float32, or in float64 for float64 inputs. The CPU kernel computes products of half types in float32 and flushes
    denormals to zero. From 256 rows a thread on, the last bits of its gradient of ``h_cvr`` may depend on the number of
    threads. The Triton kernel rounds the sigmoids to half types for their products, and float32 products
    follow ``torch.set_float32_matmul_precision`` on CUDA: IEEE float32 with "highest", else TF32. It has been compiled
    for sm_80 and sm_90 and run under Triton's interpreter, but not on a GPU. Other devices run plain PyTorch on blocks
    of rows.

    ``torch.func.grad`` and ``vjp`` are supported outside ``torch.compile``; ``vmap`` and ``jacrev`` call the loss in a
    loop.

    Args:
        h_ctr: anchors [B, d]; float32, bfloat16, float16 or float64, any strides.
        h_cvr: candidates [N, d], of the same types. If the two types differ, both are converted to the wider one.
        logit_scale: factor of the similarities > 0, 0-dim or a float. ``torch.compile`` treats a float as a constant.
        logit_bias: added to every logit, 0-dim or a float.
        positive_index: [B] int64, the index of each row's positive among the candidates. -100: the row has no positive,
            and all its pairs are negative, as with the candidates of another rank. Default: ``arange(B)``, which
            requires N >= B.
        reduction: "mean" (the sum over all pairs divided by B; 0 if B = 0) or "sum".
        backend: "auto" selects C++ on CPU, Triton on CUDA, and plain PyTorch in blocks of rows on GPUs below compute
            capability 8.0. "reference", "cpu" and "triton" select one backend.
            "triton" accepts CPU tensors only under TRITON_INTERPRET=1.
        process_group: if given, the candidates of every row are the ``h_cvr`` of all ranks, as if the ranks' rows were
            one batch. The ranks may have different B and N, including 0. ``positive_index`` counts this rank's
            candidates. All ranks must call the function, and either all or none must run backward. With "mean", a
            rank's loss is W times its share of the mean over all ranks' rows, so that the mean of the ranks' losses,
            and of their gradients under DistributedDataParallel, equals that of one process. With "sum", sum the
            ranks' gradients instead. Not supported within ``torch.compile``.

    Shape:
        - h_ctr: [B, d]
        - h_cvr: [N, d]
        - logit_scale, logit_bias: 0-dim
        - Output: 0-dim; float32, or float64 for float64 inputs

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: an argument has the wrong shape, device or value, or differs between ranks where it must not.
        NotImplementedError: an input carries a forward-mode tangent.
        RuntimeError: on CPU, a logit_scale that is not positive and finite, a logit_bias that is not finite, or a
            positive_index out of range. On CUDA the values are not checked, because that would wait for the device;
            they give NaN where there is a pair.

    Example:
        >>> image, text = torch.randn(2, 1024, 64).unbind()
        >>> scale, bias = torch.tensor(10.0, requires_grad=True), torch.tensor(-10.0, requires_grad=True)
        >>> loss = adaftr_fast.sigmoid_contrast(image, text, scale, bias)
        >>> loss.backward()
    """
    op = _op_of(backend, h_ctr)
    check_representations("sigmoid_contrast", h_ctr, h_cvr)
    check_no_tangents("sigmoid_contrast", h_ctr, h_cvr, logit_scale, logit_bias)
    check_positive_index("sigmoid_contrast", h_ctr, h_cvr, positive_index)
    if reduction not in ("mean", "sum"):
        raise ValueError(f"sigmoid_contrast: reduction must be 'mean' or 'sum', got {reduction!r}")
    dtype = torch.promote_types(h_ctr.dtype, h_cvr.dtype)
    h_ctr, h_cvr = h_ctr.to(dtype), h_cvr.to(dtype)
    scale, bias = (_scalar(n, x, h_ctr) for n, x in (("logit_scale", logit_scale), ("logit_bias", logit_bias)))
    candidates, rows = Candidates(h_cvr, positive_index, None), float(len(h_ctr))
    if process_group is not None:
        batch = _across_ranks(process_group, h_ctr, h_cvr)
        candidates, rows = batch.gather(candidates, batch.columns), sum(batch.rows) / batch.world_size
    enabled = torch.is_grad_enabled()
    needs = enabled and h_ctr.requires_grad, enabled and candidates.h.requires_grad
    loss: Tensor = op(h_ctr, candidates.h, scale, bias, candidates.positive, *needs)[0]
    return loss / (rows or 1) if reduction == "mean" else loss


@_disable_dynamo  # torch.compiler.disable, without importing the compiler until it is needed
def _across_ranks(process_group: ProcessGroup, h_ctr: Tensor, h_cvr: Tensor) -> CrossRankBatch:
    """Exchanges the batch sizes; checks that whatever decides on a collective in backward agrees on all ranks."""
    must_agree = {"whether h_cvr needs a gradient": torch.is_grad_enabled() and h_cvr.requires_grad}
    return CrossRankBatch("sigmoid_contrast", process_group, h_ctr, h_cvr, must_agree)


def _scalar(name: str, x: Tensor | float, h: Tensor) -> Tensor:
    """Returns x as a 0-dim tensor of the accumulation type on the device of h."""
    acc = accumulation_dtype(h.dtype)
    if not isinstance(x, Tensor):
        if isinstance(x, bool) or not isinstance(x, (float, int)):
            raise TypeError(f"sigmoid_contrast: {name} must be a number or a 0-dim tensor, got {type(x).__name__}")
        return h.new_full((), float(x), dtype=acc)
    if not x.is_floating_point():
        raise TypeError(f"sigmoid_contrast: {name} must be floating point, got {x.dtype}")
    if x.numel() != 1:
        raise ValueError(f"sigmoid_contrast: {name} must hold one number, got shape {tuple(x.shape)}")
    return x.reshape(()).to(h.device, acc)


def _op_of(backend: str, h_ctr: Tensor) -> Callable[..., Any]:
    name = op_name("sigmoid_contrast", "sigmoid_contrast", backend, h_ctr)
    if not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active():
        return lambda *args: FunctionalSigmoidContrast.apply(*args, name)
    op: Callable[..., Any] = getattr(torch.ops.adaftr_fast, name)
    return op
