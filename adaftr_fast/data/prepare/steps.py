"""The steps of ``prepare``: hash files, stage text, count values, encode rows.

A step is a pure function of a job and a shard, which are pickled where an engine runs it in another
process, as its result is. It writes its files atomically under names that depend on these arguments
only. Running it again, even at the same time, changes nothing: files get the same content.
"""

from __future__ import annotations

import pickle
import socket
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from adaftr_fast.data.arrow import shown
from adaftr_fast.data.dataset.manifest import Manifest
from adaftr_fast.data.dataset.split_file import split_info
from adaftr_fast.data.encode.encoders import count_values
from adaftr_fast.data.encode.vocabulary import read_encoders
from adaftr_fast.data.memory import Memory
from adaftr_fast.data.parallel import UNSHARDED, Shard
from adaftr_fast.data.prepare.split_writer import write_splits
from adaftr_fast.data.prepare.work_folder import WorkFiles
from adaftr_fast.data.raw.source import Account, Inputs, Source, data_files, listed
from adaftr_fast.data.raw.staging import Staged, TextInput, check_staged, stage
from adaftr_fast.data.schema.types import SPLITS, Field, Schema
from adaftr_fast.engines import Advance
from adaftr_fast.errors import DataError, EngineError
from adaftr_fast.files.whole import replacing, sha256

State = list[tuple[str, int, int, int, int]]
VISIBLE_SECONDS = 60.0  # in which a file of another machine must appear on a shared file system
POLL_SECONDS = 0.5


@dataclass(frozen=True)
class InputFiles:
    """The input files by role, and the name, size, modification time, inode and time of the last
    change of the inode that every file had when the run started.

    The last two tell a file that was replaced by one of equal size and time. They are 0 for other
    machines, which may see other numbers.
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

    def files(self) -> list[Path]:
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
                stat.st_ino if self.is_here else 0,
                stat.st_ctime_ns if self.is_here else 0,
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


def check_seen(path: Path, patience: float = 0.0) -> None:
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
        digest: the sha256 of schema and inputs.
        tolerance: share of the rows of a text file that may be bad.
        grows: whether the ids of another prepared folder grow.
        texts: the text files to stage, in rounds.
        rows: the parquet files and folders that hold all rows once all text is staged, by role.
        remote: whether steps run on machines that share a file system.
        memory: the bound of each process that runs a step.
        blocks: number of staged blocks of each text file, by name of its folder.
    """

    schema: Schema
    inputs: InputFiles
    work: WorkFiles
    digest: str
    tolerance: float
    grows: bool
    texts: list[list[TextInput]]
    rows: Inputs
    remote: bool
    memory: Memory
    blocks: dict[str, int] = field(default_factory=dict)

    @property
    def fitted(self) -> tuple[Field, ...]:
        """The fields whose training values are counted: ids grow, but the encodings of dense fields
        do not change.
        """
        return self.schema.fields if self.grows else self.schema.features

    def for_workers(self) -> Job:
        """Returns the job for processes with another current folder, on other machines."""
        texts = [[text.absolute() for text in each] for each in self.texts]
        rows = {role: [path.absolute() for path in each] for role, each in self.rows.items()}
        return replace(self, inputs=self.inputs.elsewhere(), texts=texts, rows=rows)

    def check_seen(self) -> None:
        """Raises EngineError if this machine lacks a file that the job needs, or OSError for a
        staged one.
        """
        if self.remote:
            self.inputs.check_seen()
            check_seen(self.work.prepared, VISIBLE_SECONDS)
        for name, blocks in self.blocks.items():
            check_staged(self.work.staged / name, blocks, VISIBLE_SECONDS if self.remote else 0.0)

    def source(self, shard: Shard = UNSHARDED) -> Source:
        """Returns the rows of a shard, once all text is staged."""
        named = self.inputs.paths
        return Source(self.schema, self.rows, shard, named=named, memory=self.memory)


def hash_files(inputs: InputFiles, remote: bool, shard: Shard, advance: Advance) -> list[str]:
    """Returns the sha256 of the shard's share of the input files."""
    if remote:
        inputs.check_seen()
    files = inputs.files()
    if len(files) != len(inputs.state):
        inputs.check()
    digests = []
    for path in files[shard.stride]:
        digests.append(sha256(path))
        advance(path.stat().st_size)
    return digests


def read(number: int, job: Job, shard: Shard, advance: Advance) -> dict[str, list[Staged]]:
    """Stages the shard's blocks of the text files of round ``number``. Returns what is known of
    those of each file.
    """
    job.check_seen()
    return {
        text.folder.name: stage(
            text,
            shard,
            tolerance=job.tolerance,
            check=job.inputs.check,
            advance=advance,
            memory=job.memory,
        )
        for text in job.texts[number]
    }


def count(job: Job, shard: Shard, advance: Advance) -> dict[str, Any]:
    """Writes counts of values, and the groups of every split in order of appearance.

    Counted are the columns that labels compare with text, in all rows, and every field's training
    values.

    Returns:
        The rows that are in no split, and those that lack a label.
    """
    job.check_seen()
    source = job.source(shard)
    account = Account(job.schema)
    counts = count_values(job.fitted, source.count(account, advance), job.memory)
    with replacing(job.work.counts(shard)) as new, new.open("wb") as file:
        for each in (*account.texts.values(), *account.groups.values(), *counts.values()):
            pickle.dump(each, file)
    job.inputs.check()
    return {"unused": account.unused, "unlabelled": account.unlabelled}


def encode(manifest: Manifest, job: Job, shard: Shard, advance: Advance) -> dict[str, Any]:
    """Writes the shard's file of every split. Returns its ``SplitInfo`` and its sha256, by split.

    Args:
        manifest: that of the prepared folder, without its splits.
    """
    job.check_seen()
    source = job.source(shard)
    schema = job.schema
    encoders = read_encoders(job.work.prepared, manifest)
    paths = {split: job.work.encoded(split, shard) for split in SPLITS}
    with job.work.groups.open("rb") as file:
        groups = pickle.load(file)
    for splits in schema.splits_of_inputs():
        raw = listed(map(shown, job.inputs.paths[schema.split[splits[0]].file]))
        write_splits(
            schema,
            encoders,
            groups,
            raw,
            source.scan(splits, advance),
            {split: paths[split] for split in splits},
            job.inputs.check,
            job.memory,
        )
    results = {
        split: {"info": split_info(path), "sha256": sha256(path)} for split, path in paths.items()
    }
    job.inputs.check()
    return results
