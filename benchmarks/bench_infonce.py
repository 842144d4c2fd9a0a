"""The loss, forward and backward of all three gradients, beside what PyTorch offers.

    python -m pytest benchmarks/bench_infonce.py --benchmark-only   groups to compare at a glance
    python -m benchmarks.bench_infonce           -> results/infonce-*.json
    python -m benchmarks.bench_infonce --growth  time and memory against B -> results/infonce_growth-*.json, infonce.png

Nothing is timed before its result has been checked against the literal formula.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from benchmarks import RESULTS, render
from benchmarks.infonce.cases import (
    SIZES,
    bare_products,
    contestants,
    forward_backward,
    inputs,
    literal,
)
from benchmarks.measure import options, side_by_side, step_alone, write

GROWTH = [1024, 2048, 4096, 8192, 16384, 32768, 65536]  # rows, at d = 128, for the plot
LARGEST_EAGER = 16384  # the literal form's matrices would need 17 GiB each beyond


def agrees(loss, tensors) -> bool:
    """Loss and gradients, to a percent or so of the largest: enough to see that the same thing is
    timed.
    """

    def results(function):
        value = function(*tensors)
        return [value, *torch.autograd.grad(value, tensors)]

    return all(
        (x - y).abs().max() <= 3e-2 * y.abs().max() for x, y in zip(results(loss), results(literal))
    )


@pytest.mark.parametrize("kind", ["gaussian", "mild"])
@pytest.mark.parametrize(("rows", "d"), SIZES)
@pytest.mark.parametrize(("name", "loss"), list(contestants()))
def test_float32(benchmark, name, loss, rows, d, kind):
    benchmark.group = f"{rows} x {d}, {kind}"
    tensors = inputs(kind, rows, d)
    assert agrees(loss, tensors)
    benchmark(forward_backward(loss, tensors))


def compare(kind: str, rows: int, d: int, seconds: float) -> dict[str, Any]:
    """Milliseconds of ours at every precision, of PyTorch's forms, and of the bare products, taken
    in turns.
    """
    import adaftr_fast as af

    tensors = inputs(kind, rows, d)
    half = inputs(kind, rows, d, torch.bfloat16)
    runs = {"bare products": bare_products(rows, d)}
    for name, loss in contestants():
        if not agrees(loss, tensors):
            raise RuntimeError(
                f"bench_infonce: {name} disagrees with the literal formula at {kind}, {rows} x {d}"
            )
        runs[name] = forward_backward(loss, tensors)
    runs["adaptive_infonce, bfloat16"] = forward_backward(af.adaptive_infonce, half)
    for precision in ("high", "medium"):
        runs[f"adaptive_infonce, {precision}"] = at_precision(
            precision, forward_backward(af.adaptive_infonce, tensors)
        )
    times = side_by_side(runs, seconds)
    return {"kind": kind, "rows": rows, "d": d, "ms": times, "error": errors(tensors)}


def at_precision(precision: str, step):
    def run() -> None:
        torch.set_float32_matmul_precision(precision)
        step()
        torch.set_float32_matmul_precision("highest")

    return run


def errors(tensors) -> dict[str, float]:
    """Largest error of a gradient against float64, in units of the gradient's largest value, per
    precision.
    """
    import adaftr_fast as af

    def gradients(loss, dtype):
        leaves = [t.detach().to(dtype).requires_grad_() for t in tensors]
        return torch.autograd.grad(loss(*leaves), leaves)

    def worst(found):
        return max(
            ((x.double() - t).abs().max() / t.abs().max()).item() for x, t in zip(found, truth)
        )

    truth = gradients(literal, torch.float64)
    found = {"eager": worst(gradients(literal, torch.float32))}
    for precision in ("highest", "high", "medium"):
        torch.set_float32_matmul_precision(precision)
        found[precision] = worst(gradients(af.adaptive_infonce, torch.float32))
    torch.set_float32_matmul_precision("highest")
    return found


def grow(name: str, rows: int, d: int = 128) -> dict[str, Any]:
    """Returns the milliseconds and the added memory of one step."""
    ms, mib = step_alone(warmed, name, rows, d)
    return {"name": name, "rows": rows, "d": d, "ms": ms, "added MiB": mib}


def warmed(name: str, rows: int, d: int) -> Callable[[], None]:
    """Returns a step of a contestant that has been called on few rows."""
    loss = dict(contestants())[name]
    forward_backward(loss, inputs("mild", 64, 8))()
    return forward_backward(loss, inputs("mild", rows, d))


def draw(growth: list[dict[str, Any]]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for axis, key, label in zip(
        axes, ("ms", "added MiB"), ("forward + backward, ms", "added peak memory, MiB")
    ):
        for name in dict.fromkeys(case["name"] for case in growth):
            cases = [case for case in growth if case["name"] == name]
            axis.plot([c["rows"] for c in cases], [c[key] for c in cases], marker="o", label=name)
        axis.set(xscale="log", yscale="log", xlabel="B (d = 128, float32)", ylabel=label)
        axis.set_xticks(GROWTH, [f"{rows:,}" for rows in GROWTH], rotation=45)
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    figure.legend(
        *axes[0].get_legend_handles_labels(), loc="outside upper left", ncols=3, frameon=False
    )
    figure.savefig(RESULTS / "infonce.png", dpi=110)


def main() -> None:
    growth = False, "time and memory against B instead"
    arguments = options(__doc__, seconds=(2.0, "per contestant and case"), growth=growth)
    if arguments.growth:
        names = ("adaptive_infonce", "eager, literal", "linear_cross_entropy, chunked")
        growth = [
            grow(n, rows)
            for n in names
            for rows in GROWTH
            if n == names[0] or rows <= LARGEST_EAGER
        ]
        draw(growth)
        print(render.loss_growth(growth))
        print(write("infonce_growth", growth))
        return
    cases = [
        compare(kind, rows, d, arguments.seconds)
        for kind in ("gaussian", "mild")
        for rows, d in SIZES
    ]
    print(render.loss(cases), render.loss_error(cases), sep="\n\n")
    print(write("infonce", cases))


if __name__ == "__main__":
    main()
