"""The public loss :func:`adaptive_infonce` (paper, Eq. 13).

Shapes: B rows (anchors), N candidates, d hidden width, W ranks.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypedDict, Unpack, overload

import torch
from torch import Tensor
from torch._compile import _disable_dynamo
from torch.distributed import ProcessGroup

from adaftr_fast.ops.infonce.candidates import Candidates, CrossRankBatch
from adaftr_fast.ops.infonce.checks import (
    check_bias_is_finite,
    check_ignore_above,
    check_no_tangents,
    check_representations,
    check_row_options,
    op_name,
)
from adaftr_fast.ops.infonce.op import FunctionalInfoNCE, accumulation_dtype
from adaftr_fast.ops.infonce.reference import IGNORE

Backend = Literal["auto", "reference", "cpu", "triton"]
Reduction = Literal["mean", "sum", "none"]
Tau = Tensor | float


class InfoNCEStats(NamedTuple):
    """Statistics of each row's softmax over its candidates, all [B] and detached; 0 (False) for ignored rows."""

    lse: Tensor  # logsumexp over the row's candidates, the positive included
    positive_logit: Tensor  # a_r . b_{y_r} / tau_r
    top1: Tensor  # bool: the positive's logit is strictly greater than every negative's
    entropy: Tensor  # of the softmax, in nats


class InfoNCEOptions(TypedDict, total=False):
    """The keyword arguments of :func:`adaptive_infonce` besides ``return_stats``, which decides the result's type."""

    positive_index: Tensor | None
    row_group: Tensor | None
    column_group: Tensor | None
    row_weight: Tensor | None
    column_bias: Tensor | None
    ignore_above: float | None
    symmetric: bool
    reduction: Reduction
    backend: Backend
    process_group: ProcessGroup | None


@overload
def adaptive_infonce(
    h_ctr: Tensor,
    h_cvr: Tensor,
    tau: Tau | tuple[Tau, Tau],
    *,
    return_stats: Literal[False] = False,
    **options: Unpack[InfoNCEOptions],
) -> Tensor: ...


@overload
def adaptive_infonce(
    h_ctr: Tensor,
    h_cvr: Tensor,
    tau: Tau | tuple[Tau, Tau],
    *,
    return_stats: Literal[True],
    **options: Unpack[InfoNCEOptions],
) -> tuple[Tensor, InfoNCEStats]: ...


@overload
def adaptive_infonce(
    h_ctr: Tensor,
    h_cvr: Tensor,
    tau: Tau | tuple[Tau, Tau],
    *,
    return_stats: bool,
    **options: Unpack[InfoNCEOptions],
) -> Tensor | tuple[Tensor, InfoNCEStats]: ...


