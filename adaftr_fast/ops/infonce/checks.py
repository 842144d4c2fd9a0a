"""Argument checks of :func:`adaftr_fast.adaptive_infonce` and :func:`adaftr_fast.sigmoid_contrast`."""

import math
import os

import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual

from adaftr_fast._extension import is_built
from adaftr_fast.ops.infonce.candidates import DTYPES


def check_no_tangents(op: str, *inputs: Tensor | float | None) -> None:
    """Refuses forward-mode inputs, whose tangents PyTorch would drop silently where nothing requires a gradient."""
    if torch.compiler.is_compiling():
        return
    if any(isinstance(x, Tensor) and unpack_dual(x).tangent is not None for x in inputs):
        raise NotImplementedError(f"{op}: has no forward-mode derivative (jvp); use reverse mode")


def check_representations(op: str, h_ctr: Tensor, h_cvr: Tensor) -> None:
    """Checks that h_ctr and h_cvr are [B, d] and [N, d] with d >= 1, floating point and on one device."""
    for name, h in (("h_ctr", h_ctr), ("h_cvr", h_cvr)):
        if not isinstance(h, Tensor) or h.dim() != 2:
            got = tuple(h.shape) if isinstance(h, Tensor) else type(h).__name__
            raise ValueError(f"{op}: {name} must be a 2-dim tensor [rows, d], got {got}")
        if h.dtype not in DTYPES:
            raise TypeError(f"{op}: {name} must be float32, bfloat16, float16 or float64, got {h.dtype}")
    if h_ctr.shape[1] != h_cvr.shape[1] or h_ctr.shape[1] == 0:
        raise ValueError(
            f"{op}: h_ctr and h_cvr must have the same width d >= 1, got {tuple(h_ctr.shape)} and {tuple(h_cvr.shape)}"
        )
    if h_ctr.device != h_cvr.device:
        raise ValueError(f"{op}: h_ctr and h_cvr must be on one device, got {h_ctr.device} and {h_cvr.device}")


def check_row_options(
    h_ctr: Tensor,
    h_cvr: Tensor,
    positive_index: Tensor | None,
    row_group: Tensor | None,
    column_group: Tensor | None,
    row_weight: Tensor | None,
    column_bias: Tensor | None,
    pairs: bool,
) -> None:
    """Checks shape, dtype and device of the options that hold a value per row or per candidate.

    ``pairs``: without positive_index, each row needs a candidate of the same index.
    """
    rows, columns = len(h_ctr), len(h_cvr)
    if pairs or positive_index is not None:
        check_positive_index("adaptive_infonce", h_ctr, h_cvr, positive_index)
    if row_group is None and column_group is not None:
        raise ValueError("adaptive_infonce: column_group requires row_group, got None")
    if row_group is not None and column_group is None and rows != columns:
        raise ValueError(
            f"adaptive_infonce: row_group without column_group requires N = B, got N = {columns}, B = {rows}"
        )
    named = (
        ("row_group", row_group, rows),
        ("column_group", column_group, columns),
        ("row_weight", row_weight, rows),
        ("column_bias", column_bias, columns),
    )
    for name, x, length in named:
        if x is not None:
            _check_vector("adaptive_infonce", name, x, length, h_ctr)


def check_positive_index(op: str, h_ctr: Tensor, h_cvr: Tensor, positive_index: Tensor | None) -> None:
    """Checks shape, dtype and device of the positives' indices, and that there are candidates enough without them."""
    if positive_index is not None:
        _check_vector(op, "positive_index", positive_index, len(h_ctr), h_ctr)
    elif len(h_cvr) < len(h_ctr):
        raise ValueError(
            f"{op}: h_cvr must have at least one row per row of h_ctr ({len(h_ctr)}) without positive_index, "
            f"got {len(h_cvr)}"
        )


def _check_vector(op: str, name: str, x: Tensor, length: int, h_ctr: Tensor) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"{op}: {name} must be a tensor, got {type(x).__name__}")
    if tuple(x.shape) != (length,):
        raise ValueError(f"{op}: {name} must have shape ({length},), got {tuple(x.shape)}")
    if x.device != h_ctr.device:
        raise ValueError(f"{op}: {name} must be on {h_ctr.device} like h_ctr, got {x.device}")
    numbers = name in ("row_weight", "column_bias")
    if numbers and not x.is_floating_point():
        raise TypeError(f"{op}: {name} must be floating point, got {x.dtype}")
    if not numbers and x.dtype != torch.int64:
        raise TypeError(f"{op}: {name} must be int64, got {x.dtype}")


def check_ignore_above(margin: float | None) -> None:
    """Checks that the margin is None or a finite number."""
    if margin is None:
        return
    number = isinstance(margin, (float, int)) and not isinstance(margin, bool)
    if not number or not -math.inf < margin < math.inf:
        error = ValueError if number else TypeError
        raise error(f"adaptive_infonce: ignore_above must be a finite number or None, got {margin!r}")


