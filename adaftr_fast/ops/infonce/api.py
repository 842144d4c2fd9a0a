"""The drop-in loss: :func:`adaptive_infonce` (paper, Eq. 13)."""

import os
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual
from torch.distributed import ProcessGroup

from adaftr_fast._extension import is_built
from adaftr_fast.ops.infonce.candidates import DTYPES, Candidates, Shared
from adaftr_fast.ops.infonce.op import accumulation_dtype
from adaftr_fast.ops.infonce.reference import IGNORE

Backend = Literal["auto", "reference", "cpu", "triton"]
Reduction = Literal["mean", "sum", "none"]
Tau = Tensor | float


class InfoNCEStats(NamedTuple):
    """What the sweep saw of each row, all [B] and detached; zeros (False) where the row is ignored."""

    lse: Tensor  # logsumexp over the row's candidates, the positive included
    positive_logit: Tensor  # a_r . b_{y_r} / tau_r
    top1: Tensor  # bool: the positive's logit lies strictly above every negative's
    entropy: Tensor  # of the row's softmax, in nats


def adaptive_infonce(
    h_ctr: Tensor,
    h_cvr: Tensor,
    tau: Tau | tuple[Tau, Tau],
    *,
    positive_index: Tensor | None = None,
    row_group: Tensor | None = None,
    column_group: Tensor | None = None,
    row_weight: Tensor | None = None,
    symmetric: bool = False,
    reduction: Reduction = "mean",
    return_stats: bool = False,
    backend: Backend = "auto",
    process_group: ProcessGroup | None = None,
) -> Tensor | tuple[Tensor, InfoNCEStats]:
    """InfoNCE between two tasks' representations with a temperature per row (paper, Eq. 13), never storing B x N.

    ``L_r = logsumexp_j(a_r . b_j / tau_r) - a_r . b_{y_r} / tau_r`` with a = h_ctr, b = h_cvr. Differentiable in
    ``h_ctr``, ``h_cvr``, ``tau`` and ``row_weight``, twice if asked (the second derivative then goes through the
    plain-PyTorch reference and stores B x N); forward-mode differentiation is not offered. Accumulates in float32, or
    float64 for float64 inputs; denormals are flushed to zero within the CPU kernel.

    float32 products follow ``torch.set_float32_matmul_precision``: "highest" is IEEE float32; "high" is TF32 on CUDA,
    and on CPUs with AMX three bfloat16 products of operands split in two (gradients err by about 1e-4 of their largest
    value); "medium" is TF32 on CUDA and one bfloat16 product on CPUs with AMX or AVX512-BF16 (about 2e-2). Speeds:
    benchmarks/README.md.

    Args:
        h_ctr: [B, d] anchors; float32, bfloat16, float16 or float64, any strides.
        h_cvr: [N, d] candidates. If the two types differ, the wider one is used.
        tau: temperature > 0: [B], 0-dim, or a float (a constant to torch.compile: one that changes should be a 0-dim
            tensor). With ``symmetric`` also a pair (per row, per column), the
            second being [N], 0-dim or a float.
        positive_index: [B] int64, the column of each row's positive; default ``arange(B)``, which needs N >= B.
            -100 ignores the row.
        row_group, column_group: [B] and [N] int64. Columns that carry the row's group id, other than its
            positive, are no negatives for it. ``column_group`` defaults to ``row_group`` where N = B.
        row_weight: [B] weights of the rows' losses.
        symmetric: average with the cvr -> ctr direction, in which row r's candidate h_cvr[y_r] is contrasted with
            all rows of h_ctr at its own temperature. An ignored row has no loss in either direction, but remains a
            candidate in this one; groups can take it out.
        reduction: "mean" (weighted mean over the rows that are not ignored; 0 if there are none), "sum", or
            "none" ([B]; an ignored row holds 0).
        return_stats: also return :class:`InfoNCEStats` of the ctr -> cvr direction, from the same sweep.
        backend: "auto" takes C++ on CPU and Triton on CUDA; "reference", "cpu" and "triton" insist. "triton" takes
            CPU tensors only under TRITON_INTERPRET=1.
        process_group: every rank's h_cvr are candidates for every rank's rows, as if all ranks' rows were one batch;
            ranks may have different B and N, also none. All else stays this rank's own: ``positive_index`` counts its
            own columns, statistics are of its own rows. Every rank must call, and run backward if any does, and a
            gradient is that of the sum over ranks of their losses. With "mean" a rank's loss is W times its share of
            the mean over all W ranks' rows: the mean of the ranks' losses, and of their gradients as
            DistributedDataParallel takes it, is what one process would have. "sum" and "none" know no W: there ranks'
            gradients are to be summed. Not within torch.compile.

    Returns:
        The loss (0-dim, or [B] for "none"), with the statistics if asked, in the accumulation type.

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape, dtype or device, or that must be the same on all
            ranks and is not.
        NotImplementedError: forward-mode differentiation.
        RuntimeError: on CPU also a tau that is not positive and finite, or a positive_index out of range. On CUDA
            nothing is read back from the device; such rows give NaN.
    """
    op = _op_of(backend, h_ctr)
    _check_representations(h_ctr, h_cvr)
    _refuse_tangents(h_ctr, h_cvr, *(tau if isinstance(tau, tuple) else (tau,)))
    dtype = torch.promote_types(h_ctr.dtype, h_cvr.dtype)
    a, b = h_ctr.to(dtype), h_cvr.to(dtype)  # [B, d], [N, d]
    if isinstance(tau, tuple) and not (symmetric and len(tau) == 2):
        raise ValueError(
            f"adaptive_infonce: a tuple tau must be a pair and needs symmetric=True, got {len(tau)} of them"
        )
    tau_row, tau_column = tau if isinstance(tau, tuple) else (tau, tau)
    _check_indices(a, b, positive_index, row_group, column_group, row_weight)
    if row_group is not None and column_group is None:
        column_group = row_group

    shared = None
    if process_group is not None:
        weighted = row_weight is not None or positive_index is not None
        shared = _meet(process_group, a, b, row_group, row_weight, weighted, symmetric, reduction)
    coefficient = _coefficient(a, positive_index, row_weight, reduction, shared)  # [B]
    candidates = Candidates(b, positive_index, column_group)
    if shared is not None:
        candidates = shared.gather(candidates, shared.columns)
    tau_a = _expand_tau(tau_row, a, "tau")
    loss, stats = _direction(op, a, tau_a, row_group, candidates, coefficient, reduction, return_stats)
    if symmetric:
        tau_b = _expand_tau(tau_column, b, "tau (per column)")  # [N]
        anchors, tau_b, groups, own = _reverse(a, b, tau_b, positive_index, column_group)
        candidates = Candidates(a, own, row_group)
        if shared is not None:
            candidates = shared.gather(candidates, shared.rows)
        backward, _ = _direction(op, anchors, tau_b, groups, candidates, coefficient, reduction, False)
        loss = (loss + backward) / 2
    return (loss, stats) if return_stats else loss


