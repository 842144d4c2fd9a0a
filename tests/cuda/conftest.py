"""The CUDA files compiled as plain C++, whose kernels run in a loop on the CPU."""

import shutil
from pathlib import Path

import pytest
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


@pytest.fixture(scope="session")
def serial():
    """The ops of the CUDA files, for CPU tensors."""
    if shutil.which("c++") is None:
        pytest.skip("no C++ compiler")
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
    yield torch.ops.adaftr_fast_serial
    schemas._destroy()


@pytest.fixture(params=[0, 2], ids=["", "4 lanes"])
def lanes(request, serial):
    """A row is worked on by one lane, or by four. Lanes run one after another: sums over lanes need a GPU."""
    serial.set_lane_shift(request.param)
    yield 1 << request.param
    serial.set_lane_shift(0)


class Installed:
    """Lets modules and optimizers on CPU tensors run the CUDA kernels, until ``uninstall``."""

    def __init__(self, serial):
        self.launches = serial.launches
        self._kernels = torch.library.Library("adaftr_fast", "IMPL", "CPU")
        for name in OPS:
            self._kernels.impl(name, getattr(serial, name).default, "CPU", allow_override=True)

    def uninstall(self):
        self._kernels._destroy()


@pytest.fixture
def on_serial(serial, monkeypatch):
    """Modules and optimizers on CPU tensors run the CUDA kernels."""
    for module in ("ops.embedding.lookup", "ops.embedding.bags", "nn.embedding", "optim.deferred"):
        monkeypatch.setattr(f"adaftr_fast.{module}.runs_cuda_kernels", lambda tensor: True)
    installed = Installed(serial)
    yield installed
    installed.uninstall()
