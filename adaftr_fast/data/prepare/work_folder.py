"""Work folders hold a folder in progress, next to its destination. The work of an interrupted run
is kept there.

The names of its files depend on the step and the shard only, so a step may run twice. The steps of
all shards share the folder, on one machine or several.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adaftr_fast._files import (
    make_folder,
    new_beside,
    read_json,
    remove_new,
    replace,
    replace_file,
    sync,
    sync_tree,
    write_json,
)
from adaftr_fast._publish import lock_path, publisher_lock
from adaftr_fast.data.dataset.split_file import split_file_name
from adaftr_fast.data.parallel import Shard
from adaftr_fast.errors import BusyError, DataError

# layout of a work folder; increase it on changes, so that no other version's work is resumed
LAYOUT = 9


@dataclass(frozen=True)
class WorkFiles:
    """The files of a work folder.

    Attributes:
        folder: the work folder.
        inputs: the digest of schema and inputs. Steps write to a folder of this name, so that a
            worker that is taken for lost cannot write among files of other inputs later.
    """

    folder: Path
    inputs: str

    @property
    def key(self) -> Path:
        """The file that every work folder has."""
        return self.folder / "key"

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
        return self._steps / "staged"

    @property
    def _steps(self) -> Path:
        """The folder of all that steps write."""
        return self.folder / f"steps-{self.inputs[:16]}"

    def counts(self, shard: Shard) -> Path:
        """Counts of the values of a shard: of the columns that labels compare with text, then of
        the fields.
        """
        return self._steps / "counted" / f"fields-{_of(shard)}.arrow"

    def groups(self, split: str, shard: Shard | None = None) -> Path:
        """Groups of a split, of one shard or of all."""
        return (
            self._steps / "counted" / f"groups-{split}{f'-{_of(shard)}' if shard else ''}.parquet"
        )

    def encoded(self, split: str, shard: Shard) -> Path:
        """Encoded rows of a shard, before they are moved to ``prepared``."""
        return self._steps / "encoded" / split_file_name(split, shard)

    def begin(self) -> None:
        """Creates the folders of the steps, then the key. A lost worker creates none, so that it
        adds nothing to other work.
        """
        for name in ("staged", "counted", "encoded"):
            make_folder(self._steps / name)
        make_folder(self.prepared)
        replace_file(self.key, self._version.encode())

    def is_begun(self) -> bool:
        """Returns whether the folder holds work of these inputs."""
        return self.key.is_file() and self.key.read_text() == self._version

    @property
    def _version(self) -> str:
        return f"{LAYOUT} {self.inputs}"

    def recorded(self, step: str, shard: Shard | None = None) -> Any:
        """Returns the result of a finished step, of one shard or merged; None if it is not
        finished.
        """
        path = self._result(step, shard)
        return read_json(Any, path) if path.exists() else None

    def record(self, step: str, result: Any, shard: Shard | None = None) -> None:
        """Records a result, a value that ``dumps`` writes, once the files that it stands for are
        on disk.
        """
        write_json(self._result(step, shard), result)

    def _result(self, step: str, shard: Shard | None) -> Path:
        return self.folder / (f"{step}-{_of(shard)}.json" if shard else f"{step}.json")


def _of(shard: Shard) -> str:
    return f"{shard.number:05d}-of-{shard.count:05d}"


@contextmanager
def work_folder(folder: Path, inputs: str) -> Iterator[WorkFiles]:
    """Provides the folder ``.NAME.work`` next to ``folder``, with the work of an interrupted run of
    the same ``inputs``.

    The folder is removed when the block succeeds or raises DataError, which another run would raise
    again. It is kept after an interruption or on a full disk, except by a process that is killed in
    the moment in which it publishes.

    Raises:
        BusyError: another process or thread prepares ``folder``.
    """
    work = _work_of(folder, inputs)
    with publisher_lock(folder):
        if not work.is_begun():
            remove_work(work, folder)
            work.folder.mkdir()
            work.begin()
        for each in [work.folder, *(path for path in work.folder.rglob("*") if path.is_dir())]:
            remove_new(each)
        try:
            yield work
        except DataError:
            remove_work(work, folder)
            raise
        remove_work(work, folder)


def remove_finished(folder: Path, inputs: str) -> None:
    """Removes what a run left when it was killed after publishing, unless another process prepares
    ``folder``.

    The unfinished work of other inputs is kept.
    """
    work = _work_of(folder, inputs)
    if _is_finished(work) or lock_path(folder).exists():
        # the folder above may be read-only
        with suppress(BusyError, OSError), publisher_lock(folder):
            if _is_finished(work):  # still
                remove_work(work, folder)


def publish(work: WorkFiles, folder: Path, check: Callable[[], None]) -> None:
    """Publishes the prepared folder in ``work``, which is removed, as ``folder``. Call it with the
    lock of ``folder``.

    Args:
        check: raises an error if the existing ``folder`` may not be replaced.
    """
    if folder.exists():
        check()
    sync_tree(work.prepared)  # here, since work is kept if the disk is full
    with _taken(work, folder) as taken:
        new = taken / work.prepared.name
        prepared = new.stat().st_ino
        try:
            replace(new, folder)
        except BaseException:
            # not published: another run publishes it
            if new.exists() and new.stat().st_ino == prepared:
                taken.rename(work.folder)
            raise


def _is_finished(work: WorkFiles) -> bool:
    """Returns whether there is work of these inputs, which is published, or work without a key,
    which has not begun.
    """
    return work.folder.exists() and (work.is_begun() or not work.key.exists())


def _work_of(folder: Path, inputs: str) -> WorkFiles:
    return WorkFiles(folder.parent / f".{folder.name}.work", inputs)


def remove_work(work: WorkFiles, folder: Path) -> None:
    """Removes the work of ``folder``, if there is any, in one step."""
    if work.folder.exists():
        with _taken(work, folder):
            pass


@contextmanager
def _taken(work: WorkFiles, folder: Path) -> Iterator[Path]:
    """Renames work, so that no process resumes a part of it, even after a power failure, and
    removes it afterwards.
    """
    with new_beside(folder) as taken:
        work.folder.rename(taken)
        sync(folder.parent)
        yield taken
