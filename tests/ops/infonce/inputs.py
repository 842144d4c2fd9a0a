"""Inputs of the loss tests, and the comparison of a backend with the float64 reference by the
tolerance rule.
"""

import torch

import adaftr_fast as af
from tests.tolerances import assert_as_accurate

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def inputs(rows, columns, d, scale=1.0, seed=0):
    """Returns representations whose logits have standard deviation ``scale``, and tau in
    [0.05, 1.05]; float64.
    """
    g = torch.Generator().manual_seed(seed)
    a = torch.randn(rows, d, generator=g, dtype=torch.float64) * scale * d**-0.25
    b = torch.randn(columns, d, generator=g, dtype=torch.float64) * d**-0.25
    return a, b, torch.rand(rows, generator=g, dtype=torch.float64) + 0.05


def masks(rows, columns, seed=1):
    """Returns random positives, groups and weights, with ignored and zero-weight rows
    among them.
    """
    g = torch.Generator().manual_seed(seed)
    positive = torch.randint(0, columns, (rows,), generator=g)
    positive[::7] = -100
    return {
        "positive_index": positive,
        "row_group": torch.randint(0, 5, (rows,), generator=g) + 2**40,
        "column_group": torch.randint(0, 5, (columns,), generator=g) + 2**40,
        "row_weight": torch.rand(rows, generator=g, dtype=torch.float64)
        * (torch.arange(rows) % 3 > 0),
    }


def winning(rows, gap):
    """Returns inputs whose positives have a probability near 1; float64."""
    one = torch.eye(rows, dtype=torch.float64)
    return (
        one * gap + inputs(rows, rows, rows, scale=0.1)[0],
        one,
        torch.ones(rows, dtype=torch.float64),
    )


def types_of(tensors, dtype):
    """Returns the types of the representations and of the other tensors in a call at ``dtype``."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    return [dtype, dtype, *[wide] * (len(tensors) - 2)]


def moved(options, device):
    """Returns the options with their tensors on the device."""

    def move(x):
        if isinstance(x, tuple):
            return tuple(map(move, x))
        return x.to(device) if isinstance(x, torch.Tensor) else x

    return {name: move(x) for name, x in options.items()}


def loss_and_gradients(
    function, tensors, dtype, upstream=None, *, device="cpu", frozen=(), **options
):
    """Returns the loss, the gradients of the tensors (None where frozen) and the statistics if
    asked for; on the CPU.

    The representations are of ``dtype``, the other tensors of the accumulation type.
    """
    types = types_of(tensors, dtype)
    options = moved(options, device)
    if "row_weight" in options:
        options["row_weight"] = options["row_weight"].to(types[-1])
    leaves = [
        t.detach().to(device, kind, copy=True) for t, kind in zip(tensors, types, strict=True)
    ]
    for i, leaf in enumerate(leaves):
        leaf.requires_grad_(i not in frozen)
    loss = function(*leaves, **options)
    loss, statistics = loss if isinstance(loss, tuple) else (loss, ())
    if loss.requires_grad:
        loss.backward(None if upstream is None else upstream.to(device, loss.dtype))
    found = [loss.detach(), *(leaf.grad for leaf in leaves), *statistics]
    return [x if x is None else x.cpu() for x in found]


def assert_matches(
    tensors, dtype, function=af.adaptive_infonce, *, backend="cpu", device="cpu", what="", **options
):
    """Compares the loss, gradients and statistics with the float64 reference, both at inputs
    rounded to ``dtype``.
    """
    rounded = [
        t.to(kind).double() for t, kind in zip(tensors, types_of(tensors, dtype), strict=True)
    ]
    truth = loss_and_gradients(function, rounded, torch.float64, backend="reference", **options)
    theirs = loss_and_gradients(function, rounded, dtype, backend="reference", **options)
    own = loss_and_gradients(function, rounded, dtype, backend=backend, device=device, **options)
    names = ["loss", "d h_ctr", "d h_cvr", *(f"d of input {i}" for i in range(2, len(tensors)))]
    names += af.ops.infonce.api.InfoNCEStats._fields[: len(truth) - len(names)]
    for name, x, t, p in zip(names, own, truth, theirs, strict=True):
        assert (x is None) == (t is None), f"{what} {name}"
        if x is None:
            continue
        if x.dtype == torch.bool:
            assert torch.equal(x, t), f"{what} {name}"
        elif name == "entropy" and t.numel() and t.max() < 1e-6:  # rounding errors alone
            assert x.abs().max() < 1e-6, what
        else:
            assert_as_accurate(x, t, p, dtype, f"{what} {name}")