def adaptive_infonce(
    h_ctr: Tensor,
    h_cvr: Tensor,
    tau: Tau | tuple[Tau, Tau],
    *,
    positive_index: Tensor | None = None,
    row_group: Tensor | None = None,
    column_group: Tensor | None = None,
    row_weight: Tensor | None = None,
    column_bias: Tensor | None = None,
    ignore_above: float | None = None,
    symmetric: bool = False,
    reduction: Reduction = "mean",
    return_stats: bool = False,
    backend: Backend = "auto",
    process_group: ProcessGroup | None = None,
) -> Tensor | tuple[Tensor, InfoNCEStats]:
    """Computes InfoNCE between two tasks' representations with a temperature per row (paper, Eq. 13).

    With anchors a = ``h_ctr`` and candidates b = ``h_cvr``, the loss of row r is

        L_r = logsumexp_j(a_r . b_j / tau_r) - a_r . b_{y_r} / tau_r

    where y_r is the index of the row's positive. The B x N similarities are never stored.

    The loss is differentiable in ``h_ctr``, ``h_cvr``, ``tau``, ``row_weight`` and ``column_bias``. It can be
    differentiated twice; the second derivative is computed by the plain-PyTorch reference, which stores the B x N
    similarities. Sums are accumulated in float32, or in float64 for float64 inputs. The CPU kernel flushes denormals to
    zero.

    ``torch.func.grad`` and ``vjp`` are supported outside ``torch.compile``; ``vmap`` and ``jacrev`` call the loss in a
    loop.

    float32 products follow ``torch.set_float32_matmul_precision``:

    - "highest": IEEE float32.
    - "high": TF32 on CUDA. On CPUs with AMX, three bfloat16 products of operands split in two; the error of a gradient
      is about 1e-4 of its largest value.
    - "medium": TF32 on CUDA. On CPUs with AMX or AVX512-BF16, one bfloat16 product; the error is about 2e-2.

    Timings: benchmarks/README.md.

    Range of inputs. Logits are a_r . b_j / tau_r. No backend divides a representation by tau, so h_ctr / tau may
    overflow where the logits do not. Results are finite and accurate where, in every row, all sums of |a_rk b_jk|
    and all logits are finite in float32 (float64 for float64 inputs), as they are for the reference, with these
    limits:

    - C++: denormals count as zero. For float32, a tau below 1e-30 thus loses digits.
    - Triton: logits up to 1e8 in magnitude, or 1e7 for float16 inputs, and representations up to 1e30.

    A row with a logit out of range has a loss that is inf or NaN, or the right value where the backend can form it. The
    losses of other rows and their gradients in h_ctr and tau are not affected. The gradient in h_cvr sums over all
    rows, so it is inf or NaN too, as the mean or sum of the losses is. The trainer raises an error on a loss that
    is not finite.

    Args:
        h_ctr: anchors [B, d]; float32, bfloat16, float16 or float64, any strides.
        h_cvr: candidates [N, d], of the same types. If the two types differ, both are converted to the wider one.
        tau: temperature > 0: [B], 0-dim, or a float. ``torch.compile`` treats a float as a constant, so pass a
            temperature that changes as a 0-dim tensor. With ``symmetric``, also a pair (per row, per column), whose
            second element is [N], 0-dim or a float.
        positive_index: [B] int64, the index of each row's positive among the candidates. -100 ignores the row.
            Default: ``arange(B)``, which requires N >= B.
        row_group: [B] int64. A candidate with the same group id as the row is not a negative of the row, unless it is
            its positive.
        column_group: [N] int64, the group ids of the candidates. Default: ``row_group``, which requires N = B.
        row_weight: [B] weights of the rows' losses, floating point.
        column_bias: [N] finite numbers added to the candidates' logits, floating point; in sampled softmax, minus the
            logarithm of the probability to be drawn. To exclude candidates, use the groups. The bias is appended to
            ``h_cvr``, and tau to ``h_ctr``, as one more dimension of the dot product, or as three in the half types,
            which copies both. At reduced float32 precision the bias is thus rounded to the type of the products, and
            in float16 a bias / tau beyond 65504 makes the gradient in tau NaN. Differentiable. Not supported with
            ``symmetric``.
        ignore_above: if given, a candidate whose similarity to the row exceeds that of the row's positive by more than
            this finite number is not a negative of the row, as it may be a positive that is not labeled. The
            similarity is the logit times tau: a_r . b_j, plus tau times the ``column_bias``. Derivatives take the set
            of negatives as constant. The similarities are those of the backend, so rounding decides on a candidate
            whose similarity is within rounding error of the bound. ``torch.compile`` treats the number as a constant.
        symmetric: if True, averages the loss with that of the cvr -> ctr direction. There the anchor of row r is
            h_cvr[y_r], with its own temperature, and its candidates are all rows of h_ctr. An ignored row has no loss
            in either direction, but remains a candidate in this one unless the groups exclude it.
        reduction: "mean" (the weighted mean over the rows that are not ignored; 0 if there are none), "sum", or
            "none" ([B]; 0 for an ignored row).
        return_stats: if True, also returns the :class:`InfoNCEStats` of the ctr -> cvr direction.
        backend: "auto" selects C++ on CPU and Triton on CUDA. "reference", "cpu" and "triton" select one backend.
            "triton" accepts CPU tensors only under TRITON_INTERPRET=1.
        process_group: if given, the candidates of every row are the ``h_cvr`` of all ranks, as if the ranks' rows were
            one batch. The ranks may have different B and N, including 0. ``positive_index`` counts this rank's
            candidates, and the statistics are of this rank's rows. All ranks must call the function, and either all
            or none must run backward. The gradient is that of the sum of the ranks' losses. With "mean", a rank's
            loss is W times its share of the mean over all ranks' rows, so that the mean of the ranks' losses, and of
            their gradients under DistributedDataParallel, equals that of one process. With "sum" and "none", sum the
            ranks' gradients instead. Not supported within ``torch.compile``.

    Shape:
        - h_ctr: [B, d]
        - h_cvr: [N, d]
        - tau: [B] or 0-dim
        - Output: 0-dim, or [B] with reduction "none"; float32, or float64 for float64 inputs

    Returns:
        The loss, or (loss, :class:`InfoNCEStats`) if ``return_stats`` is True.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: an argument has the wrong shape, device or value, or differs between ranks where it must not.
        NotImplementedError: an input carries a forward-mode tangent.
        RuntimeError: on CPU, a tau that is not positive and finite, a column_bias that is not finite, or a
            positive_index out of range. On CUDA the values are not checked, because that would wait for the device;
            such rows give NaN.

    Example:
        >>> h_ctr = torch.randn(1024, 64, requires_grad=True)
        >>> h_cvr = torch.randn(1024, 64, requires_grad=True)
        >>> tau = torch.rand(1024) + 0.05
        >>> loss = adaftr_fast.adaptive_infonce(h_ctr, h_cvr, tau)
        >>> loss.backward()
        >>> loss, stats = adaftr_fast.adaptive_infonce(h_ctr, h_cvr, tau, return_stats=True)
        >>> accuracy = stats.top1.float().mean()
    """
    op = _op_of(backend, h_ctr)
    check_representations("adaptive_infonce", h_ctr, h_cvr)
    check_no_tangents(
        "adaptive_infonce", h_ctr, h_cvr, *(tau if isinstance(tau, tuple) else (tau,)), row_weight, column_bias
    )
    dtype = torch.promote_types(h_ctr.dtype, h_cvr.dtype)
    h_ctr, h_cvr = h_ctr.to(dtype), h_cvr.to(dtype)
    if isinstance(tau, tuple) and not (symmetric and len(tau) == 2):
        raise ValueError(
            "adaptive_infonce: a tuple tau must be a pair (per row, per column) and requires symmetric=True, "
            f"got {len(tau)} elements and symmetric={symmetric}"
        )
    tau_row, tau_column = tau if isinstance(tau, tuple) else (tau, tau)
    check_row_options(h_ctr, h_cvr, positive_index, row_group, column_group, row_weight, column_bias)
    check_ignore_above(ignore_above)
    if row_group is not None and column_group is None:
        column_group = row_group
    tau_row = _expand_tau(tau_row, h_ctr, "tau")  # [B]
    if column_bias is not None:
        if symmetric:
            raise ValueError("adaptive_infonce: column_bias requires symmetric=False, got True")
        check_bias_is_finite(column_bias)
        h_ctr, h_cvr = _append_bias(h_ctr, h_cvr, tau_row, column_bias)

    batch = None
    if process_group is not None:
        weighted = row_weight is not None or positive_index is not None
        batch = _across_ranks(process_group, h_ctr, h_cvr, row_group, row_weight, weighted, symmetric, reduction)
    scale = _row_scale(h_ctr, positive_index, row_weight, reduction, batch)  # [B]
    candidates = Candidates(h_cvr, positive_index, column_group)
    if batch is not None:
        candidates = batch.gather(candidates, batch.columns)
    loss, stats = _direction(op, h_ctr, tau_row, row_group, candidates, scale, ignore_above, reduction, return_stats)
    if symmetric:
        tau_column = _expand_tau(tau_column, h_cvr, "tau (per column)")  # [N]
        anchors, tau_row, group, positive = _reverse(h_ctr, h_cvr, tau_column, positive_index, column_group)
        candidates = Candidates(h_ctr, positive, row_group)
        if batch is not None:
            candidates = batch.gather(candidates, batch.rows)
        reverse_loss, _ = _direction(op, anchors, tau_row, group, candidates, scale, ignore_above, reduction, False)
        loss = (loss + reverse_loss) / 2
    return loss if stats is None else (loss, stats)