@torch.compiler.disable
def _meet(group: ProcessGroup, a, b, row_group, row_weight, weighted, symmetric, reduction) -> Shared:
    """Learns what the other ranks hold; what decides about an exchange, in backward too, must be the same for all."""
    grad = torch.is_grad_enabled()
    alike = {
        "symmetric": symmetric,
        "reduction 'mean'": reduction == "mean",
        "whether there is a row_group": row_group is not None,
        "whether there is a row_weight or positive_index": weighted,
        "whether h_cvr needs a gradient": grad and b.requires_grad,
        "whether h_ctr needs a gradient": grad and a.requires_grad and symmetric,
        "whether row_weight needs a gradient": grad and row_weight is not None and row_weight.requires_grad,
    }
    return Shared("adaptive_infonce", group, a, b, alike)


def _refuse_tangents(*inputs: Tensor | float) -> None:
    """The op has no forward-mode derivative, and PyTorch would pass over that where nothing requires a gradient."""
    if torch.compiler.is_compiling():
        return
    if any(isinstance(x, Tensor) and unpack_dual(x).tangent is not None for x in inputs):
        raise NotImplementedError("adaptive_infonce: has no forward-mode derivative (jvp); use reverse mode")


def _direction(op, anchors, tau, groups, candidates: Candidates, coefficient, reduction, return_stats):
    """One direction's loss and statistics. With "none" the gradients wait for their upstream in backward."""
    ahead = torch.is_grad_enabled() and reduction != "none"
    loss, rows, *stats = op(
        anchors,
        candidates.h,
        tau,
        candidates.positive,
        groups,
        candidates.group,
        coefficient,
        ahead and anchors.requires_grad,
        ahead and candidates.h.requires_grad,
        ahead and tau.requires_grad,
        return_stats,
    )[:6]
    result = rows * coefficient if reduction == "none" else loss
    return result, InfoNCEStats(*(s.detach() for s in stats)) if return_stats else None


