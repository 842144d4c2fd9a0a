"""The CUDA files compiled as plain C++, whose kernels run in a loop on the CPU."""

from pathlib import Path
from typing import Any

import torch
from torch.utils import cpp_extension

import adaftr_fast  # noqa: F401  # defines the ops

ROOT = Path(__file__).parents[2]
OPS = (
    "fused_embedding",
    "embedding_rows",
    "merge_rows",
    "embedding_sgd_",
    "embedding_adagrad_",
    "embedding_rowwise_adagrad_",
    "embedding_lazy_adam_",
    "embedding_adam_",
    "embedding_adam_flush_",
    "embedding_bags",
    "embedding_bags_backward",
    "select_bags",
    "raise_reported",
)
# The modules that ask whether CUDA kernels run.
ASKING = tuple(
    f"adaftr_fast.{name}"
    for name in (
        "ops.embedding.lookup",
        "ops.embedding.bags",
        "nn.embedding_fields",
        "optim.adam",
    )
)


def load() -> torch.library.Library:
    """Defines the ops of the CUDA files, for CPU tensors, as torch.ops.adaftr_fast_serial; needs a
    C++ compiler.
    """
    schemas = torch.library.Library("adaftr_fast_serial", "FRAGMENT")
    for name in OPS:
        schema = str(getattr(torch.ops.adaftr_fast, name).default._schema)
        schemas.define(schema.replace("adaftr_fast::", ""))
    build = ROOT / "build" / f"serial-{torch.__version__}"
    build.mkdir(parents=True, exist_ok=True)
    cpp_extension.load(  # compiles anew where a file has changed
        "adaftr_fast_serial",
        [str(Path(__file__).parent / "serial.cpp")],
        extra_cflags=["-O1", "-std=c++20"],
        extra_include_paths=[str(ROOT / "csrc")],
        build_directory=str(build),
        is_python_module=False,
    )
    return schemas


class Installed:
    """Lets modules and optimizers on CPU tensors run the CUDA kernels, until ``uninstall``."""

    def __init__(self, serial: Any) -> None:
        self.launches = serial.launches
        self._kernels = torch.library.Library("adaftr_fast", "IMPL", "CPU")
        for name in OPS:
            self._kernels.impl(name, getattr(serial, name).default, "CPU", allow_override=True)

    def uninstall(self) -> None:
        self._kernels._destroy()
