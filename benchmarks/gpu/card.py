"""Facts about the GPU, the driver and the software, which stand beside every figure."""

import datetime
import importlib.metadata
import re
import shutil
import subprocess
from typing import Any

import torch

from adaftr_fast import build_info
from benchmarks.measure import machine, measured_code

QUERY = ("driver_version", "clocks.max.sm", "clocks.max.mem", "clocks.sm", "clocks.mem", "power.limit")


def facts(device: str, commit: str | None = None) -> dict[str, Any]:
    """Returns what ``benchmarks.measure.write`` stores as the machine, with date and commit of the measurement.

    Without ``commit``, git names it.
    """
    found = machine() | {"date": datetime.date.today().isoformat(), "commit": commit or measured_code()}
    found["CUDA kernels"] = build_info()["CUDA kernels"]
    if device == "cpu":
        return found | {"gpu": "dry run"}
    card = torch.cuda.get_device_properties(0)
    release = re.search(r"release \S+, (\S+)", _printed("nvcc", "--version"))
    smi = _printed("nvidia-smi", "--id=0", f"--query-gpu={','.join(QUERY)}", "--format=csv,noheader,nounits")
    return found | {
        "triton": importlib.metadata.version("triton"),
        "nvcc": release and release[1],
        "cuda": torch.version.cuda,
        "gpu": card.name,
        "compute capability": f"{card.major}.{card.minor}",
        "processors": card.multi_processor_count,
        "memory, MiB": card.total_memory >> 20,
        "l2, MiB": card.L2_cache_size >> 20,
        "nvidia-smi": dict(zip(QUERY, smi.strip().split(", "))),  # MHz and W
    }


def _printed(command: str, *arguments: str) -> str:
    if shutil.which(command) is None:
        return ""
    done = subprocess.run([command, *arguments], capture_output=True, text=True, timeout=30)
    return done.stdout if done.returncode == 0 else ""