@_disable_dynamo  # torch.compiler.disable, without importing the compiler until it is needed
def _across_ranks(
    process_group: ProcessGroup,
    h_ctr: Tensor,
    h_cvr: Tensor,
    row_group: Tensor | None,
    row_weight: Tensor | None,
    weighted: bool,
    symmetric: bool,
    reduction: str,
) -> CrossRankBatch:
    """Exchanges the batch sizes; checks that whatever decides on a collective, in backward too, agrees on all ranks."""
    grad = torch.is_grad_enabled()
    must_agree = {
        "symmetric": symmetric,
        "whether reduction is 'mean'": reduction == "mean",
        "whether row_group is given": row_group is not None,
        "whether row_weight or positive_index is given": weighted,
        "whether h_cvr needs a gradient": grad and h_cvr.requires_grad,
        "whether h_ctr needs a gradient": grad and h_ctr.requires_grad and symmetric,
        "whether row_weight needs a gradient": grad and row_weight is not None and row_weight.requires_grad,
    }
    return CrossRankBatch("adaptive_infonce", process_group, h_ctr, h_cvr, must_agree)


def _direction(
    op: Callable[..., Any],
    anchors: Tensor,
    tau: Tensor,
    row_group: Tensor | None,
    candidates: Candidates,
    scale: Tensor,
    ignore_above: float | None,
    reduction: str,
    return_stats: bool,
) -> tuple[Tensor, InfoNCEStats | None]:
    """Computes the loss and statistics of one direction.

    With reduction "none" the gradients depend on the upstream gradient, so backward computes them.
    """
    with_gradients = torch.is_grad_enabled() and reduction != "none"
    loss, row_loss, *stats = op(
        anchors,
        candidates.h,
        tau,
        candidates.positive,
        row_group,
        candidates.group,
        scale,
        with_gradients and anchors.requires_grad,
        with_gradients and candidates.h.requires_grad,
        with_gradients and tau.requires_grad,
        return_stats,
        ignore_above,
    )[:6]
    result = row_loss * scale if reduction == "none" else loss
    return result, InfoNCEStats(*(s.detach() for s in stats)) if return_stats else None


