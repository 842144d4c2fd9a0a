"""Forward and backward of the loss, ours and others', over batch size, width and precision.

"tflops" counts four products of 2 B B d, which is what our schedule executes, whatever a contestant
does. Every result is compared with float64 before it is timed.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import torch

from benchmarks.gpu.cells import Cell, Row, Setting
from benchmarks.gpu.stages import contestants as forms
from benchmarks.gpu.timing import figures, graphed, samples

LIMIT = 30  # seconds of a cell
BATCHES = [2**k for k in range(10, 18)]
WIDTHS = [64, 128, 32, 256]
PRECISIONS = ["bfloat16", "tf32", "float32"]
# The plan, (precision, B, d); the others of the grid follow.
FIRST = [
    *(("bfloat16", batch, 128) for batch in (1024, 8192, 65_536, 4096, 16_384)),
    *(("bfloat16", batch, 64) for batch in (1024, 8192, 65_536)),
    *((precision, 8192, 128) for precision in ("tf32", "float32")),
]
COMPILED_FIRST = FIRST[:3]
GRAPHED = 16_384  # rows up to which the host's launches matter
# beside the compiled form, which comes later: it shows a drift of the machine
AGAIN = "ours, again"
OURS = "ours"


def cells(setting: Setting) -> Iterator[Cell]:
    """Yields the products alone, then the first shapes, then these compiled, then all others."""
    first, rest = ([("float32", 64, 16)], []) if setting.dry else (FIRST, remaining())
    for precision in dict.fromkeys(shape[0] for shape in [*first, *rest]):
        key = {"precision": precision, "contestant": "matmul"}
        yield Cell(key, matmul, seconds=1)
    for shape in first:
        yield from of_shape(shape, setting, planned=True)
    for shape in [] if setting.dry else first:
        planned = shape in COMPILED_FIRST
        yield cell(shape, AGAIN, "call", 1.2, planned)
        yield cell(shape, forms.COMPILED, "call", 10.0, planned)
    for shape in rest:
        yield from of_shape(shape, setting, planned=False)


def remaining() -> list[tuple[str, int, int]]:
    every = [(p, batch, width) for p in PRECISIONS for width in WIDTHS for batch in BATCHES]
    return sorted(
        (shape for shape in every if shape not in FIRST), key=lambda shape: shape[1] ** 2 * shape[2]
    )


def of_shape(shape: tuple[str, int, int], setting: Setting, planned: bool) -> Iterator[Cell]:
    names = [name for name in forms.available(shape[0], setting.device) if name != forms.COMPILED]
    for name in names:
        for mode in ("call", "graph") if shape[1] <= GRAPHED else ("call",):
            yield cell(shape, name, mode, 1.2, planned)


def cell(shape: tuple[str, int, int], name: str, mode: str, seconds: float, planned: bool) -> Cell:
    key = dict(zip(("precision", "batch", "width"), shape)) | {"contestant": name, "mode": mode}
    key |= forms.chosen_kernels() if name in (OURS, AGAIN) else {}
    return Cell(key, measure, seconds, planned, captures=mode == "graph")


def matmul(key: Row, setting: Setting) -> Row:
    """Measures a square product: what the card gives, as opposed to what is printed on its box."""
    size = 64 if setting.dry else 8192
    precision = key["precision"]
    x = torch.randn(size, size, device=setting.device).to(forms.DTYPES[precision])
    with forms.matmul_precision(precision):
        times, _ = samples(lambda: x @ x, setting.device, 0.3)
    seconds = sorted(times)[len(times) // 2]
    return {"seconds": seconds, "size": size, "tflops": 2 * size**3 / seconds / 1e12}


@lru_cache(maxsize=1)  # the contestants of a shape come one after another
def reference(
    precision: str, batch: int, width: int, device: str
) -> tuple[forms.Leaves, list[Any], dict[str, float]]:
    """Returns the inputs, the float64 results and the errors that the tolerance rule allows."""
    leaves = forms.problem(batch, width, precision, device)
    true = forms.truth(leaves)
    return leaves, true, forms.bounds(leaves, true, precision)


def measure(key: Row, setting: Setting) -> Row:
    """Returns errors and, where the result is right, times of one forward and backward."""
    precision = key["precision"]
    batch = key["batch"]
    width = key["width"]
    device = setting.device
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
    """Returns the errors; with "wrong" where ours breaks the tolerance rule, or another's error is
    no rounding.
    """
    beyond = {name: value for name, value in errors.items() if not value <= allowed[name]}
    wrong = (
        beyond
        if ours
        else {name: value for name, value in beyond.items() if not value <= forms.WRONG}
    )
    found = {"error": errors, "accurate": not beyond}
    if wrong:
        shown = (
            f"{name} errs by {value:.3g}, allowed {allowed[name]:.3g}"
            for name, value in wrong.items()
        )
        found["wrong"] = ", ".join(shown)
    return found
