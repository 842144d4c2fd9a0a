"""Forward and backward of the loss, ours and others', over batch size, width and precision.

"tflops" counts four products of 2 B B d, which is what our schedule executes, whatever a contestant does. Every result
is compared with float64 before it is timed.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import torch

from benchmarks.gpu.cells import Cell, Setting
from benchmarks.gpu.stages import contestants as forms
from benchmarks.gpu.timing import figures, graphed, samples

LIMIT = 180  # seconds of a cell
BATCHES = [2**k for k in range(10, 18)]
WIDTHS = [64, 128, 32, 256]
PRECISIONS = ["bfloat16", "tf32", "float32"]
# What is measured first, since a deadline may end the rest: (precision, B, d).
FIRST = [
    *(("bfloat16", batch, width) for width in (128, 64) for batch in (1024, 4096, 8192, 65_536, 16_384)),
    *((precision, batch, 128) for precision in ("tf32", "float32") for batch in (1024, 8192)),
]
GRAPHED = 16_384  # rows up to which the host's launches matter
AGAIN = "adaftr_fast, again"  # beside the compiled form, which comes later: it shows a drift of the machine
OURS = "adaftr_fast"


def cells(setting: Setting) -> Iterator[Cell]:
    """Yields the products alone, then the first shapes, then these compiled, then all others."""
    first, rest = ([("float32", 64, 16)], []) if setting.dry else (FIRST, remaining())
    for precision in dict.fromkeys(shape[0] for shape in [*first, *rest]):
        yield Cell({"precision": precision, "contestant": "matmul"}, lambda p=precision: matmul(p, setting))
    for shape in first:
        yield from of_shape(shape, setting, compiled=False)
    for shape in [] if setting.dry else first:
        yield from of_shape(shape, setting, compiled=True)
    for shape in rest:
        yield from of_shape(shape, setting, compiled=False)


def remaining() -> list[tuple[str, int, int]]:
    every = [(p, batch, width) for p in PRECISIONS for width in WIDTHS for batch in BATCHES]
    return sorted((shape for shape in every if shape not in FIRST), key=lambda shape: shape[1] ** 2 * shape[2])


def of_shape(shape: tuple[str, int, int], setting: Setting, compiled: bool) -> Iterator[Cell]:
    precision, batch, width = shape
    names = list(forms.available(precision, setting.device))[:-1]
    names = [AGAIN, forms.COMPILED] if compiled else names
    for name in names:
        for mode in ("call", "graph") if batch <= GRAPHED and not compiled else ("call",):
            key = {"precision": precision, "batch": batch, "width": width, "contestant": name, "mode": mode}
            yield Cell(key, lambda key=key: measure(key, setting.device), seconds=20 if compiled else 2)


def matmul(precision: str, setting: Setting) -> dict[str, Any]:
    """Measures a square product: what the card gives, as opposed to what is printed on its box."""
    size = 64 if setting.dry else 8192
    x = torch.randn(size, size, device=setting.device).to(forms.DTYPES[precision])
    with forms.matmul_precision(precision):
        times, _ = samples(lambda: x @ x, setting.device, 0.3)
    seconds = sorted(times)[len(times) // 2]
    return {"seconds": seconds, "size": size, "tflops": 2 * size**3 / seconds / 1e12}


@lru_cache(maxsize=1)  # the contestants of a shape come one after another
def reference(precision: str, batch: int, width: int, device: str) -> tuple[forms.Leaves, list[Any], dict[str, float]]:
    """Returns the inputs, the float64 results and the errors that the tolerance rule allows."""
    leaves = forms.problem(batch, width, precision, device)
    true = forms.truth(leaves)
    return leaves, true, forms.bounds(leaves, true, precision)


def measure(key: dict[str, Any], device: str) -> dict[str, Any]:
    """Returns errors and, where the result is right, times of one forward and backward."""
    precision = key["precision"]
    batch = key["batch"]
    width = key["width"]
    with forms.matmul_precision(precision):
        leaves, true, allowed = reference(precision, batch, width, device)
        name = OURS if key["contestant"] == AGAIN else key["contestant"]
        loss = forms.available(precision, device)[name]()

        def run() -> forms.Found:
            return forms.step(loss, leaves)

        if key["mode"] == "graph":
            run, held = graphed(run, device)
            run()
        else:
            held = run()
        found = judge(forms.errors(held, true), allowed, ours=name == OURS)
        del held
        if "wrong" in found:
            return found
        found |= figures(run, device)
    return found | {"tflops": 4 * 2 * batch * batch * width / found["seconds"] / 1e12}


def judge(errors: dict[str, float], allowed: dict[str, float], ours: bool) -> dict[str, Any]:
    """Returns the errors; with "wrong" where ours breaks the tolerance rule, or another's error is no rounding."""
    beyond = {name: value for name, value in errors.items() if not value <= allowed[name]}
    wrong = beyond if ours else {name: value for name, value in beyond.items() if not value <= forms.WRONG}
    found: dict[str, Any] = {"error": errors, "accurate": not beyond}
    if wrong:
        shown = (f"{name} errs by {value:.3g}, allowed {allowed[name]:.3g}" for name, value in wrong.items())
        found["wrong"] = ", ".join(shown)
    return found
