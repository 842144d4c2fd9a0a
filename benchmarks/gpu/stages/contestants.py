"""The forms of the loss that are compared, the float64 truth, and how far from it a form may be.

B rows against B columns of unit length and d elements. Every form returns the mean loss; ours takes
a temperature per row and its gradient, those that take none have the same number for all.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

import adaftr_fast as af
from benchmarks.infonce.cases import Loss, chunked_linear_cross_entropy, literal
from tests.tolerances import SLACK, error

TAU = 0.07
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32, "tf32": torch.float32}
TF32_SLACK = 2e-2  # TF32 rounds operands to 10 bits of mantissa
WRONG = 0.1  # in units of the largest true value: an error beyond rounding
COMPILED = "torch.compile"
# variables that choose our kernels
SWEEPS = "ADAFTR_FAST_INFONCE_SWEEPS"
BLOCKS = "ADAFTR_FAST_INFONCE_BLOCKS"
NAMES = ("loss", "d h_ctr", "d h_cvr", "d tau")
CHUNK = 1 << 26  # elements of S that the float64 truth holds at a time
Leaves = tuple[Tensor, Tensor, Tensor]
Found = list[Tensor | None]


def ours(a: Tensor, b: Tensor, tau: Tensor) -> Tensor:
    return af.adaptive_infonce(a, b, tau)


def chosen_kernels() -> dict[str, str]:
    """Returns what the variables choose instead of the default kernels, which a key of
    ours names.
    """
    chosen = {"sweeps": os.environ.get(SWEEPS, ""), "blocks": os.environ.get(BLOCKS, "")}
    return {name: value for name, value in chosen.items() if value}


def compiled() -> Loss:
    torch._dynamo.reset()  # each shape is compiled for itself
    return torch.compile(literal, dynamic=False)


def memeff(input_precision: str) -> Loss:
    """memeff reads the precision of its float32 products once, when it is imported, so it is
    imported anew.

    A margin of 2 masks no negatives; its gradient is the exact one without the stable rescaling.
    """
    os.environ["MEMEFF_INPUT_PRECISION"] = input_precision
    for name in [each for each in sys.modules if each.partition(".")[0] == "memeff"]:
        del sys.modules[name]
    made = importlib.import_module("memeff").MemoryEfficientQwen3Loss(
        temperature=TAU, margin=2.0, normalized_inputs=True, stable=False
    )
    return lambda a, b, tau: made(a, b)


def inf_cl(a: Tensor, b: Tensor, tau: Tensor) -> Tensor:
    """Inf-CL on one GPU. It converts to float32 and multiplies in TF32."""
    from inf_cl import cal_flash_loss

    return cal_flash_loss(a, b, scale=1 / TAU, head_dim=a.shape[1]).mean()


def available(precision: str, device: str) -> dict[str, Callable[[], Loss]]:
    """Returns the forms that this installation has at a precision, by name; each is made when it is
    called.
    """
    found = {"ours": lambda: ours, "eager": lambda: literal}
    if hasattr(torch.nn, "LinearCrossEntropyOptions"):  # since torch 2.13
        found["linear_cross_entropy, chunked"] = lambda: chunked_linear_cross_entropy
    if device == "cuda" and importlib.util.find_spec("memeff"):
        found["memeff"] = partial(memeff, "tf32" if precision == "tf32" else "ieee")
    if device == "cuda" and importlib.util.find_spec("inf_cl") and precision != "float32":
        found["Inf-CL"] = lambda: inf_cl
    return found | {COMPILED: compiled}


@contextmanager
def matmul_precision(precision: str) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium" if precision == "tf32" else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def problem(batch: int, width: int, precision: str, device: str) -> Leaves:
    """Returns h_ctr, h_cvr [B, d] and tau [B], which require gradients."""
    g = torch.Generator().manual_seed(0)
    a, b = (
        F.normalize(torch.randn(batch, width, generator=g), dim=1).to(device, DTYPES[precision])
        for _ in range(2)
    )
    leaves = (a, b, torch.full((batch,), TAU, device=device))
    return tuple(leaf.requires_grad_() for leaf in leaves)  # type: ignore[return-value]


def step(loss: Loss, leaves: Leaves) -> Found:
    """Returns the loss and the gradients, None for a temperature that the form does not take."""
    value = loss(*leaves)
    return [value.detach(), *torch.autograd.grad(value, leaves, allow_unused=True)]


def truth(leaves: Leaves) -> list[Tensor]:
    """Returns the loss and its three gradients in float64, from ``CHUNK`` elements of S
    at a time.
    """
    a, b, tau = exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    loss = torch.zeros_like(tau[0])
    for part in torch.arange(len(a), device=a.device).split(max(1, CHUNK // len(a))):
        scores = a[part] @ b.T / tau[part, None]
        own = F.cross_entropy(scores, part, reduction="sum") / len(a)
        own.backward()
        loss += own.detach()
    return [loss.detach(), *(leaf.grad for leaf in exact)]


def errors(found: Found, true: list[Tensor]) -> dict[str, float]:
    """Returns the largest error of each result in units of its largest true value; infinity where
    not finite.
    """
    return {
        name: error(x.float() if x.dtype != torch.float64 else x, t)
        if x.isfinite().all()
        else float("inf")
        for name, x, t in zip(NAMES, found, true)
        if x is not None
    }


def bounds(leaves: Leaves, true: list[Tensor], precision: str) -> dict[str, float]:
    """Returns what the tolerance rule allows: PyTorch's own error at this type and a constant.

    Where the B x B arrays of PyTorch's form do not fit into memory, the constant alone.
    """
    if precision == "tf32":
        return dict.fromkeys(NAMES, TF32_SLACK)
    try:
        theirs = errors(step(literal, leaves), true)
    except torch.cuda.OutOfMemoryError:
        theirs = {}
    return {name: theirs.get(name, 0.0) + SLACK[DTYPES[precision]] for name in NAMES}
