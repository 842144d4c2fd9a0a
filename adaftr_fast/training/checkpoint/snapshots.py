"""The snapshots of a run: their files, when to save them, and whether a run may resume from them.

A snapshot is a safetensors file with JSON metadata. Its name ends with the CRC-32 of its content,
so a truncated or changed file is detected. The file gets its name after it has been written and
synced to disk. The folder holds the two newest snapshots.

With sharded tables the rows are in shard files beside it, one per rank, and its metadata lists
them. It is written after all of them.

A thread writes a snapshot while training continues, from a copy of the state in memory.
"""

from __future__ import annotations

import json
import os
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from adaftr_fast import _memory
from adaftr_fast.config import RunConfig
from adaftr_fast.config.run import FREE_ON_RESUME
from adaftr_fast.distributed.ranks import ALONE, Ranks
from adaftr_fast.distributed.rows import ShardedRows
from adaftr_fast.errors import CheckpointError
from adaftr_fast.files.json import from_json, loads
from adaftr_fast.files.tensors import SavedTensors
from adaftr_fast.files.whole import (
    CRC32,
    check_name,
    crc32,
    followed,
    make_folder,
    remove_new,
    sync,
)
from adaftr_fast.ops.embedding.lookup import empty_table
from adaftr_fast.training.checkpoint.files import damages, local_rows, write_file
from adaftr_fast.training.checkpoint.progress import Progress
from adaftr_fast.training.checkpoint.weights import Description

KEEP = 2  # the newest one and a fallback
KEY = "run"
SHARDS = "shards"
VERSION = 4
CHECKSUM_DIGITS = 8  # of crc32
SUFFIX = ".safetensors"
SHARD_SUFFIX = ".shard"


def save_snapshot(
    folder: Path,
    position: int,
    tensors: Mapping[str, Tensor],
    run: dict[str, Any],
    shards: Sequence[str] = (),
) -> None:
    """Writes a snapshot, then removes all but the ``KEEP`` newest ones.

    Args:
        folder: the folder of the snapshots.
        position: orders the snapshots; larger than that of earlier ones.
        tensors: the tensors by name.
        run: JSON metadata.
        shards: the names of the files that ``save_shard`` has written on all ranks for this
            snapshot.

    Raises:
        CheckpointError: the file cannot be written, for example because the disk is full. Earlier
            snapshots remain.
    """
    run = run | {"version": VERSION} | ({SHARDS: list(shards)} if shards else {})
    name = f"{position:012d}-{{}}{SUFFIX}"
    with _writing(folder):
        # The json module preserves nan and infinities.
        write_file(folder, name, tensors, {KEY: json.dumps(run)}, CRC32())
        _remove_stale(folder)


def save_shard(folder: Path, position: int, rank: int, rows: Mapping[str, Tensor]) -> str:
    """Writes the rows of a rank for the snapshot of ``position``, on disk on return; returns the
    name of the file.

    Args:
        folder: the folder of the snapshots.
        position: the position of the snapshot.
        rank: the rank.
        rows: the rows by name and first row, from ``local_rows``.

    Raises:
        CheckpointError: the file cannot be written.
    """
    name = f"{position:012d}-{rank}-{{}}{SHARD_SUFFIX}"
    with _writing(folder):
        return write_file(folder, name, rows, checksum=CRC32())[0]


