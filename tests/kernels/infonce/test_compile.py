"""Compiles the kernels for sm_80 and sm_90 without a GPU: no spills, tensor cores used, no figure worse than recorded.

The test takes the training variant of each row of the table; ``python -m benchmarks.infonce.compile_sweep`` takes all
of them. It runs in its own process, because kernels imported under TRITON_INTERPRET=1 cannot be compiled. The sweeps
in Gluon are for sm_90 alone; their exponentials have to run during products (benchmarks/infonce/compile/pipeline.py).
"""

import json
import os
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest

pytest.importorskip("triton")
ROOT = Path(__file__).parents[3]
KERNELS = ("row_sweep", "combine", "column_sweep", "sigmoid_rows", "sigmoid_columns")
KERNELS += tuple(f"symmetric_{name}" for name in ("positives", "sums", "combine", "gradient"))
GLUON = ("gluon_row_sweep", "gluon_column_sweep")
SECONDS = 60  # bounds the compiler's work, not the machine's speed: the slowest takes about 10


@pytest.mark.parametrize("arch", [80, 90])
def test_every_tiling_compiles_without_faults(arch):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    sweep = [sys.executable, "-W", "ignore", "-m", "benchmarks.infonce.compile_sweep"]
    command = [*sweep, "--quick", "--jobs", "1", "--arch", str(arch)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert results, done.stderr
    for result in results:
        assert not result["faults"], result
        assert result["seconds"] < SECONDS, result
    assert done.returncode == 0, done.stderr
    assert {r["kernel"] for r in results} == {*KERNELS, *GLUON} if arch == 90 else set(KERNELS)
    kinds = {"half", "tf32", "ieee", "float64"}
    assert {r["kind"] for r in results} >= (kinds | {"bf16x3"} if arch == 90 else kinds)


@pytest.mark.parametrize(
    ("kind", "capability"), [*product(["half", "tf32", "ieee", "float64"], [80, 90]), ("bf16x3", 90)]
)
def test_sweeps_sum_their_scores_in_one_order(kind, capability):
    from adaftr_fast.kernels.infonce.config import choose_tiling

    for width in range(16, 1040, 16):
        assert len({config.block_k for config in choose_tiling(kind, width, capability)[3:]}) == 1
