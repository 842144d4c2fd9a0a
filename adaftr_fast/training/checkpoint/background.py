"""What saves a snapshot while training continues: a copy of the state in memory, and a thread."""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from adaftr_fast import _memory
from adaftr_fast.ops.embedding.lookup import empty_table


class StateCopy:
    """A copy of named tensors in CPU memory, which is allocated once and reused."""

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}
        self._copied: list[torch.cuda.Event] = []

    def take(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        """Copies ``tensors``, which may change afterwards. On CUDA call ``wait`` before reading the copies.

        Returns:
            The copies on the CPU by name; they are valid until the next call. None if memory does not suffice: the
            new buffers may take half of the available memory, the rest is for training and the file's pages.
        """
        new = {name: value for name, value in tensors.items() if not self._fits(name, value)}
        if 2 * sum(value.nbytes for value in new.values()) > available_memory():
            return None
        try:
            self._buffers |= {name: _buffer(value) for name, value in new.items()}
        except RuntimeError:  # the system grants less than it tells, or limits pinned memory
            return None
        for name, value in tensors.items():
            self._buffers[name].copy_(value.detach(), non_blocking=True)
        devices = {value.device for value in tensors.values() if value.is_cuda}
        # Later steps run on the same streams, so they change nothing before it has been copied.
        self._copied = [
            torch.cuda.current_stream(each).record_event(torch.cuda.Event(blocking=True)) for each in devices
        ]
        return {name: self._buffers[name] for name in tensors}

    def wait(self) -> None:
        """Waits until the copies are complete."""
        for event in self._copied:
            event.synchronize()

    def _fits(self, name: str, value: Tensor) -> bool:
        buffer = self._buffers.get(name)
        return buffer is not None and (buffer.shape, buffer.dtype) == (value.shape, value.dtype)


def _buffer(value: Tensor) -> Tensor:
    if value.is_cuda:
        return torch.empty(value.shape, dtype=value.dtype, pin_memory=True)
    return empty_table(value.numel(), dtype=value.dtype).view(value.shape)


def snapshot_thread() -> ThreadPoolExecutor:
    """Returns an executor of one thread.

    Its priority is that of training: a thread of a lower one waits for the CPU while it holds Python's global lock, for
    which training then waits, too. That cost four times as much (benchmarks/README.md).
    """
    return ThreadPoolExecutor(1, "snapshot")


def available_memory() -> int:
    """Returns the bytes of memory that this process can still take; 0 if the system does not tell.

    The ranks of one machine take equal shares.
    """
    return (_memory.available() or 0) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
