"""The CUDA kernels build for two GPU generations, keep everything in registers, and never make the
host wait.
"""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from torch.utils.cpp_extension import include_paths

HERE = Path(__file__).parent
SOURCES = HERE.parents[1] / "csrc"


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc")
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
def test_compiles_without_spills(architecture, tmp_path):
    include = [f"-I{SOURCES}", f"-I{include_paths()[0]}"]  # torch's, for its half types
    command = ["nvcc", "-cubin", f"-arch={architecture}", "-std=c++20", "-Xptxas=-v", *include]
    command += [str(HERE / "instances.cu"), "-o", str(tmp_path / "kernels.cubin")]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    frames = re.findall(
        r"\d+ bytes stack frame, \d+ bytes spill stores, \d+ bytes spill loads", built.stderr
    )
    assert set(frames) == {"0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads"}


def test_no_op_reads_from_the_device():
    """What would wait for the device: reads of a number, sizes that depend on values, and explicit
    synchronisation.
    """
    waits = r"\.(item|cpu|equal)\b|Synchronize|nonzero|\bunique(_consecutive|_dim)?\(|_local_scalar|\bcudaMemcpy\b"
    files = [path for path in (SOURCES / "cuda").rglob("*") if path.is_file()]
    assert len(files) > 5
    lines = [line for path in files for line in path.read_text(encoding="utf-8").splitlines()]
    found = [line.split("//")[0].strip() for line in lines if re.search(waits, line)]
    # at the first use of a device
    assert found == ["C10_CUDA_CHECK(cudaStreamSynchronize(cudaStreamLegacy));"]
