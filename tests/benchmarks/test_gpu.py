"""Tests of benchmarks/gpu.py without a GPU: its arguments, its report, and that contestants agree."""

import pytest
import torch

from benchmarks import gpu


def test_default_grid():
    options = gpu.parser().parse_args([])
    assert options.batch[0] == 1024
    assert options.batch[-1] == 131_072
    assert options.precision == ["bfloat16", "float32"]


@pytest.mark.parametrize("name", ["adaftr_fast", "linear_cross_entropy, chunked"])
def test_contestants_compute_the_same(name):
    loss = gpu.contestants().get(name)
    if loss is None:
        pytest.skip("not in this torch")
    leaves = gpu.problem(50, 16, torch.float32, "cpu")
    for x, t in zip(gpu.step(loss, leaves), gpu.step(gpu.eager, leaves)):
        torch.testing.assert_close(x, t, rtol=1e-4, atol=1e-6)


def test_report_lines():
    where = {"precision": "bfloat16", "batch": 1024, "width": 64, "contestant": "adaftr_fast"}
    assert "out of memory" in gpu.report(where | {"failed": "out of memory"})
    figures = {"seconds": 0.001, "peak_bytes": 2**20, "tflops": 1.5, "of_matmul": 0.5}
    assert "50% of matmul" in gpu.report(where | figures)