def load_snapshot(folder: Path, ranks: Ranks = ALONE) -> tuple[SavedTensors, dict[str, Any]] | None:
    """Loads the newest intact snapshot. Damaged ones are removed with a warning.

    Args:
        folder: the folder of the snapshots.
        ranks: the ranks that all call it and see ``folder``.

    Returns:
        The tensors, read on access, and the metadata. None if there is no snapshot.

    Raises:
        CheckpointError: all snapshots are damaged, or one cannot be read or has another version.
    """
    removed: list[Path] = []  # on rank 0

    def newest() -> str | None:
        for path in _newest_first(folder):
            checksum = _checksum(path.name)
            try:
                # Earlier versions have another checksum in the name: _description refuses them, and
                # they stay.
                if len(checksum) != CHECKSUM_DIGITS or crc32(path) == checksum:
                    return path.name
            except OSError as error:
                raise CheckpointError(f"{path}: cannot be read: {error}") from error
            remove(path, "its content differs from the checksum in its name")
        if removed:
            raise CheckpointError(
                f"{folder}: all snapshots of the unfinished run are damaged: the run must restart"
            )
        return None

    def remove(path: Path, reason: str) -> None:
        warnings.warn(f"{path}: damaged ({reason}), removed", RuntimeWarning, stacklevel=3)
        path.unlink()
        removed.append(path)

    while (name := ranks.from_rank_zero(newest)) is not None:
        path = folder / name
        run, shards = _description(path)
        faults = damages(folder, {each: _checksum(each) for each in shards}, crc32, ranks)
        if not faults:
            return _opened(path, shards), run
        if ranks.is_rank_zero:
            remove(path, faults[0])
    return None


def remove_snapshots(folder: Path) -> None:
    """Removes ``folder`` and all snapshots in it, if it exists."""
    if folder.exists():
        # first, or a kill could leave them without their shards
        for head in reversed(_newest_first(folder)):
            head.unlink()
        sync(folder)
        shutil.rmtree(followed(folder))
        # or they would be there again after a power failure, and the finished run be resumed
        sync(folder.parent)


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        make_folder(folder)
        yield
    except OSError as error:
        kept = "earlier ones are kept" if _newest_first(folder) else "and there is no earlier one"
        raise CheckpointError(f"{folder}: cannot write a snapshot, {kept}: {error}") from error


def _remove_stale(folder: Path) -> None:
    """Removes old snapshots, shards of none of the others, and what killed processes left.

    Call it while no rank writes.
    """
    newest_first = _newest_first(folder)
    positions = {path.name.partition("-")[0] for path in newest_first[:KEEP]}
    shards = [
        path
        for path in folder.glob(f"*-*{SHARD_SUFFIX}")
        if path.name.partition("-")[0] not in positions
    ]
    for path in [*newest_first[KEEP:], *shards]:
        path.unlink()
    remove_new(folder)


def _checksum(name: str) -> str:
    """Returns the checksum in the name of a file."""
    return Path(name).stem.rpartition("-")[2]


def _description(path: Path) -> tuple[dict[str, Any], list[str]]:
    """Returns the metadata of a snapshot and the names of its shard files."""
    try:
        run = from_json(dict[str, Any], loads(_opened(path, []).metadata.get(KEY, "{}")))
        if (version := run.get("version")) != VERSION:
            raise CheckpointError(
                f"{path}: written in version {version}, this program reads version {VERSION}: "
                "discard it with --restart"
            )
        shards = from_json(list[str], run.get(SHARDS, []))
        for each in shards:
            check_name(each, SHARDS)
    except ValueError as error:
        raise CheckpointError(f"{path}: not a snapshot: {error}") from error
    return run, shards


def _opened(path: Path, shards: list[str]) -> SavedTensors:
    try:
        return SavedTensors(path, [path.with_name(each) for each in shards])
    except (SafetensorError, ValueError, OSError) as error:
        raise CheckpointError(f"{path}: not a snapshot: {error}") from error


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"*-*{SUFFIX}"), reverse=True)


