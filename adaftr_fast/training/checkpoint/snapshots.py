"""Snapshot files: the two newest snapshots of a run in a folder.

A snapshot is a safetensors file with JSON metadata. Its name ends with the CRC-32 of its content, so a truncated or
changed file is detected. The file gets its name after it has been written and synced to disk.

With sharded tables the rows are in shard files beside it, one per rank, and its metadata lists them. It is written
after all of them.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from adaftr_fast._files import CRC32, check_name, crc32, followed, make_folder, remove_new, sync
from adaftr_fast._json import from_json, loads
from adaftr_fast._tensor_file import SavedTensors
from adaftr_fast.distributed.ranks import Ranks
from adaftr_fast.errors import CheckpointError
from adaftr_fast.training.checkpoint.files import damages, on_rank_zero, write_file

KEEP = 2  # the newest one and a fallback
KEY, SHARDS = "run", "shards"
VERSION = 4
CHECKSUM_DIGITS = 8  # of crc32
SUFFIX = ".safetensors"
SHARD_SUFFIX = ".shard"


def save_snapshot(
    folder: Path, position: int, tensors: Mapping[str, Tensor], run: dict[str, Any], shards: Sequence[str] = ()
) -> None:
    """Writes a snapshot, then removes all but the ``KEEP`` newest ones.

    Args:
        folder: the folder of the snapshots.
        position: orders the snapshots; larger than that of earlier ones.
        tensors: the tensors by name.
        run: JSON metadata.
        shards: the names of the files that ``save_shard`` has written on all ranks for this snapshot.

    Raises:
        CheckpointError: the file cannot be written, for example because the disk is full. Earlier snapshots remain.
    """
    run = run | {"version": VERSION} | ({SHARDS: list(shards)} if shards else {})
    name = f"{position:012d}-{{}}{SUFFIX}"
    with _writing(folder):
        # The json module preserves nan and infinities.
        write_file(folder, name, tensors, {KEY: json.dumps(run)}, CRC32())
        _remove_stale(folder)


def save_shard(folder: Path, position: int, rank: int, rows: Mapping[str, Tensor]) -> str:
    """Writes the rows of a rank for the snapshot of ``position``, on disk on return; returns the name of the file.

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


def load_snapshot(folder: Path, ranks: Ranks | None = None) -> tuple[SavedTensors, dict[str, Any]] | None:
    """Loads the newest intact snapshot. Damaged ones are removed with a warning.

    Args:
        folder: the folder of the snapshots.
        ranks: the ranks that all call it and see ``folder``; None if this process alone calls it.

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
                # Earlier versions have another checksum in the name: _description refuses them, and they stay.
                if len(checksum) != CHECKSUM_DIGITS or crc32(path) == checksum:
                    return path.name
            except OSError as error:
                raise CheckpointError(f"{path}: cannot be read: {error}") from error
            remove(path, "its content differs from the checksum in its name")
        if removed:
            raise CheckpointError(f"{folder}: all snapshots of the unfinished run are damaged: the run must restart")
        return None

    def remove(path: Path, reason: str) -> None:
        warnings.warn(f"{path}: damaged ({reason}), removed", RuntimeWarning, stacklevel=3)
        path.unlink()
        removed.append(path)

    while (name := on_rank_zero(ranks, newest)) is not None:
        path = folder / name
        run, shards = _description(path)
        faults = damages(folder, {each: _checksum(each) for each in shards}, crc32, ranks)
        if not faults:
            return _opened(path, shards), run
        if ranks is None or ranks.is_rank_zero:
            remove(path, faults[0])
    return None


def remove_snapshots(folder: Path) -> None:
    """Removes ``folder`` and all snapshots in it, if it exists."""
    if folder.exists():
        for head in reversed(_newest_first(folder)):  # first, or a kill could leave them without their shards
            head.unlink()
        sync(folder)
        shutil.rmtree(followed(folder))
        sync(folder.parent)  # or they would be there again after a power failure, and the finished run be resumed


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        make_folder(folder)
        yield
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot write a snapshot, earlier ones are kept: {error}") from error


def _remove_stale(folder: Path) -> None:
    """Removes old snapshots, shards of none of the others, and what killed processes left.

    Call it while no rank writes.
    """
    newest_first = _newest_first(folder)
    positions = {path.name.partition("-")[0] for path in newest_first[:KEEP]}
    shards = [path for path in folder.glob(f"*-*{SHARD_SUFFIX}") if path.name.partition("-")[0] not in positions]
    for path in [*newest_first[KEEP:], *shards]:
        path.unlink()
    remove_new(folder)


def _checksum(name: str) -> str:
    """Returns the checksum in the name of a file."""
    return Path(name).stem.rpartition("-")[2]


def _description(path: Path) -> tuple[dict[str, Any], list[str]]:
    """Returns the metadata of a snapshot and the names of its shard files."""
    run = _run(path)
    if (version := run.get("version")) != VERSION:
        raise CheckpointError(
            f"{path}: written in version {version}, this program reads version {VERSION}: discard it with --restart"
        )
    try:
        shards = from_json(list[str], run.get(SHARDS, []))
        for each in shards:
            check_name(each, SHARDS)
    except ValueError as error:
        raise CheckpointError(f"{path}: not a snapshot: {error}") from error
    return run, shards


def _run(path: Path) -> dict[str, Any]:
    try:
        return from_json(dict[str, Any], loads(_opened(path, []).metadata.get(KEY, "{}")))
    except ValueError as error:
        raise CheckpointError(f"{path}: not a snapshot: {error}") from error


def _opened(path: Path, shards: list[str]) -> SavedTensors:
    try:
        return SavedTensors(path, [path.with_name(each) for each in shards])
    except (SafetensorError, ValueError, OSError) as error:
        raise CheckpointError(f"{path}: not a snapshot: {error}") from error


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"*-*{SUFFIX}"), reverse=True)
