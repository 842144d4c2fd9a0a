"""The checks of the arguments of :func:`adaftr_fast.adaptive_infonce` and
:func:`adaftr_fast.sigmoid_contrast`, and what is derived from them.

Shapes: B rows (anchors), N candidates, d hidden width.
"""

import math
import os
from numbers import Real
from typing import Any

import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual

from adaftr_fast._extension import is_built
from adaftr_fast.ops.infonce.autograd import accumulation_dtype
from adaftr_fast.ops.infonce.candidates import DTYPES, CrossRankBatch, Direction
from adaftr_fast.ops.infonce.reference import IGNORE, check_positive_range
from adaftr_fast.ops.library import check_local

Tau = Tensor | float
Labels = tuple[Tensor, Tensor]  # of the rows [B] and of the candidates [N]
UNSUPPORTED = {
    "block": (
        "positive_index",
        "row_group",
        "column_group",
        "column_bias",
        "positive_group",
        "ignore_above",
        "label_smoothing",
        "margin",
        "candidate_mask",
    ),
    "positive_group": (
        "positive_index",
        "ignore_above",
        "margin",
        "return_stats",
        "candidate_mask",
    ),
}
"""The options of adaptive_infonce that do not support others."""


def check_no_tangents(op: str, *inputs: Tensor | float | None) -> None:
    """Refuses forward-mode inputs, whose tangents PyTorch would drop silently where nothing
    requires a gradient.
    """
    if torch.compiler.is_compiling() or torch.autograd.forward_ad._current_level < 0:
        return
    if any(isinstance(x, Tensor) and unpack_dual(x).tangent is not None for x in inputs):
        raise NotImplementedError(
            f"{op}: has no forward-mode derivative (jvp); use reverse mode, torch.func.vjp or "
            "jacrev"
        )


def check_representations(op: str, h_ctr: Tensor, h_cvr: Tensor) -> None:
    """Checks that h_ctr and h_cvr are [B, d] and [N, d] with d >= 1, floating point and on one
    device.
    """
    for name, h in (("h_ctr", h_ctr), ("h_cvr", h_cvr)):
        check_local(
            op,
            name,
            h,
            f"pass {name}.to_local(), and process_group to contrast the rows of all ranks",
        )
        if not isinstance(h, Tensor) or h.dim() != 2:
            got = tuple(h.shape) if isinstance(h, Tensor) else type(h).__name__
            raise ValueError(f"{op}: {name} must be a 2-dim tensor [rows, d], got {got}")
        if h.dtype not in DTYPES:
            raise TypeError(
                f"{op}: {name} must be float32, bfloat16, float16 or float64, got {h.dtype}"
            )
    if h_ctr.shape[1] != h_cvr.shape[1] or h_ctr.shape[1] == 0:
        raise ValueError(
            f"{op}: h_ctr and h_cvr must have the same width d >= 1, got {tuple(h_ctr.shape)} and "
            f"{tuple(h_cvr.shape)}"
        )
    if h_ctr.device != h_cvr.device:
        raise ValueError(
            f"{op}: h_ctr and h_cvr must be on one device, got {h_ctr.device} and {h_cvr.device}"
        )


def check_vectors(
    op: str, h_ctr: Tensor, h_cvr: Tensor, pairs: bool, **vectors: Tensor | None
) -> None:
    """Checks shape, dtype and device of the options that hold a value per row or per candidate
    ("column_..."), and that a group is given for both sides, unless it serves both.

    ``pairs``: without positive_index, each row needs a candidate of the same index.
    """
    rows, columns = h_ctr.shape[0], h_cvr.shape[0]  # len() takes four times as long
    if pairs and vectors["positive_index"] is None and columns < rows:
        raise ValueError(
            f"{op}: h_cvr must have at least one row per row of h_ctr ({rows}) without "
            f"positive_index, got {columns}"
        )
    for name, x in vectors.items():
        if x is not None:
            _check_vector(op, name, x, columns if name.startswith("column") else rows, h_ctr)
    row_group = vectors.get("row_group")
    column_group = vectors.get("column_group")
    if row_group is None and column_group is not None:
        raise ValueError(f"{op}: column_group requires row_group, got None")
    if row_group is not None and column_group is None and rows != columns:
        raise ValueError(
            f"{op}: row_group without column_group requires N = B, got N = {columns}, B = {rows}"
        )


