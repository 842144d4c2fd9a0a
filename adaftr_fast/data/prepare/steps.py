"""The steps of ``prepare`` for a shard: hash files, load rows, pick those of the splits, encode them.

A step is a pure function of a job and a shard, which are pickled where an engine runs it in another
process. It writes its files atomically under names that depend on these arguments only. Running it
again, even at the same time, changes nothing: the files get the same content.
"""

from __future__ import annotations

import socket
import time
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from duckdb import DuckDBPyConnection

from adaftr_fast._files import AnyPath, replacing, sha256
from adaftr_fast.data.dataset.manifest import Manifest, SplitInfo
from adaftr_fast.data.dataset.vocabulary import read_encoders
from adaftr_fast.data.memory import Memory
from adaftr_fast.data.parallel import Shard
from adaftr_fast.data.prepare.load import Loaded, load, open_files
from adaftr_fast.data.prepare.table import (
    Columns,
    RowWriter,
    connected,
    rows_with_ids,
    select_rows,
)
from adaftr_fast.data.prepare.work_folder import WorkFiles
from adaftr_fast.data.prepare.write import write_splits
from adaftr_fast.data.raw.source import Inputs, content_digest, data_files, listed
from adaftr_fast.data.schema.types import SPLITS, Field, Schema
from adaftr_fast.engines import Advance
from adaftr_fast.errors import DataError, EngineError

State = list[tuple[str, int, int, int, int]]
VISIBLE_SECONDS = 60.0  # in which a file of another machine must appear on a shared file system
POLL_SECONDS = 0.5


@dataclass(frozen=True)
class InputFiles:
    """The input files by role, and the name, size, modification time, inode and time of the last
    change of the inode that every file had when the run started.

    The last two tell a file that was replaced by one of equal size and time. They are 0 in a store,
    and for other machines, which may see other numbers.
    """

    paths: Inputs
    state: State
    is_here: bool = True  # on the machine that started prepare

    @classmethod
    def found(cls, paths: Inputs) -> InputFiles:
        """Returns the files as they are now. Raises DataError if one is missing."""
        found = cls(paths, [])
        return replace(found, state=found._state_now())

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(size for _, size, *_ in self.state)

    def files(self) -> list[AnyPath]:
        """Returns all files, those of a folder in reading order."""
        return [
            file for paths in self.paths.values() for path in paths for file in data_files(path)
        ]

    def _state_now(self) -> State:
        stats = [(file.name, file.stat()) for file in self.files()]
        return [
            (
                name,
                stat.st_size,
                stat.st_mtime_ns,
                getattr(stat, "st_ino", 0) if self.is_here else 0,
                getattr(stat, "st_ctime_ns", 0) if self.is_here else 0,
            )
            for name, stat in stats
        ]

    def elsewhere(self) -> InputFiles:
        """Returns the same files as other machines and processes with another current folder see
        them.
        """
        paths = {role: [path.absolute() for path in each] for role, each in self.paths.items()}
        state = [(name, size, changed, 0, 0) for name, size, changed, *_ in self.state]
        return InputFiles(paths, state, is_here=False)

    def check(self) -> None:
        """Raises DataError if a file has changed since this object was created."""
        if (now := self._state_now()) != self.state:
            names = {
                file[0] for file in now + self.state if now.count(file) != self.state.count(file)
            }
            raise DataError(
                f"{', '.join(sorted(names))}: changed during the run; run prepare again"
            )

    def check_seen(self) -> None:
        """Raises EngineError if this machine does not see these files, or sees others under their
        names.
        """
        paths = [path for each in self.paths.values() for path in each]
        for path in paths:
            check_seen(path)
        if self._state_now() != self.state:
            names = listed(map(str, paths))
            raise EngineError(
                f"node {socket.gethostname()}: {names}: sizes or times differ from those on the "
                "machine that started "
                "prepare; the files must be on a file system that all nodes share, and must not "
                "change"
            )


def check_seen(path: AnyPath, patience: float = 0.0) -> None:
    """Raises EngineError, which names this machine, if it does not see a file or folder within
    ``patience`` seconds.
    """
    end = time.monotonic() + patience
    while not path.exists():
        if time.monotonic() > end:
            node = f"node {socket.gethostname()}"
            raise EngineError(
                f"{node}: does not see {path}; it must be on a file system that all nodes share"
            )
        time.sleep(POLL_SECONDS)


