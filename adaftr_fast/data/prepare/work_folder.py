"""Work folders hold a folder in progress, next to its destination.

The names of the files of a step depend on its shard only, so a step may run twice. The steps of all
shards share the folder, on one machine or several.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from adaftr_fast._files import make_folder, remove, replace, sync_tree
from adaftr_fast._publish import lock_path, publisher_lock
from adaftr_fast.data.dataset.split_file import split_file_name
from adaftr_fast.data.parallel import Shard
from adaftr_fast.errors import BusyError


@dataclass(frozen=True)
class WorkFiles:
    """The files of a work folder.

    Attributes:
        folder: the work folder.
        run: a name of this run alone. Steps write to a folder of this name, so that a worker that
            is taken for lost cannot write among the files of another run later.
    """

    folder: Path
    run: str

    @property
    def steps(self) -> Path:
        """The folder of all that steps write."""
        return self.folder / self.run

    @property
    def generated(self) -> Path:
        """The folder of a synthetic log that is generated."""
        return self.folder / "generated"

    @property
    def prepared(self) -> Path:
        """The prepared folder in progress, to which only the merging process writes."""
        return self.folder / "prepared"

    @property
    def ids(self) -> Path:
        """The DuckDB file of the ids of values and groups."""
        return self.steps / "ids.duckdb"

    def shard(self, shard: Shard) -> tuple[Path, Path]:
        """The DuckDB files of the rows of a shard, and of the splits that have them."""
        number = f"{shard.number:05d}-of-{shard.count:05d}"
        return self.steps / f"rows-{number}.duckdb", self.steps / f"picked-{number}.duckdb"

    def spill(self, shard: Shard | None = None) -> Path:
        """The folder for what does not fit the memory of a process."""
        return self.steps / f"spill-{shard.number if shard else 0}"

    def encoded(self, split: str, shard: Shard) -> Path:
        """Encoded rows of a shard, before they are moved to ``prepared``."""
        return self.steps / split_file_name(split, shard)


@contextmanager
def work_folder(folder: Path, run: str) -> Iterator[WorkFiles]:
    """Provides the new folder ``.NAME.work`` next to ``folder``, which is removed at the end.

    Raises:
        BusyError: another process or thread prepares ``folder``.
    """
    work = WorkFiles(_work_of(folder), run)
    with publisher_lock(folder):
        remove(work.folder)  # of a process that was killed
        try:
            make_folder(work.steps)
            make_folder(work.prepared)
            yield work
        finally:
            remove(work.folder)


def remove_left(folder: Path) -> None:
    """Removes what a run left when it was killed, unless a process prepares ``folder``."""
    if _work_of(folder).exists() or lock_path(folder).exists():
        # the folder above may be read-only
        with suppress(BusyError, OSError), publisher_lock(folder):
            remove(_work_of(folder))


def publish(work: WorkFiles, folder: Path, check: Callable[[], None]) -> None:
    """Publishes the prepared folder in ``work`` as ``folder``. Call it with the lock of ``folder``.

    Args:
        check: raises an error if the existing ``folder`` may not be replaced.
    """
    if folder.exists():
        check()
    sync_tree(work.prepared)
    replace(work.prepared, folder)


def _work_of(folder: Path) -> Path:
    return folder.parent / f".{folder.name}.work"
