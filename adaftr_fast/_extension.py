"""Loads the C++ extension and describes the build."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import warnings
from types import ModuleType
from typing import Any

import torch  # must be imported before the extension, which links against it

EXTENSION = "adaftr_fast._C"


def _load() -> tuple[ModuleType | None, str | None]:
    """Returns (extension, None), or (None, the reason it is missing).

    Warns if the extension is installed but does not load, because the references are slow.
    """
    try:
        return importlib.import_module(EXTENSION), None
    except ImportError as error:
        if importlib.util.find_spec(EXTENSION) is not None:
            warnings.warn(
                f"adaftr_fast: the C++ extension is installed but does not load ({error}). The plain-PyTorch "
                "references are used, which are slower and need more memory. Rebuild it for the installed torch",
                RuntimeWarning,
                stacklevel=2,
            )
        return None, str(error)


_C, load_error = _load()


def is_built() -> bool:
    """Returns whether the C++ kernels are available; without them every op runs its plain-PyTorch reference."""
    return _C is not None


def has_cuda_kernels() -> bool:
    """Returns whether the CUDA kernels are available; without them ops on CUDA tensors run their references."""
    return _C is not None and bool(_C.build_info()["cuda"])


def cpu_capability() -> str:
    """Returns the instruction set that the C++ kernels use.

    One of "generic", "avx2", "avx512", "avx512_bf16" and "amx", or "none" without the extension.
    """
    return _C.cpu_capability() if _C is not None else "none"


def set_cpu_capability(name: str | None) -> None:
    """Restricts the C++ kernels to an instruction set.

    Args:
        name: "generic", "avx2", "avx512", "avx512_bf16" or "amx". None lifts the restriction.

    Raises:
        RuntimeError: the extension is not built, or this machine does not support the instruction set.
    """
    if _C is None:
        raise RuntimeError(f"set_cpu_capability: the C++ extension is not available ({load_error})")
    _C.set_cpu_capability(name or "")


def build_info() -> dict[str, Any]:
    """Returns versions, what is built for which instruction sets, and why a part is missing."""
    info: dict[str, Any] = {
        "adaftr_fast": importlib.metadata.version("adaftr-fast"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch cuda": torch.version.cuda or "no (CPU build of torch)",
        "threads": torch.get_num_threads(),
    }
    if _C is None:
        info["C++ extension"] = f"missing, plain-PyTorch references are used instead: {load_error}"
    else:
        info["C++ extension"] = _C.build_info()["compiler"]
        info["compiled instruction sets"] = ", ".join(_C.build_info()["compiled"])
        info["this machine runs"] = ", ".join(_C.build_info()["supported"])
        info["CUDA kernels"] = "built" if _C.build_info()["cuda"] else "not built (torch has no CUDA, or no nvcc)"
    info["in use"] = cpu_capability()
    try:
        info["triton"] = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        info["triton"] = "missing: the GPU loss kernels need it (pip install triton)"
    return info
