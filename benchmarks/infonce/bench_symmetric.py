"""``symmetric=True`` beside the two directions called by themselves, forward and backward.

    python -m benchmarks.infonce.bench_symmetric [--threads 1] [--seconds 2] [--rows 1024 4096]

Inputs are float32, with gradients of h_ctr, h_cvr and both temperatures. Nothing is timed before both agree.
"""

import argparse

import torch
from torch import Tensor

import adaftr_fast as af
from benchmarks.infonce.cases import SIZES, forward_backward, inputs
from benchmarks.measure import side_by_side
from benchmarks.render import table


def fused(a: Tensor, b: Tensor, tau: Tensor, tau_column: Tensor) -> Tensor:
    return af.adaptive_infonce(a, b, (tau, tau_column), symmetric=True)


def two_calls(a: Tensor, b: Tensor, tau: Tensor, tau_column: Tensor) -> Tensor:
    return (af.adaptive_infonce(a, b, tau) + af.adaptive_infonce(b, a, tau_column)) / 2


def check(tensors: list[Tensor]) -> None:
    found, true = (torch.autograd.grad(loss(*tensors), tensors) for loss in (fused, two_calls))
    for x, y in zip(found, true):
        if (x - y).abs().max() > 1e-4 * y.abs().max():
            raise RuntimeError("bench_symmetric: the gradients disagree")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=2.0, help="per loss and case")
    parser.add_argument("--rows", type=int, nargs="+", help="only the sizes with so many rows")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    lines = []
    for kind in ("gaussian", "mild"):
        for rows, d in SIZES:
            if arguments.rows and rows not in arguments.rows:
                continue
            tensors = inputs(kind, rows, d)
            tensors.append(tensors[2].detach().flip(0).requires_grad_())
            check(tensors)
            ms = side_by_side({f.__name__: forward_backward(f, tensors) for f in (fused, two_calls)}, arguments.seconds)
            ratio = ms["fused"] / ms["two_calls"]
            lines.append([kind, f"{rows:,} x {d}", f"{ms['fused']:.2f}", f"{ms['two_calls']:.2f}", f"{ratio:.2f}"])
    print(table("inputs | B x d | symmetric=True, ms | two calls, ms | ratio", "llrrr", lines))


if __name__ == "__main__":
    main()
