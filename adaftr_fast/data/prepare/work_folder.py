"""The files that ``prepare`` writes before its folder is whole, in a temporary folder next to the
destination.

The names of the files depend on the step and the shard only, so a step may run twice. The steps of
all shards share the folder, on one machine or several.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from adaftr_fast.data.dataset.split_file import split_file_name
from adaftr_fast.data.parallel import Shard
from adaftr_fast.errors import BusyError
from adaftr_fast.files.publish import publisher_lock
from adaftr_fast.files.whole import new_beside


@dataclass(frozen=True)
class WorkFiles:
    """The files of a work folder.

    Attributes:
        folder: the work folder, whose path is absolute.
    """

    folder: Path

    @property
    def generated(self) -> Path:
        """The folder of a synthetic log that is generated."""
        return self.folder / "generated"

    @property
    def prepared(self) -> Path:
        """The prepared folder in progress, to which only the merging process writes."""
        return self.folder / "prepared"

    @property
    def staged(self) -> Path:
        """Folders of staged text, by role."""
        return self.folder / "staged"

    def counts(self, shard: Shard) -> Path:
        """Counts of the values of a shard: of the columns that labels compare with text; the groups
        of each split; and counts of the fields.
        """
        return self.folder / "counted" / f"fields-{shard.number:05d}-of-{shard.count:05d}.pickle"

    @property
    def groups(self) -> Path:
        """The groups of all shards, by split."""
        return self.folder / "counted" / "groups.pickle"

    def encoded(self, split: str, shard: Shard) -> Path:
        """Encoded rows of a shard, before they are moved to ``prepared``."""
        return self.folder / "encoded" / split_file_name(split, shard)


@contextmanager
def work_folder(folder: Path) -> Iterator[WorkFiles]:
    """Provides a temporary folder next to ``folder`` during the block, as the only writer of
    ``folder``. What killed processes have left there is removed.

    Raises:
        BusyError: another process or thread prepares ``folder``.
    """
    with publisher_lock(folder), new_beside(folder) as new:
        for name in ("staged", "counted", "encoded", "prepared"):
            (new / name).mkdir(parents=True)
        yield WorkFiles(new.absolute())


def remove_left(folder: Path) -> None:
    """Removes what killed processes have left next to ``folder``, unless another process prepares
    it.
    """
    # the folder above may be read-only
    with suppress(BusyError, OSError), publisher_lock(folder):
        pass
