"""Loads the extensions, for the CPU, for autograd and for CUDA, and describes the build."""

from __future__ import annotations

import ctypes
import functools
import importlib.metadata
import importlib.util
import json
import platform
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import torch  # must be imported before the extensions, which link against it

from adaftr_fast._startup import waiting

C = "adaftr_fast._C"
CUDA = "adaftr_fast._cuda"
# each version of torch has its own
AUTOGRAD = "adaftr_fast._autograd_" + "_".join(torch.__version__.split(".")[:2])
# written by setup.py: extension -> why it is not built
BUILD_NOTES = Path(__file__).with_name("_build.json")


def _load(name: str, kernels: str, instead: str) -> tuple[ModuleType | None, str | None]:
    """Returns (extension, None), or (None, the reason it is missing).

    Warns if the extension is installed but does not load, because what runs instead is slow.
    """
    try:
        return importlib.import_module(name), None
    except ImportError as error:
        if importlib.util.find_spec(name) is None:
            return None, f"not built: {_build_notes().get(name, error)}"
        warnings.warn(
            f"adaftr_fast: the {kernels} extension is installed but does not load ({error}). "
            f"{instead}, which are "
            "slower and need more memory. Rebuild it for the installed torch",
            RuntimeWarning,
            stacklevel=2,
        )
        return None, f"built, but does not load: {error}"


def _load_cuda() -> tuple[ModuleType | None, str | None]:
    """Loads the CUDA extension as ``_load`` does, where torch has CUDA and is of the version that
    it was built with.

    It links against torch's CUDA libraries. The C++ autograd functions are built beside it, for the
    same version.
    """
    if torch.version.cuda is None:
        obstacle = f"torch {torch.__version__} has no CUDA"
    elif _autograd is None:
        obstacle = f"it is not for torch {torch.__version__}"
    else:
        return _load(CUDA, "CUDA", "On CUDA tensors the plain-PyTorch references are used")
    if importlib.util.find_spec(CUDA) is not None:
        return None, f"built, but not loaded: {obstacle}"
    return None, f"not built: {_build_notes().get(CUDA, obstacle)}"