def _check_vector(op: str, name: str, x: Tensor, length: int, h_ctr: Tensor) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"{op}: {name} must be a tensor, got {type(x).__name__}")
    check_local(op, name, x)
    if tuple(x.shape) != (length,):
        raise ValueError(f"{op}: {name} must have shape ({length},), got {tuple(x.shape)}")
    if x.device != h_ctr.device:
        raise ValueError(f"{op}: {name} must be on {h_ctr.device} like h_ctr, got {x.device}")
    numbers = name in ("row_weight", "column_bias")
    if numbers and not x.is_floating_point():
        raise TypeError(f"{op}: {name} must be floating point, got {x.dtype}")
    if not numbers and x.dtype != torch.int64:
        raise TypeError(f"{op}: {name} must be int64, got {x.dtype}")


def check_mask(
    mask: Tensor, h_ctr: Tensor, h_cvr: Tensor, in_both: bool, group: object | None
) -> None:
    """Checks a candidate_mask; ``in_both``: whether it serves both directions of pairs that are not
    those of the diagonal.
    """
    name = "adaptive_infonce: candidate_mask"
    size = (h_ctr.shape[0], h_cvr.shape[0])
    if not isinstance(mask, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(mask).__name__}")
    check_local("adaptive_infonce", "candidate_mask", mask)
    if mask.dtype != torch.bool:
        raise TypeError(f"{name} must be bool, got {mask.dtype}")
    if tuple(mask.shape) != size:
        raise ValueError(f"{name} must have shape {size}, got {tuple(mask.shape)}")
    if mask.device != h_ctr.device:
        raise ValueError(f"{name} must be on {h_ctr.device} like h_ctr, got {mask.device}")
    if in_both:
        raise ValueError(f"{name} with symmetric does not support positive_index")
    if group is not None:
        raise ValueError(f"{name} does not support process_group")


def with_ignore_index(
    ignore_index: int,
    positive: Tensor | None,
    labels: tuple[Tensor | None, Tensor | None],
    columns: int,
) -> tuple[Tensor | None, tuple[Tensor | None, Tensor | None]]:
    """Returns the positives among ``columns`` candidates, and the labels, with IGNORE in place of
    ``ignore_index``.
    """
    if not isinstance(ignore_index, int) or isinstance(ignore_index, bool):
        raise TypeError(
            f"adaptive_infonce: ignore_index must be an int, got {type(ignore_index).__name__}"
        )
    if ignore_index == IGNORE:
        return positive, labels
    if positive is not None:
        if _reads_values(positive):
            check_positive_range("adaptive_infonce", positive, columns, ignore_index)
        # IGNORE itself is no candidate, as -1 is none
        positive = torch.where(positive == IGNORE, -1, positive)
        positive = torch.where(positive == ignore_index, IGNORE, positive)
    # IGNORE itself is a label
    row, column = (
        None
        if x is None
        else torch.where(x == ignore_index, IGNORE, torch.where(x == IGNORE, ignore_index, x))
        for x in labels
    )
    return positive, (row, column)


def check_ignore_above(margin: float | None) -> None:
    """Checks that the margin is None or a finite number."""
    if margin is None:
        return
    number = isinstance(margin, (float, int)) and not isinstance(margin, bool)
    if not number or not -math.inf < margin < math.inf:
        error = ValueError if number else TypeError
        raise error(
            f"adaptive_infonce: ignore_above must be a finite number or None, got {margin!r}"
        )


def check_combinations(given: dict[str, Any]) -> None:
    """Checks that no options are given, not None, of which one does not support the other."""
    for option, others in UNSUPPORTED.items():
        for other in others if given[option] is not None else ():
            if given[other] is not None:
                raise ValueError(f"adaptive_infonce: {option} does not support {other}")


def check_block(block: int, h_ctr: Tensor, h_cvr: Tensor) -> None:
    """Checks a block."""
    if not isinstance(block, int) or isinstance(block, bool):
        raise TypeError(
            f"adaptive_infonce: block must be an int or None, got {type(block).__name__}"
        )
    if block < 1:
        raise ValueError(f"adaptive_infonce: block must be at least 1, got {block}")
    if len(h_ctr) != len(h_cvr):
        raise ValueError(
            f"adaptive_infonce: block requires N = B, got N = {len(h_cvr)}, B = {len(h_ctr)}"
        )


def check_targets(label_smoothing: float, margin: float, ignore_above: float | None) -> None:
    """Checks label_smoothing and margin."""
    _check_number("label_smoothing", label_smoothing, 1.0)
    _check_number("margin", margin, math.inf)
    if label_smoothing > 0 and ignore_above is not None:
        raise ValueError(
            "adaptive_infonce: label_smoothing requires ignore_above=None; use row_group"
        )