def _reverse(a: Tensor, b: Tensor, tau: Tensor, positive: Tensor | None, column_group: Tensor | None):
    """The other direction row by row: its anchors b_{y_r}, their temperatures and groups, and their positives r."""
    rows = len(a)
    if positive is None:
        return b[:rows], tau[:rows], None if column_group is None else column_group[:rows], None
    own = torch.where(positive == IGNORE, IGNORE, torch.arange(rows, device=a.device))
    if len(b) == 0:  # then every row is ignored
        return torch.zeros_like(a), tau.new_ones(rows), None if column_group is None else own, own
    target = positive.clamp(0, len(b) - 1)
    return b[target], tau[target], None if column_group is None else column_group[target], own


def _coefficient(
    a: Tensor, positive: Tensor | None, weight: Tensor | None, reduction: str, shared: Shared | None
) -> Tensor:
    """[B]: what each row's loss is multiplied with before the sum."""
    acc = accumulation_dtype(a.dtype)
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"adaptive_infonce: reduction must be 'mean', 'sum' or 'none', got {reduction!r}")
    if positive is None and weight is None:
        rows = len(a) if shared is None else sum(shared.rows) / shared.world_size
        return a.new_full((len(a),), 1 / (rows or 1) if reduction == "mean" else 1.0, dtype=acc)
    weight = a.new_ones(len(a), dtype=acc) if weight is None else weight.to(acc)
    if positive is not None:
        weight = torch.where(positive == IGNORE, 0.0, weight)
    if reduction == "mean":
        total = weight.sum() if shared is None else shared.total(weight.sum()) / shared.world_size
        weight = weight / torch.where(total == 0, 1.0, total)
    return weight


def _expand_tau(tau: Tau, anchors: Tensor, name: str) -> Tensor:
    """[rows of ``anchors``] in the accumulation type."""
    acc = accumulation_dtype(anchors.dtype)
    if not isinstance(tau, Tensor):
        if isinstance(tau, bool) or not isinstance(tau, (float, int)) or not 0 < tau < float("inf"):
            raise ValueError(f"adaptive_infonce: {name} must be a positive finite number or a tensor, got {tau!r}")
        return anchors.new_full((len(anchors),), float(tau), dtype=acc)
    if not tau.is_floating_point():
        raise TypeError(f"adaptive_infonce: {name} must be floating point, got {tau.dtype}")
    if tau.device != anchors.device and tau.dim() > 0:
        raise ValueError(f"adaptive_infonce: {name} is on {tau.device}, the representations on {anchors.device}")
    if tau.dim() != 0 and tuple(tau.shape) != (len(anchors),):
        raise ValueError(
            f"adaptive_infonce: {name} must be 0-dim or of shape ({len(anchors)},), got {tuple(tau.shape)}"
        )
    return tau.to(anchors.device, acc).expand(len(anchors))


