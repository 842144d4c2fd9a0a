"""A file for reading whose content comes in pieces, each by one request."""

from __future__ import annotations

import io
from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import Any

BLOCK = 8 << 20  # bytes of a piece where the reader does not choose


class RangeFile(io.RawIOBase):
    """A file for reading in pieces, of which it keeps the last one.

    Args:
        read: returns the content from a position to another one.
        size: the size in bytes.
        bounds: where the pieces begin, in ascending order; None for pieces of equal size.
    """

    def __init__(self, read: Callable[[int, int], bytes], size: int, bounds: Sequence[int] | None = None) -> None:
        super().__init__()
        self._read = read
        self._position = 0
        inner = range(BLOCK, size, BLOCK) if bounds is None else [each for each in bounds if 0 < each < size]
        self._bounds = [0, *inner, size]
        self._last: tuple[int, bytes] = -1, b""

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def size(self) -> int:
        """Returns the size in bytes."""
        return self._bounds[-1]

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = offset + (0, self._position, self.size())[whence]
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Fills ``buffer``, unless the file ends before: pyarrow takes fewer bytes for the end of the file."""
        view = memoryview(buffer).cast("B")
        done = 0
        while done < len(view) and self._position < self.size():
            number = bisect_right(self._bounds, self._position) - 1
            start = self._position - self._bounds[number]
            content = memoryview(self._piece(number))[start : start + len(view) - done]
            view[done : done + len(content)] = content
            done += len(content)
            self._position += len(content)
        return done

    def _piece(self, number: int) -> bytes:
        if self._last[0] != number:
            self._last = number, self._read(self._bounds[number], self._bounds[number + 1])
        return self._last[1]
