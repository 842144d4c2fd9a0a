"""Compiles the kernels for sm_80 and sm_90 without a GPU: no spills, tensor cores used, no figure
worse than recorded.

The test takes the training variant of each row of the table; ``python -m
benchmarks.infonce.compile_sweep`` takes all of them. It runs in its own process, because kernels
imported under TRITON_INTERPRET=1 cannot be compiled. The sweeps in Gluon are for sm_90 alone; their
exponentials have to run during products (benchmarks/infonce/compile/pipeline.py).
"""

import json
import os
import subprocess
import sys
from collections import defaultdict
from itertools import product
from pathlib import Path

import pytest

from tests.ops.marks import needs_cpp_gradients

pytest.importorskip("triton")
ROOT = Path(__file__).parents[3]
KERNELS = ("row_sweep", "combine", "blocks", "column_sweep", "sigmoid_rows", "sigmoid_columns")
KERNELS += tuple(f"symmetric_{name}" for name in ("positives", "sums", "combine", "gradient"))
HOPPER = ("anchor_sweep", "bounded_sweep", "unbounded_row_sweep", "unbounded_anchor_sweep")
HOPPER += ("gluon_row_sweep", "gluon_column_sweep")
SECONDS = 60  # bounds the compiler's work, not the machine's speed: the slowest takes about 10


def lines_of(*arguments):
    """Returns the lines that a Python process prints which does not interpret kernels."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-W", "ignore", *arguments]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


def test_every_tiling_compiles_without_faults():
    sweep = [
        "-m",
        "benchmarks.infonce.compile_sweep",
        "--quick",
        "--jobs",
        "1",
        "--arch",
        "80",
        "90",
    ]
    results = [json.loads(line) for line in lines_of(*sweep)]
    assert results
    kernels, kinds = defaultdict(set), defaultdict(set)
    for result in results:
        assert not result["faults"], result
        assert result["seconds"] < SECONDS, result
        kernels[result["arch"]].add(result["kernel"])
        kinds[result["arch"]].add(result["kind"])
    assert kernels == {80: set(KERNELS), 90: {*KERNELS, *HOPPER}}
    both = {"half", "tf32", "ieee", "float64"}
    assert kinds[80] >= both
    assert kinds[90] >= both | {"bf16x3"}


@pytest.mark.parametrize(
    ("kind", "capability"),
    [*product(["half", "tf32", "ieee", "float64"], [80, 90]), ("bf16x3", 90)],
)
def test_sweeps_sum_their_scores_in_one_order(kind, capability):
    from adaftr_fast.kernels.infonce.config import choose_tiling

    for width in range(16, 1040, 16):
        tiling = choose_tiling(kind, width, capability)
        for loss in (tiling[3:7], tiling[7:9]):  # InfoNCE, and the sigmoid loss
            assert len({config.block_k for config in loss}) == 1


@pytest.mark.parametrize(("capability", "widths"), [(80, []), (90, [272, 512]), (100, [])])
def test_five_products_are_for_hopper_gpus(capability, widths):
    from adaftr_fast.kernels.infonce.config import choose_tiling

    chosen = [
        width
        for width in (256, 272, 512, 528)
        if choose_tiling("half", width, capability).row_sweep.five_products
    ]
    assert chosen == widths


LAUNCHES_TWICE = """
import torch
from benchmarks.infonce.host import loss_steps, without_launches
from triton.runtime.jit import JITFunction

def launch(*given):  # the grid, six values of Triton's own, and the kernel's arguments
    given = given[:3] + given[9:]
    launched.append([(x.shape, x.dtype) if isinstance(x, torch.Tensor) else x for x in given])

driver = without_launches()
driver.launch = launch
compile_and_run = JITFunction.run
for name in ("adaptive_infonce", "symmetric"):
    _, step = loss_steps(torch.bfloat16)[name]
    calls = []
    for run in (compile_and_run, None):  # which Triton needs at the first call alone
        JITFunction.run = run
        launched = []
        step()
        calls.append(launched)
    JITFunction.run = compile_and_run
    assert calls[0] == calls[1]
    print(len(launched))
"""


@needs_cpp_gradients  # without, kernels are called through the dispatcher
def test_later_calls_launch_what_the_first_compiled():
    assert lines_of("-c", LAUNCHES_TWICE) == ["3", "5"]
