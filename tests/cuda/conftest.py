import shutil

import pytest
import torch

from tests.cuda.serial import ASKING, Installed, load


@pytest.fixture(scope="session")
def serial():
    """The ops of the CUDA files, for CPU tensors."""
    if shutil.which("c++") is None:
        pytest.skip("no C++ compiler")
    schemas = load()
    yield torch.ops.adaftr_fast_serial
    schemas._destroy()


@pytest.fixture(params=[0, 2], ids=["", "4 lanes"])
def lanes(request, serial):
    """A row is worked on by one lane, or by four. Lanes run one after another: sums over lanes need
    a GPU.
    """
    serial.set_lane_shift(request.param)
    yield 1 << request.param
    serial.set_lane_shift(0)


@pytest.fixture
def on_serial(serial, monkeypatch):
    """Modules and optimizers on CPU tensors run the CUDA kernels."""
    for module in ASKING:
        monkeypatch.setattr(f"{module}.runs_cuda_kernels", lambda tensor: True)
    installed = Installed(serial)
    yield installed
    installed.uninstall()
