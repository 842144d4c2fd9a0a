"""Times by CUDA events, memory, and CUDA graphs; on the CPU, where a dry run goes, by the clock."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from adaftr_fast.training.device import CudaCaptures

BUDGET = 0.3  # seconds of timed runs of one cell
WARMUP = 3
LEAST = 5
MOST = 100
Run = Callable[[], Any]


def figures(run: Run, device: str, budget: float = BUDGET) -> dict[str, float]:
    """Returns what a cell says of ``run``.

    "seconds": the median by CUDA events, which includes the wait for a host that launches slower
    than the GPU works. "quartiles": of the same times. "host_seconds": the median until the call
    returns, without the wait for the GPU. "peak_bytes": memory added at the peak of one run.
    """
    run()  # compiles
    added = peak_bytes(run, device)
    times, host = samples(run, device, budget)
    quartiles = statistics.quantiles(times, n=4)
    return {
        "seconds": statistics.median(times),
        "quartiles": [quartiles[0], quartiles[2]],
        "host_seconds": statistics.median(host),
        "runs": len(times),
        "peak_bytes": added,
    }


def samples(run: Run, device: str, budget: float) -> tuple[list[float], list[float]]:
    """Returns seconds on the device and on the host of 5 to 100 runs, about ``budget`` seconds of
    them.
    """
    clock = _events if device == "cuda" else _clock
    times = []
    host = []
    for _ in range(WARMUP):
        clock(run)
    while len(times) < MOST and (len(times) < LEAST or sum(times) < budget):
        seconds, until_returned = clock(run)
        times.append(seconds)
        host.append(until_returned)
    return times, host


def _events(run: Run) -> tuple[float, float]:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    begin = time.perf_counter()
    run()
    host = time.perf_counter() - begin
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3, host


def _clock(run: Run) -> tuple[float, float]:
    begin = time.perf_counter()
    run()
    seconds = time.perf_counter() - begin
    return seconds, seconds


def peak_bytes(run: Run, device: str) -> int:
    """Returns the memory that a run adds at its peak, in bytes; 0 on the CPU."""
    if device != "cuda":
        run()
        return 0
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def graphed(run: Run, device: str) -> tuple[Run, Any]:
    """Captures ``run`` in a CUDA graph.

    Returns:
        What replays it, and what ``run`` returned during capture: tensors that each replay writes
            anew.
    """
    if device != "cuda":
        return run, run()
    captures = CudaCaptures(torch.device("cuda", torch.cuda.current_device()))
    for _ in range(WARMUP):
        captures.aside(run)
    return captures.capture(run)
