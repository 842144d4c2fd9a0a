"""Progress bars of all commands: a bar in a terminal and a notebook, else a line every
ten seconds.
"""

from __future__ import annotations

import math
import sys
from typing import Any

from tqdm import tqdm

SECONDS = 10.0  # between two lines


def progress_bar(*arguments: Any, **options: Any) -> tqdm:
    """Returns a ``tqdm`` of these arguments, which writes to stderr.

    Where stderr is neither a terminal nor a notebook, such as a log file, it writes whole lines
    without control characters, the first one after ten seconds.
    """
    is_shown = sys.stderr.isatty() or "ipykernel" in sys.modules
    return tqdm(*arguments, **options) if is_shown else _Lines(*arguments, **options)


class _Lines(tqdm):  # type: ignore[misc]  # tqdm has no types
    """Writes a line every ten seconds, and one at the end if there was any."""

    delay: float

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(
            *arguments, **options | {"mininterval": SECONDS, "delay": SECONDS, "ncols": 0}
        )

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        self.fp.write(f"{self if msg is None else msg}\n")
        self.fp.flush()

    def clear(self, nolock: bool = False) -> None:
        """Leaves the lines as they are."""

    def refresh(self, nolock: bool = False, lock_args: Any = None) -> bool | None:
        """Writes a line, but not after each call of ``tqdm.write``, which takes no lock."""
        return None if nolock else super().refresh(lock_args=lock_args)

    def close(self) -> None:
        if not self.disable:
            if self.start_t + self.delay <= self.last_print_t and self.last_print_n < self.n:
                self.display()
            self.delay = math.inf  # so that tqdm writes nothing at the end
        super().close()
