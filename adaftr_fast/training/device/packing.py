"""Packs the tensors of a batch into one buffer, so that one copy moves them all. Shapes: S bytes of a buffer."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from adaftr_fast.data.dataset.batch import Batch

ALIGNMENT = 256  # bytes, as of memory from the CUDA allocator, so that kernels may load whole vectors
PACKED = (
    "ids",
    "labels",
    "weight",
    "offsets",
    "dense",
)  # what a loss reads; only evaluation reads the groups, on the host


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
