"""The bound of the memory of a process that reads rows: how it is divided among the rows in
progress.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NoReturn

import pyarrow as pa

from adaftr_fast.errors import ConfigError

GB = 1 << 30
PROGRAM = 3 * GB // 8  # for the program and its libraries
READ = GB // 4  # for rows of a prepared folder that are read
# bytes of memory per byte of raw rows, and of the column that is being encoded
ROWS_WORK = 2
COLUMN_WORK = 6


@dataclass(frozen=True)
class Memory:
    """A bound of the memory of a process that reads rows, without the distinct values that it
    keeps.

    Three eighths of a GB are for the program. Of the rest, three quarters are for rows in threads,
    and most of the last quarter for up to six batches that are read, filtered and put together.

    Attributes:
        total: the bound in bytes.
    """

    total: int = 4 * GB

    @classmethod
    def of(cls, gigabytes: float | None) -> Memory:
        """Returns the bound of an option in GB (2^30 bytes); None for the default. Raises
        ConfigError if it is low.
        """
        if gigabytes is None:
            return cls()
        if not PROGRAM < gigabytes * GB < math.inf:  # nan is not
            raise ConfigError(
                f"memory: expected more than {PROGRAM / GB} GB, which the program itself takes, "
                f"got {gigabytes}"
            )
        return cls(int(gigabytes * GB))

    @property
    def batch(self) -> int:
        """Bytes of a table of rows; a single row may have more."""
        return (self.total - PROGRAM) // 29

    @property
    def held(self) -> int:
        """Bytes for the rows in threads."""
        return (self.total - PROGRAM) // 4 * 3

    def check(self, needed: int) -> None:
        """Raises ConfigError if a batch of rows in a thread needs more bytes than there are."""
        if needed > self.held:
            # Twice, since the other batches are larger then, too.
            self._raise(
                PROGRAM + 2 * needed, f"a batch of the widest rows takes {_gigabytes(needed)}"
            )

    def check_all(self, needed: int, what: str) -> None:
        """Raises ConfigError if ``what``, which is kept while rows are read, needs more bytes than
        there are.
        """
        if PROGRAM + READ + needed > self.total:
            self._raise(PROGRAM + READ + needed, f"{what} take {_gigabytes(needed)}")

    def _raise(self, least: int, why: str) -> NoReturn:
        raise ConfigError(
            f"memory: expected at least {_gigabytes(least)} GB, of which {why}, got "
            f"{self.total / GB:.4g}"
        )


def _gigabytes(count: int) -> float:
    return math.ceil(100 * count / GB) / 100


DEFAULT = Memory()


def encoding(batch: pa.RecordBatch) -> int:
    """Returns the bytes of memory that it takes to encode raw rows, themselves included."""
    return ROWS_WORK * batch.nbytes + COLUMN_WORK * max(
        (column.nbytes for column in batch.columns), default=0
    )
