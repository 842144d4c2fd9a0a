"""The host's share of a call of the GPU loss: forward and backward with kernels that are not launched.

    python -m benchmarks.infonce.host [--rows 64] [--calls 300]

Prints microseconds of process CPU time a call. Tensors are on the CPU, where PyTorch's ops run on few rows. It leaves
out the launches, whose part in Triton's Python takes longer than all of launch.py.
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from unittest.mock import patch

os.environ["TRITON_INTERPRET"] = "1"  # the tensors are on the CPU

import torch
from adaftr_fast.kernels.infonce import launch, operands

import adaftr_fast as af

SWEEPS = ("row_sweep", "anchor_sweep", "bounded_sweep", "unbounded_row_sweep", "unbounded_anchor_sweep", "column_sweep")
KERNELS = tuple(f"infonce_{name}_kernel" for name in (*SWEEPS, "combine"))
ROUNDS = 7


class _Stub:
    """Takes the place of a kernel: accepts a grid and arguments and does nothing."""

    def __getitem__(self, grid):
        return self

    def __call__(self, *args, **options):
        return None


@contextmanager
def without_kernels() -> Iterator[None]:
    """Calls in this context launch nothing, on what they take for an H100."""
    stubs = [(launch, name, _Stub()) for name in KERNELS]
    h100 = [(operands, "ASSUMED_PROCESSORS", 132), (operands, "ASSUMED_CAPABILITY", 90)]
    with ExitStack() as patches:
        for owner, name, value in stubs + h100:
            patches.enter_context(patch.object(owner, name, value))
        yield


def microseconds(dtype: torch.dtype, rows: int, calls: int, backward: bool) -> float:
    """Returns the median over rounds of the CPU time of a call; ``backward``: with autograd, else the op alone."""
    a, b = (torch.ones(rows, 64, dtype=dtype).requires_grad_(backward) for _ in range(2))
    tau = torch.ones(rows).requires_grad_(backward)
    scale = torch.ones(()).expand(rows)

    def call() -> None:
        if backward:
            a.grad = b.grad = tau.grad = None
            af.adaptive_infonce(a, b, tau, backend="triton").backward()
        else:
            launch.infonce(a, b, tau, None, None, None, scale, True, True, True, False)

    found = []
    with without_kernels():
        for _ in range(ROUNDS):
            started = time.process_time()
            for _ in range(calls):
                call()
            found.append((time.process_time() - started) / calls * 1e6)
    return statistics.median(found[1:])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--calls", type=int, default=300)
    options = parser.parse_args()
    if min(options.rows, options.calls) < 1:
        parser.error(f"--rows and --calls must be 1 or more, got {options.rows} and {options.calls}")
    torch.set_num_threads(1)
    print(f"microseconds a call, {options.rows} x 64, without launches")
    for dtype in (torch.bfloat16, torch.float32):
        op, both = (microseconds(dtype, options.rows, options.calls, backward) for backward in (False, True))
        print(f"{str(dtype).removeprefix('torch.')}: {op:.0f} in launch.py, {both:.0f} with autograd and its products")
    return 0


if __name__ == "__main__":
    sys.exit(main())
