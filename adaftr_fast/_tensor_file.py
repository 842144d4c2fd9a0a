"""Reads and writes safetensors files in chunks, so that no process holds a whole file in memory."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import safe_open
from torch import Tensor

BLOCK = 1 << 24  # bytes that are written and hashed at once
NAMES = {
    torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


class Readable(Protocol):
    """An object whose rows can be read by a slice."""

    def __getitem__(self, rows: slice) -> Tensor: ...


class ChunkedTensor(Protocol):
    """A tensor that this process does not hold as a whole."""

    shape: torch.Size
    dtype: torch.dtype

    def chunks(self) -> Iterator[Tensor]:
        """Yields the elements in order, as tensors on the CPU."""


def in_file_order(tensors: Mapping[str, Tensor | ChunkedTensor]) -> list[str]:
    """Returns the names in the order of the file: wide types first, which keeps every tensor aligned."""
    return sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor | ChunkedTensor], metadata: dict[str, str] | None = None
) -> str:
    """Writes ``tensors`` and string ``metadata`` to ``path``, which it replaces.

    Returns:
        The SHA-256 of the content in hexadecimal. It is computed from memory, so it also tells a file that the disk
        has changed.

    Raises:
        OSError: the file cannot be written.
    """
    header: dict[str, dict[str, Any]] = {"__metadata__": metadata} if metadata else {}
    end = 0
    for name in in_file_order(tensors):
        value = tensors[name]
        start, end = end, end + value.shape.numel() * value.dtype.itemsize
        header[name] = {"dtype": NAMES[value.dtype], "shape": list(value.shape), "data_offsets": [start, end]}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for block in _blocks(struct.pack("<Q", len(text)) + text, tensors):
            file.write(block)
            digest.update(block)
    return digest.hexdigest()


def _blocks(header: bytes, tensors: Mapping[str, Tensor | ChunkedTensor]) -> Iterator[bytes | memoryview]:
    yield header
    for name in in_file_order(tensors):
        value = tensors[name]
        for chunk in [value] if isinstance(value, Tensor) else value.chunks():
            content = chunk.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data
            for start in range(0, len(content), BLOCK):
                yield content[start : start + BLOCK]


class SavedTensors(Mapping[str, Tensor]):
    """A mapping of names to the tensors of a safetensors file, which are read on access.

    Raises:
        SafetensorError: the file is not a safetensors file.
    """

    def __init__(self, path: Path) -> None:
        self._file = safe_open(path, "pt")
        self._names = list(self._file.keys())
        self.metadata: dict[str, str] = self._file.metadata() or {}

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        return self._file.get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def shape(self, name: str) -> tuple[int, ...]:
        """Returns a tensor's shape without reading the tensor."""
        return tuple(self._file.get_slice(name).get_shape())

    def rows(self, name: str) -> Readable:
        """Returns an object that reads a tensor's rows on access."""
        return self._file.get_slice(name)