def _reverse(
    h_ctr: Tensor, h_cvr: Tensor, tau: Tensor, positive: Tensor | None, column_group: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Returns the other direction's anchors b_{y_r}, their temperatures and groups, and their positives r."""
    rows = len(h_ctr)
    if positive is None:
        return h_cvr[:rows], tau[:rows], None if column_group is None else column_group[:rows], None
    own = torch.where(positive == IGNORE, IGNORE, torch.arange(rows, device=h_ctr.device))
    if len(h_cvr) == 0:  # then every row is ignored
        return torch.zeros_like(h_ctr), tau.new_ones(rows), None if column_group is None else own, own
    target = positive.clamp(0, len(h_cvr) - 1)
    return h_cvr[target], tau[target], None if column_group is None else column_group[target], own


def _row_scale(
    h_ctr: Tensor, positive: Tensor | None, row_weight: Tensor | None, reduction: str, batch: CrossRankBatch | None
) -> Tensor:
    """Returns the factor of each row's loss in the sum [B]."""
    acc = accumulation_dtype(h_ctr.dtype)
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"adaptive_infonce: reduction must be 'mean', 'sum' or 'none', got {reduction!r}")
    if positive is None and row_weight is None:
        rows = len(h_ctr) if batch is None else sum(batch.rows) / batch.world_size
        return h_ctr.new_full((len(h_ctr),), 1 / (rows or 1) if reduction == "mean" else 1.0, dtype=acc)
    row_weight = h_ctr.new_ones(len(h_ctr), dtype=acc) if row_weight is None else row_weight.to(acc)
    if positive is not None:
        row_weight = torch.where(positive == IGNORE, 0.0, row_weight)
    if reduction != "mean":
        return row_weight
    total = row_weight.sum() if batch is None else batch.total(row_weight.sum()) / batch.world_size
    return row_weight / torch.where(total == 0, 1.0, total)


def _expand_tau(tau: Tau, anchors: Tensor, name: str) -> Tensor:
    """Returns tau per row of ``anchors``, in the accumulation type."""
    acc = accumulation_dtype(anchors.dtype)
    if not isinstance(tau, Tensor):
        if isinstance(tau, bool) or not isinstance(tau, (float, int)) or not 0 < tau < float("inf"):
            raise ValueError(f"adaptive_infonce: {name} must be a positive finite number or a tensor, got {tau!r}")
        return anchors.new_full((len(anchors),), float(tau), dtype=acc)
    if not tau.is_floating_point():
        raise TypeError(f"adaptive_infonce: {name} must be floating point, got {tau.dtype}")
    if tau.device != anchors.device and tau.dim() > 0:
        raise ValueError(f"adaptive_infonce: {name} must be 0-dim or on {anchors.device}, got {tau.device}")
    if tau.dim() != 0 and tuple(tau.shape) != (len(anchors),):
        raise ValueError(
            f"adaptive_infonce: {name} must be 0-dim or of shape ({len(anchors)},), got {tuple(tau.shape)}"
        )
    return tau.to(anchors.device, acc).expand(len(anchors))


def _op_of(backend: str, h_ctr: Tensor) -> Callable[..., Any]:
    name = op_name("adaptive_infonce", "infonce", backend, h_ctr)
    if not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active():
        return lambda *args: FunctionalInfoNCE.apply(*args, name)
    op: Callable[..., Any] = getattr(torch.ops.adaftr_fast, name)
    return op


def _append_bias(h_ctr: Tensor, h_cvr: Tensor, tau: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Returns (a, tau) and (b, bias), whose dot products over tau are the logits plus the bias: [B, d+1], [N, d+1].

    The half types hold tau and the bias as sums of two terms each, which takes three columns.
    """
    dtype = h_ctr.dtype
    tau, bias = tau[:, None], bias[:, None].to(tau.dtype)
    row, column = [tau.to(dtype)], [bias.to(dtype)]
    if dtype in (torch.bfloat16, torch.float16):
        row += [row[0], (tau - row[0]).to(dtype)]
        column += [(bias - column[0]).to(dtype), column[0]]
    return torch.cat((h_ctr, *row), dim=1), torch.cat((h_cvr, *column), dim=1)
