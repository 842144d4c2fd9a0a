"""The life of a CUDA graph: what the trainer does with captures, in the orders that an allocator
may not survive.

On the CPU, where a dry run goes, nothing is captured.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from adaftr_fast.training.device import CudaCaptures
from benchmarks.gpu.cells import Cell, Row, Setting
from benchmarks.gpu.stages import contestants as forms
from benchmarks.gpu.timing import WARMUP
from tests.tolerances import assert_same_bits

LIMIT = 25  # seconds of a cell
ROWS = 1000
WIDTH = 128
CAPTURES = 3


def cells(setting: Setting) -> Iterator[Cell]:
    """Yields the lives of a graph; what may spoil the process comes last."""
    for name in LIVES:
        yield Cell({"life": name}, lived, seconds=5, captures=True)


def lived(key: Row, setting: Setting) -> Row:
    return {"skipped": "a dry run"} if setting.dry else LIVES[key["life"]]()


def captured_again(keep: bool = False) -> Row:
    """Captures, replays on other inputs and discards, three times; ``keep``: a gradient of each
    graph stays alive.
    """
    leaves = forms.problem(ROWS, WIDTH, "bfloat16", "cuda")
    captures = CudaCaptures(torch.device("cuda", torch.cuda.current_device()))
    kept = []
    for _ in range(CAPTURES):
        for _ in range(WARMUP):
            captures.aside(lambda: forms.step(forms.ours, leaves))
        replay, held = captures.capture(lambda: forms.step(forms.ours, leaves))
        with torch.no_grad():
            leaves[0].copy_(leaves[0].flip(0))
        replay()
        expected = forms.step(forms.ours, leaves)
        assert_same_bits(held, expected)
        kept += held[1:2] if keep else []
        del replay, held
    return {"captures": CAPTURES, "reserved, MiB": torch.cuda.memory_reserved() >> 20}


def refused() -> Row:
    """A capture that reads the device is refused; afterwards memory is given back, reused and
    captured in as before.
    """
    leaves = forms.problem(ROWS, WIDTH, "bfloat16", "cuda")
    captures = CudaCaptures(torch.device("cuda", torch.cuda.current_device()))
    captures.aside(lambda: forms.step(forms.ours, leaves))
    try:
        captures.capture(lambda: forms.step(forms.ours, leaves)[0].item())
    except RuntimeError as error:
        found = {"refusal": str(error).splitlines()[0][:200]}
    else:
        raise AssertionError("the capture of a read was not refused")
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    found |= captured_again()
    torch.cuda.synchronize()
    free = torch.cuda.mem_get_info()[0]
    cached = [torch.empty(free // 4, dtype=torch.uint8, device="cuda") for _ in range(3)]
    del cached
    # more than is free before they are given back
    torch.empty(free * 7 // 8, dtype=torch.uint8, device="cuda").zero_()
    torch.cuda.synchronize()
    return found


LIVES = {
    "captured three times": captured_again,
    "captured three times, gradients of the graphs alive": lambda: captured_again(keep=True),
    "after a capture that was refused": refused,
}
