"""Packs the tensors of a batch into one buffer, and copies it to a GPU while the batch before trains.

Two slots take turns. Each has a staging buffer on the host and a buffer on the device:

    host      pack 0 | pack 1 | launch 0 | pack 2 | launch 1 | pack 3 | ...
    copies             copy 0 | copy 1              copy 2 (after train 0)
    training                    train 0             train 1

S bytes of a buffer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate, cycle, pairwise
from typing import Generic, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from adaftr_fast.data.dataset.batch import Batch
from adaftr_fast.training.device.cuda import CudaCopies

ALIGNMENT = 256  # bytes, as of memory from the CUDA allocator, so that kernels may load whole vectors
PACKED = ("ids", "labels", "weight", "offsets", "dense")  # what a loss reads; only evaluation reads groups, on the host


class Section(NamedTuple):
    """The place of a tensor in a buffer, in bytes."""

    name: str
    dtype: torch.dtype
    shape: torch.Size
    start: int
    stop: int


@dataclass(frozen=True)
class Layout:
    """The places of a batch's tensors in a buffer.

    Attributes:
        sections: one per tensor, each aligned to ``ALIGNMENT`` bytes.
        size: S, the bytes of all sections.
    """

    sections: tuple[Section, ...]
    size: int

    @classmethod
    def of(cls, batch: Batch) -> Layout:
        """Returns the layout of the tensors ``PACKED`` that a batch has."""
        parts = {name: part for name in PACKED if (part := getattr(batch, name)) is not None}
        ends = [0, *accumulate(-(-part.nbytes // ALIGNMENT) * ALIGNMENT for part in parts.values())]
        places = zip(parts.items(), pairwise(ends), strict=True)
        sections = (Section(name, x.dtype, x.shape, start, start + x.nbytes) for (name, x), (start, _) in places)
        return cls(tuple(sections), ends[-1])

    def views(self, buffer: Tensor) -> Batch:
        """Returns the batch that lies in a buffer, uint8 [>= S], without copying it."""
        parts = {s.name: buffer[s.start : s.stop].view(s.dtype).view(s.shape) for s in self.sections}
        return Batch(**parts)

    def pack(self, batch: Batch, buffer: Tensor) -> None:
        """Copies the tensors of a batch of this layout into a buffer on the CPU, uint8 [>= S]."""
        views = self.views(buffer)
        for section in self.sections:
            getattr(views, section.name).copy_(getattr(batch, section.name))


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