class StateCopy:
    """A copy of named tensors in CPU memory, which is allocated once and reused."""

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}
        self._copied: list[torch.cuda.Event] = []

    def take(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        """Copies ``tensors``, which may change afterwards. On CUDA call ``wait`` before reading the
        copies.

        Returns:
            The copies on the CPU by name; they are valid until the next call. None if memory does
            not suffice: the new buffers may take half of the available memory, the rest is for
            training and the file's pages.
        """
        new = {
            name: value
            for name, value in tensors.items()
            if not _has_form_of(self._buffers.get(name), value)
        }
        if 2 * sum(value.nbytes for value in new.values()) > available_memory():
            return None
        try:
            self._buffers |= {name: _buffer(value) for name, value in new.items()}
        except RuntimeError:  # the system grants less than it tells, or limits pinned memory
            return None
        for name, value in tensors.items():
            self._buffers[name].copy_(value.detach(), non_blocking=True)
        devices = {value.device for value in tensors.values() if value.is_cuda}
        # Later steps run on the same streams, so they change nothing before it has been copied.
        self._copied = [
            torch.cuda.current_stream(each).record_event(torch.cuda.Event(blocking=True))
            for each in devices
        ]
        return {name: self._buffers[name] for name in tensors}

    def wait(self) -> None:
        """Waits until the copies are complete."""
        for event in self._copied:
            event.synchronize()


def _has_form_of(buffer: Tensor | None, value: Tensor) -> bool:
    return buffer is not None and (buffer.shape, buffer.dtype) == (value.shape, value.dtype)


def _buffer(value: Tensor) -> Tensor:
    if value.is_cuda:
        return torch.empty(value.shape, dtype=value.dtype, pin_memory=True)
    return empty_table(value.numel(), dtype=value.dtype).view(value.shape)


def available_memory() -> int:
    """Returns the bytes of memory that this process can still take; 0 if the system does not tell.

    The ranks of one machine take equal shares.
    """
    return (_memory.available() or 0) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


LAST = "last"  # in the run folder; present while the run is unfinished
Sharded = Mapping[str, ShardedRows]
Commit = Callable[..., None]


@dataclass(frozen=True)
class _Identity:
    """What makes two runs the same: their options, the fingerprint of their data and its training
    rows.
    """

    settings: dict[str, Any]
    data: str
    rows: int


class RunSnapshots:
    """Saves and loads the snapshots of one run.

    Args:
        folder: the run folder.
        about: the run's options and data. Snapshots of other options or data raise an error.
        rows: the number of rows of the training split.
        seconds: time between two snapshots of an epoch, in seconds. The next one starts after the
            last is written.
        ranks: the ranks that hold sharded tables. All of them must see ``folder`` and call ``due``,
            ``start``, ``save`` and ``load`` at the same steps.
    """

    def __init__(
        self, folder: Path, about: Description, rows: int, seconds: float, ranks: Ranks = ALONE
    ) -> None:
        self.folder = folder / LAST
        self.seconds = seconds
        self.ranks = ranks
        self.identity = _Identity(about.config.flat(), about.fingerprint, rows)
        self._saved_at = time.monotonic()
        self._copy = StateCopy()
        # Of the priority of training: a thread of a lower one waits for the CPU while it holds
        # Python's global lock, for which training then waits, too. That cost four times as much
        # (benchmarks/README.md).
        self._thread = ThreadPoolExecutor(1, "snapshot")
        # the thread's write, until its error has been raised
        self._writing: Future[str | None] | None = None
        # what is left to do when all ranks have written their shards
        self._commit: Commit | None = None

    def due(self) -> bool:
        """Returns whether ``seconds`` have passed since the last snapshot, which must have been
        written.

        Rank 0 decides. When all ranks have written their shards, it starts to commit them.

        Raises:
            CheckpointError: the thread could not write the last snapshot.
        """
        if self._commit is not None and not self.ranks.largest(int(self._is_busy())):
            commit = self._commit
            self._commit = None
            shards = self.ranks.gathered(self.wait())
            if self.ranks.is_rank_zero:
                self._writing = self._thread.submit(commit, shards)
        return bool(self.ranks.largest(int(self.ranks.is_rank_zero and self._is_due())))

    def start(self, progress: Progress, tensors: dict[str, Tensor], sharded: Sharded) -> None:
        """Copies a snapshot in memory and starts to write it in a thread. The tensors may change
        afterwards.

        If memory does not suffice for the copy, it calls ``save`` instead. A snapshot with shards
        is committed by a later ``due``, because collectives of the thread would mix with those of
        training.

        Raises:
            CheckpointError: the snapshot before could not be written.
        """
        self.wait()
        rows = local_rows(sharded)
        rest = tensors if self.ranks.is_rank_zero else {}
        copied = self._copy.take(rows | rest)
        fails = self.ranks.largest(int(copied is None))
        if fails or copied is None:
            self.save(progress, tensors, sharded)
            return
        rows, rest = ({name: copied[name] for name in each} for each in (rows, rest))
        write, self._commit = self._writes(progress, rest, rows)
        self._writing = self._thread.submit(self._after_copy, write)
        self._saved_at = time.monotonic()

    def save(self, progress: Progress, tensors: dict[str, Tensor], sharded: Sharded) -> None:
        """Writes a snapshot, which is on disk on return. Raises CheckpointError if this or the last
        write fails.

        A snapshot that ``start`` began and that has not been committed is dropped.
        """
        self.wait()
        self._commit = None
        self.ranks.largest(0)  # rank 0 removes stale files when it commits, and must have done so
        write, commit = self._writes(progress, tensors, local_rows(sharded))
        shard = write()
        if commit is not None:
            shards = self.ranks.gathered(shard)
            self.ranks.from_rank_zero(lambda: commit(shards))
        self._saved_at = time.monotonic()

    def wait(self) -> str | None:
        """Waits until the thread has written. Returns the name of this rank's shard, if there is
        one.

        Raises:
            CheckpointError: the thread could not write.
        """
        writing = self._writing
        self._writing = None
        return None if writing is None else writing.result()

    def close(self) -> None:
        """Ends the thread when it is idle, and frees the copy. Its error is raised by the next
        save, if one follows.
        """
        self._thread.shutdown()
        self._copy = StateCopy()
        self._thread = ThreadPoolExecutor(1, "snapshot")

    def load(self) -> tuple[Progress, SavedTensors] | None:
        """Loads the newest snapshot, whose tensors are read on access; returns None if there is no
        unfinished run.

        Raises:
            CheckpointError: the unfinished run has other options or data, no snapshot can be read,
                or the metadata of one lack a key or have a value of another type.
        """
        found = load_snapshot(self.folder, self.ranks)
        if found is None:
            return None
        tensors, run = found
        try:
            identity = from_json(_Identity, run.get("identity"), "identity")
            progress = from_json(Progress, run.get("progress"), "progress")
        except ValueError as error:
            raise CheckpointError(f"{self.folder}: not a snapshot of a run: {error}") from error
        self._check(identity)
        return progress, tensors

    def discard(self) -> None:
        """Removes all snapshots, on rank 0. Raises CheckpointError like ``wait``."""
        self.wait()
        self._commit = None
        if self.ranks.is_rank_zero:
            remove_snapshots(self.folder)

    def _is_busy(self) -> bool:
        return self._writing is not None and not self._writing.done()

    def _is_due(self) -> bool:
        if self._is_busy() or self._commit is not None:
            return False
        self.wait()
        return time.monotonic() - self._saved_at >= self.seconds

    def _after_copy(self, write: Callable[[], str | None]) -> str | None:
        self._copy.wait()
        return write()

    def _writes(
        self, progress: Progress, tensors: Mapping[str, Tensor], rows: Mapping[str, Tensor]
    ) -> tuple[Callable[[], str | None], Commit | None]:
        """Returns what this rank writes, and what rank 0 writes when all ranks have done so."""
        run = {"identity": asdict(self.identity), "progress": asdict(progress)}
        position = progress.position
        snapshot: Commit = partial(save_snapshot, self.folder, position, tensors, run)
        if self.ranks.is_alone:
            return snapshot, None
        return partial(save_shard, self.folder, position, self.ranks.rank, rows), snapshot

    def _check(self, saved: _Identity) -> None:
        then = DEFAULTS | saved.settings
        now = DEFAULTS | self.identity.settings
        for name in sorted((then.keys() | now.keys()) - FREE_ON_RESUME):
            if then.get(name) != now.get(name):
                raise CheckpointError(
                    f"{self.folder.parent}: contains an unfinished run with {name} = "
                    f"{then.get(name)}, this run has "
                    f"{now.get(name)}: resume it with its options, or discard it with --restart"
                )
        if (saved.data, saved.rows) != (self.identity.data, self.identity.rows):
            raise CheckpointError(
                f"{self.folder.parent}: contains an unfinished run on other data: discard it with "
                "--restart"
            )


DEFAULTS = RunConfig().flat()
"""The values of options that are missing in a snapshot because they were added later."""