def _check_representations(h_ctr: Tensor, h_cvr: Tensor) -> None:
    for name, h in (("h_ctr", h_ctr), ("h_cvr", h_cvr)):
        if not isinstance(h, Tensor) or h.dim() != 2:
            got = tuple(h.shape) if isinstance(h, Tensor) else type(h).__name__
            raise ValueError(f"adaptive_infonce: {name} must be a 2-dim tensor [rows, d], got {got}")
        if h.dtype not in DTYPES:
            raise TypeError(f"adaptive_infonce: {name} must be float32, bfloat16, float16 or float64, got {h.dtype}")
    if h_ctr.shape[1] != h_cvr.shape[1] or h_ctr.shape[1] == 0:
        raise ValueError(
            "adaptive_infonce: h_ctr and h_cvr must have the same width d >= 1, got "
            f"{tuple(h_ctr.shape)} and {tuple(h_cvr.shape)}"
        )
    if h_ctr.device != h_cvr.device:
        raise ValueError(f"adaptive_infonce: h_ctr is on {h_ctr.device}, h_cvr on {h_cvr.device}")


def _check_indices(a, b, positive_index, row_group, column_group, row_weight) -> None:
    rows, columns = len(a), len(b)
    if positive_index is None and columns < rows:
        raise ValueError(
            f"adaptive_infonce: without positive_index h_cvr needs a row for each of h_ctr's {rows} rows, got {columns}"
        )
    if row_group is None and column_group is not None:
        raise ValueError("adaptive_infonce: column_group needs row_group")
    if row_group is not None and column_group is None and rows != columns:
        raise ValueError(f"adaptive_infonce: row_group without column_group needs N = B, got N = {columns}, B = {rows}")
    named = (
        ("positive_index", positive_index, rows),
        ("row_group", row_group, rows),
        ("column_group", column_group, columns),
        ("row_weight", row_weight, rows),
    )
    for name, x, length in named:
        if x is None:
            continue
        if not isinstance(x, Tensor):
            raise TypeError(f"adaptive_infonce: {name} must be a tensor, got {type(x).__name__}")
        if tuple(x.shape) != (length,):
            raise ValueError(f"adaptive_infonce: {name} must have shape ({length},), got {tuple(x.shape)}")
        if x.device != a.device:
            raise ValueError(f"adaptive_infonce: {name} is on {x.device}, the representations on {a.device}")
        if name == "row_weight" and not x.is_floating_point():
            raise TypeError(f"adaptive_infonce: row_weight must be floating point, got {x.dtype}")
        if name != "row_weight" and x.dtype != torch.int64:
            raise TypeError(f"adaptive_infonce: {name} must be int64, got {x.dtype}")


def _op_of(backend: str, h_ctr: Tensor):
    ops = torch.ops.adaftr_fast
    if backend == "auto":
        return ops.infonce
    if backend == "reference":
        return ops.infonce_reference
    on_cpu = isinstance(h_ctr, Tensor) and h_ctr.device.type == "cpu"
    if backend == "cpu":
        if not on_cpu:
            raise ValueError("adaptive_infonce: backend='cpu' needs CPU tensors")
        if not is_built():
            raise RuntimeError("adaptive_infonce: backend='cpu' needs the C++ extension (see adaftr-fast info)")
        return ops.infonce
    if backend == "triton":
        if on_cpu and os.environ.get("TRITON_INTERPRET") != "1":
            raise ValueError("adaptive_infonce: backend='triton' takes CPU tensors only under TRITON_INTERPRET=1")
        return ops.infonce_triton
    raise ValueError(f"adaptive_infonce: backend must be auto, reference, cpu or triton, got {backend!r}")
