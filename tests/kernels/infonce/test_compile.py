"""Compiles the kernels for sm_80 and sm_90 without a GPU: no spills, tensor cores used, shared memory within bounds.

The test takes the training variant of each row of the table; ``python -m benchmarks.infonce.compile_sweep`` takes all
of them. It runs in its own process, because kernels imported under TRITON_INTERPRET=1 cannot be compiled.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
ROOT = Path(__file__).parents[3]
SECONDS = 60  # bounds the compiler's work, not the machine's speed: the slowest takes about 3


@pytest.mark.parametrize("arch", [80, 90])
def test_every_tiling_compiles_without_faults(arch):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.infonce.compile_sweep", "--quick", "--arch", str(arch)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert results, done.stderr
    for result in results:
        assert not result["faults"], result
        assert result["seconds"] < SECONDS, result
    assert done.returncode == 0, done.stderr
    kernels = {"infonce_row_sweep_kernel", "infonce_combine_kernel", "infonce_column_sweep_kernel"}
    assert {r["kernel"] for r in results} == kernels
    assert {r["kind"] for r in results} >= {"half", "tf32", "ieee", "float64"}
