"""Snapshot files: the two newest snapshots of a run in a folder, one file each.

A snapshot is a safetensors file with JSON metadata. Its name ends with the sha256 of its content, so a truncated or
changed file is detected. The file gets its name after it has been written and synced to disk.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from adaftr_fast._files import followed, sha256, sync
from adaftr_fast._tensor_file import ChunkedTensor, SavedTensors, write_tensors
from adaftr_fast.errors import CheckpointError

KEEP = 2  # the newest one and a fallback
KEY, VERSION = "run", 1
SUFFIX = ".safetensors"
DIGITS = 32  # of the sha256 in a file name


def save_snapshot(
    folder: Path, position: int, tensors: Mapping[str, Tensor | ChunkedTensor], run: dict[str, Any]
) -> None:
    """Writes a snapshot, then removes all but the ``KEEP`` newest ones.

    Args:
        folder: the folder of the snapshots.
        position: orders the snapshots; larger than that of earlier ones.
        tensors: the tensors by name.
        run: JSON metadata.

    Raises:
        CheckpointError: the file cannot be written, for example because the disk is full. Earlier snapshots remain.
    """
    # The json module preserves nan and infinities.
    metadata = {KEY: json.dumps(run | {"version": VERSION})}
    temporary = folder / ".writing"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        digest = write_tensors(temporary, tensors, metadata)[:DIGITS]
        sync(temporary)
        temporary.replace(folder / f"{position:012d}-{digest}{SUFFIX}")
        sync(folder)
        for stale in _newest_first(folder)[KEEP:]:
            stale.unlink()
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise CheckpointError(f"{folder}: cannot write a snapshot, earlier ones are kept: {error}") from error


def load_snapshot(folder: Path) -> tuple[SavedTensors, dict[str, Any]] | None:
    """Loads the newest intact snapshot. Damaged ones are removed with a warning.

    Returns:
        The tensors, read on access, and the metadata. None if there is no snapshot.

    Raises:
        CheckpointError: all snapshots are damaged, or one cannot be read or has another version.
    """
    paths = _newest_first(folder)
    for path in paths:
        try:
            if sha256(path)[:DIGITS] == path.stem.rpartition("-")[2]:
                return _read(path)
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read: {error}") from error
        warnings.warn(f"{path}: damaged (its sha256 differs from its name), removed", RuntimeWarning, stacklevel=2)
        path.unlink()
    if paths:
        raise CheckpointError(f"{folder}: all snapshots of the unfinished run are damaged: the run must restart")
    return None


def remove_snapshots(folder: Path) -> None:
    """Removes ``folder`` and all snapshots in it, if it exists."""
    if folder.exists():
        shutil.rmtree(followed(folder))
        sync(folder.parent)  # or they would be there again after a power failure, and the finished run be resumed


def _read(path: Path) -> tuple[SavedTensors, dict[str, Any]]:
    try:
        tensors = SavedTensors(path)
        run = json.loads(tensors.metadata[KEY])
    except (SafetensorError, KeyError, ValueError) as error:
        raise CheckpointError(f"{path}: not a snapshot: {error}") from error
    if run.get("version") != VERSION:
        raise CheckpointError(f"{path}: version {run.get('version')}, this program reads version {VERSION}")
    return tensors, run


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"*-*{SUFFIX}"), reverse=True)
