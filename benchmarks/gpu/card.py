"""Facts about the GPU, the driver and the software, which stand beside every figure."""

from __future__ import annotations

import datetime
import re
import shutil
import subprocess
from typing import Any

QUERY = (
    "driver_version",
    "clocks.max.sm",
    "clocks.max.mem",
    "clocks.sm",
    "clocks.mem",
    "power.limit",
    "temperature.gpu",
)


def facts(device: str, commit: str | None = None) -> dict[str, Any]:
    """Returns what ``benchmarks.measure.write`` stores as the machine, with date and commit of the
    measurement.

    Without ``commit``, git names it.
    """
    import torch

    from adaftr_fast import build_info
    from benchmarks.measure import machine, measured_code

    found = machine() | {
        "date": datetime.date.today().isoformat(),
        "commit": commit or measured_code(),
    }
    found |= {"triton": triton_version(), "nvcc": nvcc_version(), "cuda": torch.version.cuda}
    found["CUDA kernels"] = build_info()["CUDA kernels"]
    if device == "cpu":
        return found | {"gpu": "dry run"}
    card = torch.cuda.get_device_properties(0)
    return found | {
        "gpu": card.name,
        "compute capability": f"{card.major}.{card.minor}",
        "processors": card.multi_processor_count,
        "memory, MiB": card.total_memory >> 20,
        "l2, MiB": card.L2_cache_size >> 20,
        "nvidia-smi": nvidia_smi(),
    }


def triton_version() -> str | None:
    import importlib.metadata

    try:
        return importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        return None


def nvcc_version() -> str | None:
    printed = _printed("nvcc", "--version")
    found = re.search(r"release \S+, (\S+)", printed)
    return found[1] if found else None


def nvidia_smi() -> dict[str, str]:
    """Returns driver, clocks in MHz, power limit in W and temperature, or nothing without
    nvidia-smi.
    """
    printed = _printed(
        "nvidia-smi", "--id=0", f"--query-gpu={','.join(QUERY)}", "--format=csv,noheader,nounits"
    )
    values = [value.strip() for value in printed.splitlines()[0].split(",")] if printed else []
    return dict(zip(QUERY, values)) if len(values) == len(QUERY) else {}


def _printed(command: str, *arguments: str) -> str:
    if shutil.which(command) is None:
        return ""
    done = subprocess.run([command, *arguments], capture_output=True, text=True, timeout=30)
    return done.stdout if done.returncode == 0 else ""
