"""The snapshots of one run: when to save them, and whether a run may resume from them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from adaftr_fast._json import from_json
from adaftr_fast._tensor_file import SavedTensors
from adaftr_fast.config import RunConfig
from adaftr_fast.config.run import FREE_ON_RESUME
from adaftr_fast.distributed.ranks import Ranks
from adaftr_fast.errors import CheckpointError
from adaftr_fast.torchrec.rows import ShardedRows
from adaftr_fast.training.checkpoint.background import StateCopy, snapshot_thread
from adaftr_fast.training.checkpoint.files import local_rows
from adaftr_fast.training.checkpoint.progress import Progress
from adaftr_fast.training.checkpoint.snapshots import load_snapshot, remove_snapshots, save_shard, save_snapshot
from adaftr_fast.training.checkpoint.weights import Description

LAST = "last"  # in the run folder; present while the run is unfinished
MEAN = "mean/"
Sharded = Mapping[str, ShardedRows]
Commit = Callable[[Sequence[str]], None]
Found = tuple[Progress, SavedTensors, dict[str, Tensor]]
"""The progress, the saved tensors (read on access) and the sums of the running means."""


@dataclass(frozen=True)
class _Identity:
    """What makes two runs the same: their options, the fingerprint of their data and its training rows."""

    settings: dict[str, Any]
    data: str
    rows: int


class RunSnapshots:
    """Saves and loads the snapshots of one run.

    Args:
        folder: the run folder.
        about: the run's options and data. Snapshots of other options or data raise an error.
        rows: the number of rows of the training split.
        seconds: time between two snapshots of an epoch, in seconds. The next one starts after the last is written.
        ranks: the ranks that hold sharded tables. All of them must see ``folder`` and call ``due``, ``start``, ``save``
            and ``load`` at the same steps. None if this process alone saves the state.
    """

    def __init__(self, folder: Path, about: Description, rows: int, seconds: float, ranks: Ranks | None = None) -> None:
        self.folder = folder / LAST
        self.seconds = seconds
        self.ranks = ranks
        self.identity = _Identity(about.config.flat(), about.fingerprint, rows)
        self._saved_at = time.monotonic()
        self._copy = StateCopy()
        self._thread = snapshot_thread()
        self._writing: Future[str | None] | None = None  # the thread's write, until its error has been raised
        self._commit: Commit | None = None  # what is left to do when all ranks have written their shards

    def due(self) -> bool:
        """Returns whether ``seconds`` have passed since the last snapshot, which must have been written.

        With ``ranks``, rank 0 decides. When all ranks have written their shards, it starts to commit them.

        Raises:
            CheckpointError: the thread could not write the last snapshot.
        """
        if self.ranks is None:
            return self._is_due()
        if self._commit is not None and not self.ranks.largest(int(self._is_busy())):
            commit, self._commit = self._commit, None
            shards = self._shards_of_all(self.wait())
            if self.ranks.is_rank_zero:
                self._writing = self._thread.submit(commit, shards)
        return bool(self.ranks.largest(int(self.ranks.is_rank_zero and self._is_due())))

    def start(
        self, progress: Progress, tensors: dict[str, Tensor], sums: dict[str, Tensor], sharded: Sharded | None = None
    ) -> None:
        """Copies a snapshot in memory and starts to write it in a thread. The tensors may change afterwards.

        If memory does not suffice for the copy, it calls ``save`` instead. A snapshot with shards is committed by a
        later ``due``, because collectives of the thread would mix with those of training.

        Raises:
            CheckpointError: the snapshot before could not be written.
        """
        self.wait()
        rows, rest = local_rows(sharded or {}), tensors | _means(sums)
        if self.ranks is not None and not self.ranks.is_rank_zero:
            rest = {}
        copied = self._copy.take(rows | rest)
        fails = copied is None if self.ranks is None else self.ranks.largest(int(copied is None))
        if fails or copied is None:
            self.save(progress, tensors, sums, sharded)
            return
        position, run = self._description(progress)
        rows, rest = ({name: copied[name] for name in each} for each in (rows, rest))
        if self.ranks is None:
            self._writing = self._thread.submit(self._after_copy, partial(self._save, position, rest, run))
        else:
            shard = partial(save_shard, self.folder, position, self.ranks.rank, rows)
            self._writing = self._thread.submit(self._after_copy, shard)
            self._commit = partial(self._save, position, rest, run)
        self._saved_at = time.monotonic()

    def save(
        self, progress: Progress, tensors: dict[str, Tensor], sums: dict[str, Tensor], sharded: Sharded | None = None
    ) -> None:
        """Writes a snapshot, which is on disk on return. Raises CheckpointError if this or the last write fails.

        A snapshot that ``start`` began and that has not been committed is dropped.
        """
        self.wait()
        self._commit = None
        if self.ranks is not None:
            self.ranks.largest(0)  # rank 0 removes stale files when it commits, and must have done so
        position, run = self._description(progress)
        commit = partial(self._save, position, tensors | _means(sums), run)
        if self.ranks is None:
            commit()
        else:
            shard = save_shard(self.folder, position, self.ranks.rank, local_rows(sharded or {}))
            shards = self._shards_of_all(shard)
            self.ranks.from_rank_zero(lambda: commit(shards))
        self._saved_at = time.monotonic()

    def wait(self) -> str | None:
        """Waits until the thread has written. Returns the name of this rank's shard, if there is one.

        Raises:
            CheckpointError: the thread could not write.
        """
        writing, self._writing = self._writing, None
        return None if writing is None else writing.result()

    def close(self) -> None:
        """Ends the thread when it is idle, and frees the copy. Its error is raised by the next save, if one follows."""
        self._thread.shutdown()
        self._copy = StateCopy()
        self._thread = snapshot_thread()

    def load(self) -> Found | None:
        """Loads the newest snapshot; returns None if there is no unfinished run.

        Raises:
            CheckpointError: the unfinished run has other options or data, no snapshot can be read, or the metadata of
                one lack a key or have a value of another type.
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
        sums = {name.removeprefix(MEAN): tensors[name] for name in tensors if name.startswith(MEAN)}
        return progress, tensors, sums

    def discard(self) -> None:
        """Removes all snapshots, on rank 0. Raises CheckpointError like ``wait``."""
        self.wait()
        self._commit = None
        if self.ranks is None or self.ranks.is_rank_zero:
            remove_snapshots(self.folder)

    def _is_busy(self) -> bool:
        return self._writing is not None and not self._writing.done()

    def _is_due(self) -> bool:
        if self._is_busy() or self._commit is not None:
            return False
        self.wait()
        return time.monotonic() - self._saved_at >= self.seconds

    def _shards_of_all(self, shard: str | None) -> list[str]:
        """Returns the names of every rank's shard."""
        assert self.ranks is not None  # without, there are no shards
        assert shard is not None  # written before
        return self.ranks.gathered(shard)

    def _after_copy(self, write: Callable[[], str | None]) -> str | None:
        self._copy.wait()
        return write()

    def _save(self, position: int, tensors: dict[str, Tensor], run: dict[str, Any], shards: Sequence[str] = ()) -> None:
        save_snapshot(self.folder, position, tensors, run, shards)

    def _description(self, progress: Progress) -> tuple[int, dict[str, Any]]:
        """Returns the position and the metadata of a snapshot."""
        position = progress.total_steps + len(progress.epochs) + 1  # a validation comes after the step before it
        return position, {"identity": asdict(self.identity), "progress": asdict(progress)}

    def _check(self, saved: _Identity) -> None:
        then, now = DEFAULTS | saved.settings, DEFAULTS | self.identity.settings
        for name in sorted((then.keys() | now.keys()) - FREE_ON_RESUME):
            if then.get(name) != now.get(name):
                raise CheckpointError(
                    f"{self.folder.parent}: contains an unfinished run with {name} = {then.get(name)}, this run has "
                    f"{now.get(name)}: resume it with its options, or discard it with --restart"
                )
        if (saved.data, saved.rows) != (self.identity.data, self.identity.rows):
            raise CheckpointError(
                f"{self.folder.parent}: contains an unfinished run on other data: discard it with --restart"
            )


def _means(sums: dict[str, Tensor]) -> dict[str, Tensor]:
    return {MEAN + name: value for name, value in sums.items()}


DEFAULTS = RunConfig().flat()
"""The values of options that are missing in a snapshot because they were added later."""