def _check_number(name: str, x: float, end: float) -> None:
    if not isinstance(x, (float, int)) or isinstance(x, bool):
        raise TypeError(f"adaptive_infonce: {name} must be a number, got {type(x).__name__}")
    if not 0 <= x < end:
        raise ValueError(f"adaptive_infonce: {name} must be in [0, {end:g}), got {x!r}")


def labels_of(
    positive_group: Tensor | tuple[Tensor, ...] | None, h_ctr: Tensor, h_cvr: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    """Returns the positive groups of the rows and of the candidates, and checks their shapes,
    dtypes and devices.
    """
    if positive_group is None:
        return None, None
    labels = positive_group if isinstance(positive_group, tuple) else (positive_group,) * 2
    if len(labels) != 2:
        raise ValueError(
            "adaptive_infonce: positive_group must be a tensor or a pair (rows, candidates), "
            f"got {len(labels)} tensors"
        )
    for label, side in zip(labels, (h_ctr, h_cvr)):
        _check_vector("adaptive_infonce", "positive_group", label, len(side), h_ctr)
    return labels


def check_bias_is_finite(bias: Tensor) -> None:
    """Refuses a bias with inf or NaN on CPU, where reading the values waits for no device."""
    if bias.device.type != "cpu":
        return
    advice = "row_group and column_group exclude candidates"
    message = f"adaptive_infonce: column_bias must be finite ({advice})"
    if torch.compiler.is_compiling():
        # a graph has no branch on values
        torch._assert_async(bias.detach().isfinite().all(), message)
        return
    # vmap has no branch on values either
    while torch._C._functorch.is_functorch_wrapped_tensor(bias):
        bias = torch._C._functorch.get_unwrapped(bias)
    bad = ~bias.detach().isfinite()
    if bad.any():
        place = bad.nonzero()[0]
        column = int(place[-1])
        value = bias[tuple(place)].item()
        raise RuntimeError(f"{message}, got column_bias[{column}] = {value}")


def op_name(function: str, op: str, backend: str, h_ctr: Tensor) -> str:
    """Returns the registered name of ``op`` for a backend of ``function``; checks that the backend
    takes h_ctr.
    """
    if backend not in ("auto", "reference", "cpu", "triton"):
        raise ValueError(
            f"{function}: backend must be auto, reference, cpu or triton, got {backend!r}"
        )
    on_cpu = h_ctr.device.type == "cpu"
    if backend == "cpu" and not on_cpu:
        raise ValueError(
            f"{function}: backend 'cpu' requires CPU tensors, got h_ctr on {h_ctr.device}"
        )
    if backend == "cpu" and not is_built():
        raise RuntimeError(
            f"{function}: backend 'cpu' requires the C++ extension (see adaftr-fast info)"
        )
    if backend == "triton" and on_cpu and os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError(
            f"{function}: backend 'triton' accepts CPU tensors only under TRITON_INTERPRET=1"
        )
    return op if backend in ("auto", "cpu") else f"{op}_{backend}"


def product_dtype(h_ctr: Tensor, h_cvr: Tensor, precision: str) -> torch.dtype:
    """Returns the type to which both representations are converted."""
    if precision not in ("auto", "float32", "bfloat16"):
        raise ValueError(
            f"adaptive_infonce: precision must be auto, float32 or bfloat16, got {precision!r}"
        )
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
            "adaptive_infonce: a tuple tau must be a pair (per row, per column) and requires "
            "symmetric=True, "
            f"got {len(tau)} elements and symmetric={symmetric}"
        )
    return tau


def reverse(forth: Direction, tau: Tensor) -> Direction:
    """Returns the other direction, whose anchors are b_{y_r} with temperatures of ``tau`` [N], and
    its positives r.
    """
    anchors = forth.candidates
    positive = forth.positive
    group = forth.column_group
    rows = len(forth.anchors)
    own = None
    mask = None if forth.candidate_mask is None else forth.candidate_mask[:, :rows].T
    target: slice | Tensor = slice(rows)
    if positive is not None:
        own = torch.where(positive == IGNORE, IGNORE, torch.arange(rows, device=anchors.device))
        target = positive.clamp(0, max(len(anchors) - 1, 0))
        if len(anchors) == 0:  # then every row is ignored
            anchors = anchors.new_zeros(1, anchors.shape[1])
            tau = tau.new_ones(1)
            group = None if group is None else group.new_zeros(1)
    label = forth.column_label
    if forth.row_label is not None and label is not None:
        label = torch.where(forth.row_label == IGNORE, IGNORE, label[target])
    return Direction(
        anchors=anchors[target],
        candidates=forth.anchors,
        positive=own,
        tau=tau[target],
        row_group=None if group is None else group[target],
        column_group=forth.row_group,
        row_label=label,
        column_label=forth.row_label,
        candidate_mask=mask,
    )


