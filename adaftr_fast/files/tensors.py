"""Reads and writes safetensors files piece by piece, so that no process holds a whole file in
memory.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from operator import itemgetter
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


class Checksum(Protocol):
    """An object of hashlib, or ``CRC32``."""

    def update(self, data: bytes | memoryview, /) -> None: ...
    def hexdigest(self) -> str: ...


def shard_key(name: str, first_row: int) -> str:
    """Returns the name, in a shard file, of the rows of the tensor ``name`` from
    ``first_row`` on.
    """
    return f"{name}@{first_row}"


def in_file_order(tensors: Mapping[str, Tensor]) -> list[str]:
    """Returns the names in the order of the file: wide types first, which keeps every tensor
    aligned.
    """
    return sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))


def write_tensors(
    path: Path,
    tensors: Mapping[str, Tensor],
    metadata: dict[str, str] | None = None,
    checksum: Checksum | None = None,
) -> str:
    """Writes ``tensors`` and string ``metadata`` to ``path``, which it replaces.

    Args:
        path: the path of the file.
        tensors: the tensors by name.
        metadata: the metadata.
        checksum: a new checksum; by default SHA-256.

    Returns:
        The checksum of the content in hexadecimal. It is computed from memory, so it also tells a
        file that the disk has changed.

    Raises:
        OSError: the file cannot be written.
    """
    header: dict[str, dict[str, Any]] = {"__metadata__": metadata} if metadata else {}
    end = 0
    for name in in_file_order(tensors):
        value = tensors[name]
        start = end
        end = end + value.shape.numel() * value.dtype.itemsize
        header[name] = {
            "dtype": NAMES[value.dtype],
            "shape": list(value.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    checksum = checksum or hashlib.sha256()
    with path.open("wb") as file:
        for block in _blocks(struct.pack("<Q", len(text)) + text, tensors):
            file.write(block)
            checksum.update(block)
    return checksum.hexdigest()


def _blocks(header: bytes, tensors: Mapping[str, Tensor]) -> Iterator[bytes | memoryview]:
    yield header
    for name in in_file_order(tensors):
        content = tensors[name].detach().contiguous().flatten().view(torch.uint8)
        # of a tensor on a GPU, one block at a time is on the CPU
        for block in content.split(BLOCK):
            yield block.cpu().numpy().data


class SavedTensors(Mapping[str, Tensor]):
    """A mapping of names to the tensors of a safetensors file and of its shard files, which are
    read on access.

    A shard file holds ranges of rows of some tensors, named by ``shard_key``.

    Args:
        path: the file. It may hold any tensor as a whole.
        shards: the shard files, which together hold all rows of each tensor that they share.

    Raises:
        SafetensorError: a file is not a safetensors file.
        ValueError: a shard is not named by ``shard_key``, or the rows of a tensor have a gap or
            overlap.
    """

    def __init__(self, path: Path, shards: Sequence[Path] = ()) -> None:
        self._file = safe_open(path, "pt")
        self.metadata: dict[str, str] = self._file.metadata() or {}
        names = self._file.keys()
        self._tensors: dict[str, Any] = {name: self._file.get_slice(name) for name in names}
        parts: dict[str, list[tuple[int, Any]]] = defaultdict(list)
        for file in (safe_open(shard, "pt") for shard in shards):
            for key in file.keys():  # noqa: SIM118
                name, _, first = key.rpartition("@")
                parts[name].append((int(first), file.get_slice(key)))
        self._tensors |= {name: _Rows(name, each) for name, each in parts.items()}

    def __getitem__(self, name: str) -> Tensor:
        found = self._tensors[name]
        return found[:] if isinstance(found, _Rows) else self._file.get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """Returns a tensor's shape without reading the tensor."""
        return tuple(self._tensors[name].get_shape())

    def rows(self, name: str) -> Readable:
        """Returns an object that reads a tensor's rows on access."""
        found: Readable = self._tensors[name]
        return found


class _Rows:
    """The rows of a tensor in several shards; reads those of a slice with a step of 1."""

    def __init__(self, name: str, parts: list[tuple[int, Any]]) -> None:
        self._parts = sorted(parts, key=itemgetter(0))
        end = 0
        for first, part in self._parts:
            if first != end:
                raise ValueError(
                    f"{name}: expected a shard from row {end} on, got one from row {first} on"
                )
            end += part.get_shape()[0]
        self._shape = [end, *self._parts[0][1].get_shape()[1:]]

    def get_shape(self) -> list[int]:
        return self._shape

    def __getitem__(self, rows: slice) -> Tensor:
        start, stop, _ = rows.indices(self._shape[0])
        dtype = self._parts[0][1][:0].dtype
        found = torch.empty(max(0, stop - start), *self._shape[1:], dtype=dtype)
        for first, part in self._parts:
            low = max(start, first)
            high = min(stop, first + part.get_shape()[0])
            if low < high:
                found[low - start : high - start] = part[low - first : high - first]
        return found
