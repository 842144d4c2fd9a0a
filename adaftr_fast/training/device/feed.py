"""Copies batches to a GPU while the batch before trains.

Two slots take turns. Each has a staging buffer on the host and a buffer on the device:

    host      pack 0 | pack 1 | launch 0 | pack 2 | launch 1 | pack 3 | ...
    copies             copy 0 | copy 1              copy 2 (after train 0)
    training                    train 0             train 1
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor

from adaftr_fast.data.dataset.batch import Batch
from adaftr_fast.training.device.cuda import CudaCopies
from adaftr_fast.training.device.packing import Layout


class Event(Protocol):
    """A point in the work that is queued on a stream (torch.cuda.Event)."""

    def synchronize(self) -> None:
        """Waits on the host until the work is done."""


E = TypeVar("E", bound=Event)


class Copies(Protocol[E]):
    """Copies beside the training (``CudaCopies``)."""

    def buffers(self, size: int) -> tuple[Tensor, Tensor]:
        """Returns a staging buffer on the host and a buffer on the device, both uint8 [size]."""

    def send(self, staging: Tensor, buffer: Tensor, after: E) -> E:
        """Queues a copy that starts after ``after``; returns its end."""

    def wait(self, event: E) -> None:
        """Lets the work that is queued for training from now on start after ``event``."""

    def mark(self) -> E:
        """Returns the end of the work that is queued for training so far."""


def to_device(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """Returns the batches on a device: on a GPU without their groups, each valid until the next one is taken."""
    if device.type == "cuda":
        return feed(batches, CudaCopies(device))
    return batches if device.type == "cpu" else (batch.map(lambda part: part.to(device)) for batch in batches)


def feed(batches: Iterator[Batch], copies: Copies[E]) -> Iterator[Batch]:
    """Yields the batches on the device; the copy of the next one is queued before."""
    pending: _Slot[E] | None = None
    for batch, slot in zip(batches, cycle((_Slot(copies), _Slot(copies)))):
        slot.send(batch)
        if pending is not None:
            yield pending.batch()
            pending.release()
        pending = slot
    if pending is not None:
        yield pending.batch()


class _Slot(Generic[E]):
    """A staging buffer and a buffer on the device. They grow, because batches of multi-valued fields differ in size."""

    def __init__(self, copies: Copies[E]) -> None:
        self.copies = copies
        self.layout = Layout((), 0)
        self.staging = torch.empty(0, dtype=torch.uint8)
        self.buffer = torch.empty(0, dtype=torch.uint8)
        self.released = self.copied = copies.mark()

    def send(self, batch: Batch) -> None:
        """Packs a batch and queues its copy."""
        self.layout = Layout.of(batch)
        self.copied.synchronize()  # until then the staging buffer is read; in general that was a step ago
        if self.layout.size > len(self.staging):
            self.staging, self.buffer = self.copies.buffers(self.layout.size * 5 // 4)
            self.released = self.copies.mark()  # the new memory may be that of tensors in queued work
        self.layout.pack(batch, self.staging)
        size = self.layout.size
        self.copied = self.copies.send(self.staging[:size], self.buffer[:size], self.released)

    def batch(self) -> Batch:
        """Returns the batch on the device, for work that is queued from now on."""
        self.copies.wait(self.copied)
        return self.layout.views(self.buffer)

    def release(self) -> None:
        """Lets the buffer be overwritten after the work that is queued so far."""
        self.released = self.copies.mark()