def row_scale(
    h_ctr: Tensor,
    positive: Tensor | None,
    row_weight: Tensor | None,
    reduction: str,
    batch: CrossRankBatch | None,
) -> Tensor:
    """Returns the factor of each row's loss in the sum [B]."""
    acc = accumulation_dtype(h_ctr.dtype)
    rows = h_ctr.shape[0]
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(
            f"adaptive_infonce: reduction must be 'mean', 'sum' or 'none', got {reduction!r}"
        )
    if positive is None and row_weight is None:
        count = rows if batch is None else sum(batch.rows) / batch.world_size
        return h_ctr.new_full((rows,), 1 / (count or 1) if reduction == "mean" else 1.0, dtype=acc)
    row_weight = h_ctr.new_ones(rows, dtype=acc) if row_weight is None else row_weight.to(acc)
    if positive is not None:
        row_weight = torch.where(positive == IGNORE, 0.0, row_weight)
    if reduction != "mean":
        return row_weight
    total = row_weight.sum() if batch is None else batch.total(row_weight.sum()) / batch.world_size
    # Weights that cancel have no mean, which is NaN or infinite: an error would wait for the device.
    weightless = (total == 0) & (row_weight == 0).all()
    return row_weight / torch.where(weightless, 1.0, total)


def _reads_values(x: Tensor) -> bool:
    """Returns whether a branch on values of ``x`` waits for no device and breaks no transform."""
    if torch.compiler.is_compiling() or x.device.type != "cpu":
        return False
    return not torch._C._functorch.is_functorch_wrapped_tensor(x)


def expand_tau(tau: Tau, anchors: Tensor, name: str) -> Tensor:
    """Returns tau per row of ``anchors``, in the accumulation type."""
    acc = accumulation_dtype(anchors.dtype)
    rows = anchors.shape[0]
    if not isinstance(tau, Tensor):
        if isinstance(tau, bool) or not isinstance(tau, Real) or not 0 < tau < math.inf:
            raise ValueError(
                f"adaptive_infonce: {name} must be a positive finite number or a tensor, got "
                f"{tau!r}"
            )
        return anchors.new_full((), float(tau), dtype=acc).expand(rows)
    check_local("adaptive_infonce", name, tau)
    if tau.dtype == torch.bool or tau.is_complex():
        raise TypeError(f"adaptive_infonce: {name} must be of real numbers, got {tau.dtype}")
    if tau.device != anchors.device and tau.dim() > 0:
        raise ValueError(
            f"adaptive_infonce: {name} must be 0-dim or on {anchors.device}, got {tau.device}"
        )
    if tau.shape not in ((), (1,), (rows,), (rows, 1)):
        raise ValueError(
            f"adaptive_infonce: {name} must be 0-dim or of shape (1,), ({rows},) or ({rows}, 1), "
            f"got {tuple(tau.shape)}"
        )
    if tau.shape == (rows,) and tau.dtype == acc:
        return tau  # what follows takes five microseconds to find that
    return tau.reshape(() if tau.dim() == 0 else (-1,)).to(anchors.device, acc).expand(rows)


def append_bias(h_ctr: Tensor, h_cvr: Tensor, tau: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Returns (a, tau) and (b, bias), whose dot products over tau are the logits plus the bias:
    [B, d+1], [N, d+1].

    The half types hold tau and the bias as sums of two terms each, which takes three columns.
    """
    dtype = h_ctr.dtype
    tau, bias = tau[:, None], bias[:, None].to(tau.dtype)
    row = [tau.to(dtype)]
    column = [bias.to(dtype)]
    if dtype in (torch.bfloat16, torch.float16):
        row += [row[0], (tau - row[0]).to(dtype)]
        column += [(bias - column[0]).to(dtype), column[0]]
    return torch.cat((h_ctr, *row), dim=1), torch.cat((h_cvr, *column), dim=1)
