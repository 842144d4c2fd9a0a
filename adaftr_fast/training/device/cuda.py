"""Streams, events and graphs of one GPU. No test without a GPU runs this file, so it makes no decisions."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


class CudaCopies:
    """Copies from the host to a GPU on a stream of their own."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device)

    def buffers(self, size: int) -> tuple[Tensor, Tensor]:
        """Returns a pinned staging buffer and a buffer on the GPU, both uint8 [size]."""
        with torch.cuda.device(self.device):  # pinning needs a context, and would make one on the current GPU
            staging = torch.empty(size, dtype=torch.uint8, pin_memory=True)
            buffer = torch.empty(size, dtype=torch.uint8, device=self.device)
        buffer.record_stream(self.stream)  # its memory is not reused before the last copy ends
        return staging, buffer

    def send(self, staging: Tensor, buffer: Tensor, after: torch.cuda.Event) -> torch.cuda.Event:
        """Queues a copy that starts after ``after``; returns its end."""
        self.stream.wait_event(after)
        with torch.cuda.stream(self.stream):
            buffer.copy_(staging, non_blocking=True)
        return self.stream.record_event(torch.cuda.Event(blocking=True))  # the host sleeps where it waits for it

    def wait(self, event: torch.cuda.Event) -> None:
        """Lets the current stream wait for ``event``."""
        torch.cuda.current_stream(self.device).wait_event(event)

    def mark(self) -> torch.cuda.Event:
        """Returns the end of the work that is queued on the current stream."""
        return torch.cuda.current_stream(self.device).record_event()


class CudaCaptures:
    """Captures work in CUDA graphs, one after another, in one memory pool.

    The work before a capture runs on the stream of the captures, so that the libraries have their handles and
    workspaces for it.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device)
        self.pool = torch.cuda.graph_pool_handle()
        self._graph: torch.cuda.CUDAGraph | None = None  # kept until the next is captured, or the pool would end

    def aside(self, work: Callable[[], T]) -> T:
        """Runs ``work`` on the stream of the captures, in the order of the current stream."""
        here = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(here)
        with torch.cuda.stream(self.stream):
            result = work()
        here.wait_stream(self.stream)
        return result

    def capture(self, work: Callable[[], T]) -> tuple[Callable[[], None], T]:
        """Records the kernels that ``work`` launches, without running them. The graph of the last capture ends.

        Returns:
            A function that runs the kernels on the current stream, and the result of ``work``, which they write.

        Raises:
            Exception: ``work`` failed, or did what cannot be recorded.
        """
        here = torch.cuda.current_stream(self.device)
        graph = torch.cuda.CUDAGraph()
        gc.collect()  # graphs of autograd that are still alive would keep their nodes' streams
        self._graph = graph  # also where the capture fails: the allocator may still refer to it
        with torch.cuda.device(self.device):
            try:
                with torch.cuda.graph(graph, pool=self.pool, stream=self.stream):
                    result = work()
            except Exception:
                torch.cuda.set_stream(here)  # torch.cuda.graph leaves its own where the end of a capture fails
                raise
        return graph.replay, result