@dataclass(frozen=True)
class Job:
    """What the steps of a run have in common.

    Attributes:
        inputs: the input files, or the generated log.
        tolerance: share of the rows of a text file that may be bad.
        grows: whether the ids of another prepared folder grow.
        remote: whether steps run on machines that share a file system.
        memory: the bound of each process that runs a step.
        columns: the columns of the table of the rows.
        texts: the fields whose values are text, even if all of them are integers.
    """

    schema: Schema
    inputs: InputFiles
    work: WorkFiles
    tolerance: float
    grows: bool
    remote: bool
    memory: Memory
    columns: Columns
    texts: set[str]

    @property
    def fitted(self) -> tuple[Field, ...]:
        """The fields whose training values are counted: ids grow, but the encodings of dense fields
        do not change.
        """
        return self.schema.fields if self.grows else self.schema.features

    def connected(
        self, path: Path | None, shard: Shard | None = None
    ) -> AbstractContextManager[DuckDBPyConnection]:
        """Provides a connection to a DuckDB file, or to a database in memory for None, of a step
        that runs for a shard, or of the process that merges.
        """
        limit = self.memory.tables if shard else self.memory.queries
        return connected(path, limit, self.work.spill(shard))

    def for_workers(self) -> Job:
        """Returns the job for processes with another current folder, on other machines."""
        work = replace(self.work, folder=self.work.folder.absolute())
        return replace(self, inputs=self.inputs.elsewhere(), work=work)

    def check_seen(self) -> None:
        """Raises EngineError if this machine lacks a file that the job needs."""
        if self.remote:
            self.inputs.check_seen()
            check_seen(self.work.steps, VISIBLE_SECONDS)


def hash_files(inputs: InputFiles, remote: bool, shard: Shard, advance: Advance) -> list[str]:
    """Returns the sha256 of the shard's share of the input files."""
    if remote:
        inputs.check_seen()
    files = inputs.files()
    if len(files) != len(inputs.state):
        inputs.check()
    digests = []
    for path in files[shard.stride]:
        digests.append(content_digest(path))
        advance(path.stat().st_size)
    return digests


def load_rows(job: Job, shard: Shard, advance: Advance) -> Loaded:
    """Writes the rows of a shard to a DuckDB file. Returns what is known of them."""
    job.check_seen()
    path, _ = job.work.shard(shard)
    with replacing(path) as new, job.connected(new, shard) as connection:
        writer = RowWriter(connection, "rows", job.columns.types, job.memory.batch)
        found = load(
            open_files(job.schema, job.inputs.paths),
            shard,
            writer,
            job.columns,
            tolerance=job.tolerance,
            memory=job.memory,
            advance=advance,
        )
        writer.finish()
    job.inputs.check()
    return found


def pick_rows(job: Job, item: tuple[Shard, dict[str, int]], advance: Advance) -> None:
    """Writes which rows of a shard each split has.

    Args:
        item: the shard, and the rows of the preceding ones by column of numbers.
    """
    shard, before = item
    job.check_seen()
    rows, path = job.work.shard(shard)
    with replacing(path) as new, job.connected(new, shard) as connection:
        select_rows(connection, job.columns, rows, before)


def encode(
    manifest: Manifest, width: float, job: Job, shard: Shard, advance: Advance
) -> dict[str, tuple[SplitInfo, str]]:
    """Writes the shard's file of every split. Returns what it holds and its sha256, by split.

    Args:
        manifest: that of the prepared folder, without its splits.
        width: mean bytes of the widest rows.
    """
    job.check_seen()
    encoders = read_encoders(job.work.prepared, manifest)
    with ExitStack() as stack:
        paths = {split: job.work.encoded(split, shard) for split in SPLITS}
        new = {split: stack.enter_context(replacing(path)) for split, path in paths.items()}
        connection = stack.enter_context(job.connected(None, shard))
        rows = rows_with_ids(
            connection,
            job.columns,
            encoders,
            job.work.shard(shard),
            job.work.ids,
            job.memory,
            width,
        )
        infos = write_splits(job.columns, encoders, rows, new, job.memory, advance)
    job.inputs.check()
    return {split: (infos[split], sha256(path)) for split, path in paths.items()}
