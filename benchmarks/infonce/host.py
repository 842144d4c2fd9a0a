"""The host's time on the GPU's paths, measured without a GPU: all that runs before the driver
launches a kernel.

    python -m benchmarks.infonce.host        -> results/host-*.json

The loss's Triton kernels are compiled for sm_90 and handed to a driver that does nothing. The
look-up and its update run the CUDA files as tests/cuda/serial.py compiles them, without their
kernels. PyTorch's own ops run on CPU tensors, so small that only the host's share counts. The time
is that of the CPU in this thread, without garbage collection, so that other processes count little.
Not under TRITON_INTERPRET.
"""

import gc
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
import triton
from torch import Tensor, nn
from triton.backends.compiler import GPUTarget

import adaftr_fast as af
from adaftr_fast.ops.infonce import autograd
from benchmarks.measure import options, write
from benchmarks.render import host
from tests.cuda.serial import ASKING, Installed, load

ROWS = 16
D = 16
FIELDS = 2
WIDTH = 8
CAPABILITY = 90
PROCESSORS = 132
CALLS = 20  # between two readings of the clock
Step = Callable[[], Any]


class Driver:
    """A driver of Triton that launches nothing."""

    def __init__(self) -> None:
        self.utils = self
        self.launches = 0

    def launcher_cls(self, *_: Any) -> Callable[..., None]:
        return self.launch

    def launch(self, *_: Any) -> None:
        self.launches += 1

    def load_binary(self, *_: Any) -> tuple[int, int, int, int, int]:
        return 1, 1, 0, 0, 1024  # module, function, registers, spills and the most threads

    def unload_module(self, module: int) -> None:
        pass

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": 232_448}

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", CAPABILITY, 32)


def without_launches() -> Driver:
    """Lets the loss on CPU tensors take the path of CUDA tensors; returns the driver."""
    from adaftr_fast.kernels.infonce import launch

    driver = Driver()
    triton.runtime.driver.set_active(driver)
    launch.INTERPRETED = True  # accepts CPU tensors
    launch.ASSUMED_CAPABILITY = CAPABILITY
    launch.ASSUMED_PROCESSORS = PROCESSORS
    autograd.runs_triton = lambda anchors: True
    return driver


def loss_steps(dtype: torch.dtype) -> dict[str, tuple[Step, Step]]:
    """Returns the forward, and the forward and backward, of the loss with some of its options, and
    of PyTorch.
    """
    a, b = (torch.randn(ROWS, D, dtype=dtype, requires_grad=True) for _ in range(2))
    tau = torch.rand(ROWS).add(0.1).requires_grad_()
    ids = torch.arange(ROWS) // 2
    weight = torch.rand(ROWS)

    def eager() -> Tensor:
        return F.cross_entropy((a @ b.mT).float() / tau[:, None], torch.arange(ROWS))

    def ours(**options: Any) -> Callable[[], Tensor]:
        return lambda: af.adaptive_infonce(a, b, tau, **options)

    def both(forward: Callable[[], Tensor]) -> tuple[Step, Step]:
        def step() -> None:
            forward().backward()
            a.grad = b.grad = tau.grad = None

        return forward, step

    return {
        "adaptive_infonce": both(ours()),
        "row_group": both(ours(row_group=ids)),
        "row_weight": both(ours(row_weight=weight)),
        "return_stats": both(lambda: af.adaptive_infonce(a, b, tau, return_stats=True)[0]),
        "symmetric": both(ours(symmetric=True, row_group=ids)),
        "PyTorch: @ and cross_entropy": both(eager),
    }


def table_steps() -> dict[str, tuple[Step, Step]]:
    """Returns the look-up, and the look-up with its update, of each optimizer, and of PyTorch."""
    ids = torch.zeros(2, FIELDS, dtype=torch.int64)
    found = {}
    for name in ("SGD", "Adagrad", "LazyAdam", "Adam"):
        table = af.FusedEmbedding([50] * FIELDS, WIDTH)
        found[name] = _with_update(table, ids, getattr(af.optim, name)(table, lr=0.01))
    peer = nn.Embedding(50 * FIELDS, WIDTH, sparse=True)
    found["PyTorch: Embedding(sparse=True), SparseAdam"] = _with_update(
        peer, ids, torch.optim.SparseAdam(peer.parameters(), lr=0.01)
    )
    return found


def _with_update(
    table: nn.Module, ids: Tensor, optimizer: torch.optim.Optimizer
) -> tuple[Step, Step]:
    def look_up() -> Tensor:
        looked_up = table(ids)
        return looked_up

    upstream = torch.ones_like(look_up())

    def step() -> None:
        optimizer.zero_grad()
        look_up().backward(upstream)
        optimizer.step()

    return look_up, step


def microseconds(steps: list[Step], seconds: float) -> list[dict[str, float]]:
    """Returns the least and the median CPU time of each step, measured in turns."""
    for step in steps * 10:
        step()  # compiles, and fills caches
    found = [[] for _ in steps]
    end = time.perf_counter() + seconds * len(steps)
    while time.perf_counter() < end or len(found[0]) < 5:
        for step, times in zip(steps, found):
            start = time.thread_time_ns()
            for _ in range(CALLS):
                step()
            times.append((time.thread_time_ns() - start) / CALLS / 1e3)
    return [{"least": min(each), "median": statistics.median(each)} for each in found]


def main() -> None:
    arguments = options(__doc__, seconds=(2.0, "per case, forward and step each"))
    if triton.knobs.runtime.interpret:
        sys.exit("unset TRITON_INTERPRET: interpreted kernels are not launched")
    torch.set_num_threads(1)
    # what no kernel has written may be denormal, which multiplies slowly
    torch.set_flush_denormal(True)
    gc.disable()
    cases = []

    def add(part: str, steps: dict[str, tuple[Step, Step]], launched: Callable[[], int]) -> None:
        times = iter(
            microseconds([each for pair in steps.values() for each in pair], arguments.seconds)
        )
        for name, (_, step) in steps.items():
            before = launched()
            step()
            us = {"forward": next(times), "step": next(times)}
            cases.append({"part": part, "name": name, "us": us, "launches": launched() - before})

    driver = without_launches()
    for dtype in (torch.bfloat16, torch.float32):
        add(str(dtype).removeprefix("torch."), loss_steps(dtype), lambda: driver.launches)
    schemas = load()
    serial = torch.ops.adaftr_fast_serial
    serial.set_skips_kernels(True)
    for module in ASKING:
        __import__(module, fromlist=["runs_cuda_kernels"]).runs_cuda_kernels = lambda tensor: True
    installed = Installed(serial)
    add("look-up", table_steps(), serial.launches)
    installed.uninstall()
    schemas._destroy()
    print(host(cases))
    print(write("host", cases))


if __name__ == "__main__":
    main()
