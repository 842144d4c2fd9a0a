"""Values and strides of random inputs, and the comparison of a kernel's results."""

from contextlib import contextmanager
from contextvars import ContextVar

import torch

import adaftr_fast as af
from tests.tolerances import SLACK, error


def instruction_sets():
    """Returns those of this machine."""
    known = af.build_info().get("this machine runs")
    assert known, "a search of ops needs the C++ kernels: make build"
    return str(known).split(", ")


def laid(x, layout):
    """Returns the numbers of ``x`` at other strides, among NaN or -1; "expanded" repeats its first
    row.
    """
    if layout is None or x.dim() == 0:
        return x.contiguous()
    outside = float("nan") if x.is_floating_point() else -1
    if layout == "expanded":
        return x[:1].contiguous().expand(x.shape) if len(x) else x
    if layout == "transposed":
        return x.transpose(0, -1).contiguous().transpose(0, -1)
    if layout == "offset":  # not aligned to a vector
        wide = x.new_full((x.numel() + 1,), outside)
        wide[1:] = x.flatten()
        return wide[1:].view(x.shape)
    step = 2 if layout == "strided" else 1
    wide = x.new_full([step * n + 3 for n in x.shape], outside)
    view = wide[tuple(slice(2, 2 + step * n, step) for n in x.shape)]
    return view.copy_(x)


def spoiled(named, options):
    """Returns the tensors; where the case says so, with NaN or an infinity as one number of one of
    them.
    """
    floats = [name for name, x in named.items() if x.is_floating_point() and x.numel()]
    if "spoiled" not in options or not floats:
        return named
    name = floats[int(torch.randint(0, len(floats), ()))]
    x = named[name].clone(memory_format=torch.contiguous_format)
    x.view(-1)[int(torch.randint(0, x.numel(), ()))] = float(options["spoiled"])
    return named | {name: x}


def sensitivity(function, tensors, eps):
    """Returns by how much each result changes when the tensors change by a part ``eps`` of
    themselves.
    """
    results = function(list(tensors))
    found = {name: torch.zeros_like(x) for name, x in results.items() if x.is_floating_point()}
    for _ in range(3):
        moved = function([x * (1 + eps * (2 * torch.rand_like(x) - 1)) for x in tensors])
        found = {
            name: torch.maximum(largest, (moved[name] - results[name]).abs())
            for name, largest in found.items()
        }
    return found


_cancels = ContextVar("cancels", default=True)


@contextmanager
def rule(cancels):
    """Within the block, ``assert_close`` allows for cancellation, or holds results to the tolerance
    rule alone.
    """
    token = _cancels.set(cancels)
    try:
        yield
    finally:
        _cancels.reset(token)


def assert_close(x, truth, pytorch, dtype, terms, what):
    """Applies the tolerance rule, and allows for cancellation unless ``rule`` says otherwise.

    For fewer than 8 numbers it always allows for cancellation: an error is judged beside the largest
    number of a result, and each of a few sums may be near 0.

    Of what is not finite it asks what ``adaftr_fast.reference`` promises.

    Args:
        x, truth, pytorch, dtype, what: see ``assert_as_accurate``.
        terms: an error that rounding the terms of a sum causes, however small the sum is; the shape
            of ``truth``. Not finite where a number is not finite that the result depends on.
    """
    assert x.shape == truth.shape, f"{what}: shape {list(x.shape)} instead of {list(truth.shape)}"
    lost = ~truth.isfinite()
    reached = ~terms.isfinite()
    assert not x[lost].isfinite().any(), f"{what}: finite where the truth is not"
    allowed = lost | (reached & ~x.isfinite())
    x, truth, pytorch = (each.masked_fill(allowed, 0) for each in (x, truth, pytorch))
    terms = terms.masked_fill(reached, 0)
    if truth.numel() == 0 or truth.abs().max() > 0.1 * torch.finfo(x.dtype).max:
        return
    floor = torch.finfo(x.dtype).smallest_normal if x.dtype != torch.float16 else 1e-7
    scale = truth.abs().max().item() or 1.0
    own = error(x, truth)
    bound = error(pytorch.nan_to_num(), truth) + SLACK[dtype]
    if _cancels.get() or truth.numel() < 8:
        bound += (terms.abs().max().item() + floor) / scale
    assert own <= bound, f"{what}: error {own:.3g} against float64, allowed {bound:.3g}"