def check_block(
    block: int,
    h_ctr: Tensor,
    h_cvr: Tensor,
    others: tuple[object, ...],
    label_smoothing: float,
    margin: float,
) -> None:
    """Checks a block, and that no option that concerns candidates is given with it."""
    if not isinstance(block, int) or isinstance(block, bool):
        raise TypeError(f"adaptive_infonce: block must be an int or None, got {type(block).__name__}")
    if block < 1:
        raise ValueError(f"adaptive_infonce: block must be at least 1, got {block}")
    if len(h_ctr) != len(h_cvr):
        raise ValueError(f"adaptive_infonce: block requires N = B, got N = {len(h_cvr)}, B = {len(h_ctr)}")
    names = ("positive_index", "row_group", "column_group", "column_bias", "positive_group", "ignore_above")
    given = {name: x is not None for name, x in zip(names, others, strict=True)}
    for name, is_given in (given | {"label_smoothing": label_smoothing != 0, "margin": margin != 0}).items():
        if is_given:
            raise ValueError(f"adaptive_infonce: block does not support {name}")


def check_targets(
    h_ctr: Tensor,
    h_cvr: Tensor,
    labels: tuple[Tensor, Tensor] | None,
    label_smoothing: float,
    margin: float,
    positive_index: Tensor | None,
    ignore_above: float | None,
    return_stats: bool,
) -> None:
    """Checks positive_group, label_smoothing and margin, and that what they exclude is not given."""
    _check_number("label_smoothing", label_smoothing, 1.0)
    _check_number("margin", margin, math.inf)
    if label_smoothing > 0 and ignore_above is not None:
        raise ValueError("adaptive_infonce: label_smoothing requires ignore_above=None; use row_group")
    if labels is None:
        return
    if len(labels) != 2:
        raise ValueError(
            f"adaptive_infonce: positive_group must be a tensor or a pair (rows, candidates), got {len(labels)} tensors"
        )
    for label, length in zip(labels, (len(h_ctr), len(h_cvr))):
        _check_vector("adaptive_infonce", "positive_group", label, length, h_ctr)
    refused = {
        "positive_index": positive_index is not None,
        "ignore_above": ignore_above is not None,
        "margin": margin != 0,
        "return_stats": return_stats,
    }
    for name, given in refused.items():
        if given:
            raise ValueError(f"adaptive_infonce: positive_group does not support {name}")


def _check_number(name: str, x: float, end: float) -> None:
    if not isinstance(x, (float, int)) or isinstance(x, bool):
        raise TypeError(f"adaptive_infonce: {name} must be a number, got {type(x).__name__}")
    if not 0 <= x < end:
        raise ValueError(f"adaptive_infonce: {name} must be in [0, {end:g}), got {x!r}")


def check_bias_is_finite(bias: Tensor) -> None:
    """Refuses a bias with inf or NaN on CPU, where reading the values waits for no device."""
    if bias.device.type != "cpu":
        return
    advice = "row_group and column_group exclude candidates"
    message = f"adaptive_infonce: column_bias must be finite ({advice})"
    if torch.compiler.is_compiling():
        torch._assert_async(bias.detach().isfinite().all(), message)  # a graph has no branch on values
        return
    while torch._C._functorch.is_functorch_wrapped_tensor(bias):  # vmap has no branch on values either
        bias = torch._C._functorch.get_unwrapped(bias)
    bad = ~bias.detach().isfinite()
    if bad.any():
        place = bad.nonzero()[0]
        column, value = int(place[-1]), bias[tuple(place)].item()
        raise RuntimeError(f"{message}, got column_bias[{column}] = {value}")


def op_name(function: str, op: str, backend: str, h_ctr: Tensor) -> str:
    """Returns the registered name of ``op`` for a backend of ``function``; checks that the backend takes h_ctr."""
    if backend in ("auto", "reference"):
        return op if backend == "auto" else f"{op}_reference"
    on_cpu = isinstance(h_ctr, Tensor) and h_ctr.device.type == "cpu"
    if backend == "cpu":
        if not on_cpu:
            got = h_ctr.device if isinstance(h_ctr, Tensor) else type(h_ctr).__name__
            raise ValueError(f"{function}: backend 'cpu' requires CPU tensors, got h_ctr on {got}")
        if not is_built():
            raise RuntimeError(f"{function}: backend 'cpu' requires the C++ extension (see adaftr-fast info)")
        return op
    if backend == "triton":
        if on_cpu and os.environ.get("TRITON_INTERPRET") != "1":
            raise ValueError(f"{function}: backend 'triton' accepts CPU tensors only under TRITON_INTERPRET=1")
        return f"{op}_triton"
    raise ValueError(f"{function}: backend must be auto, reference, cpu or triton, got {backend!r}")
