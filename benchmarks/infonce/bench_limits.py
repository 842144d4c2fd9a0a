"""How near the loss comes to its own products: the same products of tiles alone, on operands that stay in cache.

    python -m benchmarks.infonce.bench_limits                       -> results/limits-*.json
    python -m benchmarks.infonce.bench_limits --sizes 1024 64       one size; writes nothing

No kernel of these products can take less time than they do, so the best form of PyTorch over the products is the
largest speed-up that any such kernel can have. Exponentials run on the same units as the products of FMA, and add to
them; AMX has units of its own, and can hide them. In bfloat16, where a block of P exceeds 16 MiB and with AMX, the
loss makes S and P twice: four products (csrc/cpu/infonce/bf16_recomputed.inl).
"""

import argparse
from collections.abc import Callable
from typing import Any

import torch

import adaftr_fast  # noqa: F401  # loads the op
from benchmarks.infonce.cases import SIZES, contestants, forward_backward, inputs, literal
from benchmarks.infonce.limits import BEST, LITERAL, PRODUCTS, limits
from benchmarks.measure import side_by_side, write
from benchmarks.render import OURS


def from_cache(part: str, rows: int, d: int, bfloat16: bool) -> Callable[[], int]:
    """One part of a loss of ``rows`` x ``rows``, which returns its number of multiplications or exponentials."""
    return lambda: torch.ops.adaftr_fast._infonce_from_cache(part, rows, rows, d, bfloat16)


def compare(rows: int, d: int, bfloat16: bool, threads: int, seconds: float) -> dict[str, Any] | None:
    """Milliseconds of each part and the loss, and of PyTorch in float32; None where bfloat16 has no kernel."""
    torch.set_num_threads(threads)
    parts = {part: from_cache(part, rows, d, bfloat16) for part in (*PRODUCTS, "exponentials")}
    counts = {part: run() for part, run in parts.items()}
    if not counts["scores"]:
        return None
    tensors = inputs("mild", rows, d, torch.bfloat16 if bfloat16 else torch.float32)
    forms = [(name, loss) for name, loss in contestants() if not bfloat16 or name == OURS]
    steps = {name: forward_backward(loss, tensors) for name, loss in forms}
    if not bfloat16:
        steps[LITERAL] = forward_backward(literal, inputs("gaussian", rows, d))
    ms = side_by_side(parts | steps, seconds)
    case = {"dtype": "bfloat16" if bfloat16 else "float32", "rows": rows, "d": d, "threads": threads}
    case |= {"counts": counts, "ms": {name: ms[name] for name in (*parts, OURS)}}
    if bfloat16:
        return case
    return case | {BEST: min(ms[name] for name, _ in forms if name != OURS), LITERAL: ms[LITERAL]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1.0, help="per part and case")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--sizes", type=int, nargs=2, metavar=("B", "D"), help="one size instead of all")
    arguments = parser.parse_args()
    cases = [
        case
        for threads in arguments.threads
        for bfloat16 in (False, True)
        for rows, d in ([arguments.sizes] if arguments.sizes else SIZES)
        if (case := compare(rows, d, bfloat16, threads, arguments.seconds)) is not None
    ]
    print(limits(cases))
    if not arguments.sizes:
        print(write("limits", cases))


if __name__ == "__main__":
    main()
