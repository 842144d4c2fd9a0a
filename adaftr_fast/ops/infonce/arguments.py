"""What :func:`adaftr_fast.adaptive_infonce` derives from its arguments.

Shapes: B rows (anchors), N candidates, d hidden width.
"""

import torch
from torch import Tensor

from adaftr_fast.ops.infonce.autograd import accumulation_dtype
from adaftr_fast.ops.infonce.candidates import CrossRankBatch
from adaftr_fast.ops.infonce.reference import IGNORE

Tau = Tensor | float
Labels = tuple[Tensor, Tensor]  # of the rows [B] and of the candidates [N]


def product_dtype(h_ctr: Tensor, h_cvr: Tensor, precision: str) -> torch.dtype:
    """Returns the type to which both representations are converted."""
    if precision not in ("auto", "float32", "bfloat16"):
        raise ValueError(f"adaptive_infonce: precision must be auto, float32 or bfloat16, got {precision!r}")
    if precision == "bfloat16":
        return torch.bfloat16
    dtype = torch.promote_types(h_ctr.dtype, h_cvr.dtype)
    return torch.promote_types(dtype, torch.float32) if precision == "float32" else dtype


def split_tau(tau: Tau | tuple[Tau, Tau], symmetric: bool) -> tuple[Tau, Tau]:
    """Returns the temperatures of the rows and of the columns."""
    if not isinstance(tau, tuple):
        return tau, tau
    if not (symmetric and len(tau) == 2):
        raise ValueError(
            "adaptive_infonce: a tuple tau must be a pair (per row, per column) and requires symmetric=True, "
            f"got {len(tau)} elements and symmetric={symmetric}"
        )
    return tau


def labels_of(positive_group: Tensor | Labels | None) -> Labels | None:
    """Returns the positive groups of the rows and of the candidates."""
    if positive_group is None or isinstance(positive_group, tuple):
        return positive_group
    return positive_group, positive_group


def reverse_labels(labels: Labels | None) -> Labels | None:
    """Returns the labels of the other direction, whose anchors are the first B candidates."""
    if labels is None:
        return None
    row, column = labels
    return torch.where(row == IGNORE, IGNORE, column[: len(row)]), row


def reverse(
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


def row_scale(
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


def expand_tau(tau: Tau, anchors: Tensor, name: str) -> Tensor:
    """Returns tau per row of ``anchors``, in the accumulation type."""
    acc = accumulation_dtype(anchors.dtype)
    if not isinstance(tau, Tensor):
        if isinstance(tau, bool) or not isinstance(tau, (float, int)) or not 0 < tau < float("inf"):
            raise ValueError(f"adaptive_infonce: {name} must be a positive finite number or a tensor, got {tau!r}")
        return anchors.new_full((), float(tau), dtype=acc).expand(len(anchors))
    if not tau.is_floating_point():
        raise TypeError(f"adaptive_infonce: {name} must be floating point, got {tau.dtype}")
    if tau.device != anchors.device and tau.dim() > 0:
        raise ValueError(f"adaptive_infonce: {name} must be 0-dim or on {anchors.device}, got {tau.device}")
    if tau.dim() != 0 and tuple(tau.shape) != (len(anchors),):
        raise ValueError(
            f"adaptive_infonce: {name} must be 0-dim or of shape ({len(anchors)},), got {tuple(tau.shape)}"
        )
    return tau.to(anchors.device, acc).expand(len(anchors))


def append_bias(h_ctr: Tensor, h_cvr: Tensor, tau: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
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