def _build_notes() -> dict[str, str]:
    """Returns what setup.py wrote, or nothing if there is no such file or it is damaged."""
    try:
        notes = json.loads(BUILD_NOTES.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return notes if isinstance(notes, dict) else {}


TESTED_TORCH = (2, 15)  # the newest
CHOSEN = "not built: ADAFTR_FAST_BUILD=none"  # as setup.py writes it
SLOWDOWN = "7 to 11 times slower for an embedding step, 11 to 18 for adaptive_infonce"
"""CPU seconds on one core with AVX512-BF16, forward and backward in float32, at the sizes of
README.md's tables.
"""
CURE = (
    "Install a C++ compiler, then adaftr_fast again: pip install --force-reinstall --no-deps "
    '".[train]"'
)


@functools.cache
def warn_of_references() -> None:
    """Warns that the references run for want of C++ kernels: once per process, and not where that
    was chosen.
    """
    if load_error is None or not load_error.startswith("not built") or load_error == CHOSEN:
        return  # _load has warned of one that does not load
    warnings.warn(
        f"adaftr_fast: the C++ kernels are {load_error}. The plain-PyTorch references run instead "
        f"({SLOWDOWN}). {CURE}",
        RuntimeWarning,
        stacklevel=3,
    )


def untested(version: str) -> str:
    """Returns a remark that a version of torch is newer than the newest that was tested, or else
    "".
    """
    major, minor, *_ = version.split(".")
    if (int(major), int(minor)) <= TESTED_TORCH:
        return ""
    return f" (newer than {'.'.join(map(str, TESTED_TORCH))}, the newest tested)"


if _remark := untested(torch.__version__):
    warnings.warn(f"adaftr_fast: torch {torch.__version__}{_remark}", RuntimeWarning, stacklevel=2)

_C, load_error = _load(C, "C++", "The plain-PyTorch references are used")
_autograd = None
autograd_load_error = load_error
if _C is not None:
    _autograd, autograd_load_error = _load(AUTOGRAD, "C++ autograd", "Formulas in Python are used")
_cuda, cuda_load_error = _load_cuda()


@ctypes.CFUNCTYPE(ctypes.c_int)
def _float32_terms() -> int:
    """Returns what csrc/cpu/runtime/precision.h describes, if the C++ autograd library, which has
    it, is not loaded.
    """
    return {"tf32": 2, "bf16": 1}.get(torch._C._get_fp32_precision_getter("mkldnn", "matmul"), 0)


if _C is not None:
    in_python = ctypes.cast(_float32_terms, ctypes.c_void_p).value
    _C.read_float32_terms_by(in_python if _autograd is None else _autograd.float32_terms)


place_rows = _C.place_rows if _C is not None else None
"""Copies columns to rows: ``place_rows(columns, places or None, rows)``, see
csrc/cpu/data/place_rows.h.
"""
differentiable_loss: Any = getattr(_autograd, "differentiable_loss", None)
"""Attaches the gradients of a loss to it, see csrc/autograd/loss.h."""
set_rare_gradients: Any = getattr(_autograd, "set_rare_gradients", None)


def is_built() -> bool:
    """Returns whether the C++ kernels are available; without them every op runs its plain-PyTorch
    reference.
    """
    return _C is not None


def has_cpp_gradients() -> bool:
    """Returns whether the C++ autograd functions are loaded; without them the formulas in Python
    take their place.
    """
    return _autograd is not None


def has_cuda_kernels() -> bool:
    """Returns whether the CUDA extension is loaded; without it the ops it has run their references
    on CUDA tensors.
    """
    return _cuda is not None


def cpu_capability() -> str:
    """Returns the instruction set that the C++ kernels use.

    One of "generic", "avx2", "avx512", "avx512_bf16" and "amx" on x86, of "generic", "neon" and
    "neon_bf16" on ARM, or "none" without the extension.
    """
    return _C.cpu_capability() if _C is not None else "none"


def set_cpu_capability(name: str | None) -> None:
    """Restricts the C++ kernels to an instruction set.

    Args:
        name: one of those that ``cpu_capability`` names. None lifts the restriction.

    Raises:
        RuntimeError: the extension is not built, or this machine does not support the instruction
            set.
        ValueError: the extension has no such instruction set.
    """
    if _C is None:
        raise RuntimeError(f"set_cpu_capability: the C++ extension is not available ({load_error})")
    _C.set_cpu_capability(name or "")


def _other_versions() -> str:
    """Says why C++ gradients are missing."""
    built = [
        path.name.split(".")[0].removeprefix("_autograd_")
        for path in Path(__file__).parent.glob("_autograd_*")
    ]
    reason = f"for torch {built[0].replace('_', '.')} alone" if built else autograd_load_error
    return f"{reason}; formulas in Python are used"


def _origin() -> str:
    """Returns the wheel that the package was installed from, by its tag, or the source folder."""
    installed = importlib.metadata.distribution("adaftr-fast")
    url = json.loads(installed.read_text("direct_url.json") or "{}")
    wheel = installed.read_text("WHEEL")
    if wheel is None or url.get("dir_info", {}).get("editable"):
        return "the source folder"
    tags = [line.removeprefix("Tag: ") for line in wheel.splitlines() if line.startswith("Tag: ")]
    return f"a wheel for {', '.join(tags)}" + (" built on this machine" if url else "")


def build_info() -> dict[str, Any]:
    """Returns versions, what is built for which instruction sets, and why a part is missing."""
    info: dict[str, Any] = {
        "adaftr_fast": importlib.metadata.version("adaftr-fast"),
        "installed from": _origin(),
        "python": platform.python_version(),
        "torch": torch.__version__ + _remark,
        "torch cuda": torch.version.cuda or "no (CPU build of torch)",
        "threads": torch.get_num_threads(),
        "waiting threads": waiting(),
    }
    if _C is None:
        info["C++ extension"] = (
            f"missing, plain-PyTorch references are used instead: {load_error}. {CURE}"
        )
    else:
        info["C++ extension"] = _C.build_info()["compiler"]
        info["compiled instruction sets"] = ", ".join(_C.build_info()["compiled"])
        info["this machine runs"] = ", ".join(_C.build_info()["supported"])
        info["C++ gradients"] = "for this torch" if _autograd else _other_versions()
    info["in use"] = cpu_capability()
    if _cuda is None:
        info["CUDA kernels"] = cuda_load_error
    else:
        built = _cuda.build_info()
        info["CUDA kernels"] = (
            f"built for CUDA {built['version']}, {' '.join(built['architectures'])}"
        )
    try:
        info["triton"] = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        info["triton"] = "missing: the GPU loss kernels need it (pip install triton)"
    return info
