"""Where a run stands, on disk: the two newest snapshots in ``last/``, one file each.

A file is safetensors whose metadata holds JSON, and its name ends in the sha256 of its whole content, so that nothing
in it can be cut off or changed unnoticed. It appears under that name when it is complete and on the disk.
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

from adaftr_fast._files import sha256, sync
from adaftr_fast._tensor_file import ChunkedTensor, SavedTensors, write_tensors
from adaftr_fast.errors import CheckpointError

KEEP = 2  # the newest, and one to fall back to
KEY, VERSION = "run", 1
SUFFIX = ".safetensors"
DIGITS = 32  # of the sha256, in a file's name


def save_snapshot(
    folder: Path, position: int, tensors: Mapping[str, Tensor | ChunkedTensor], run: dict[str, Any]
) -> None:
    """Adds a snapshot, then removes all but the ``KEEP`` newest; ``position`` rises from one to the next.

    Raises:
        CheckpointError: it cannot be written (a full disk, say); earlier ones are kept.
    """
    # Python's own JSON: nan and the infinities come back as they were.
    metadata = {KEY: json.dumps(run | {"version": VERSION})}
    temporary = folder / ".writing"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_tensors(temporary, tensors, metadata)
        sync(temporary)
        temporary.replace(folder / f"{position:012d}-{_digest(temporary)}{SUFFIX}")
        sync(folder)
        for stale in _newest_first(folder)[KEEP:]:
            stale.unlink()
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise CheckpointError(f"{folder}: cannot write a checkpoint, earlier ones are kept: {error}") from error


def load_snapshot(folder: Path) -> tuple[SavedTensors, dict[str, Any]] | None:
    """The newest snapshot that is whole; None where there is none. A damaged one is removed with a warning.

    Raises:
        CheckpointError: there are snapshots and all are damaged, or one cannot be read, or is of another version.
    """
    paths = _newest_first(folder)
    for path in paths:
        try:
            if _digest(path) == path.stem.rpartition("-")[2]:
                return _read(path)
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read: {error}") from error
        warnings.warn(f"{path}: damaged (its sha256 is not the one in its name): removed", RuntimeWarning, stacklevel=2)
        path.unlink()
    if paths:
        raise CheckpointError(f"{folder}: every checkpoint of the unfinished run was damaged: it can only begin anew")
    return None


def remove_snapshots(folder: Path) -> None:
    """Removes ``folder`` with all snapshots, if it is there."""
    if folder.exists():
        shutil.rmtree(folder)


def _read(path: Path) -> tuple[SavedTensors, dict[str, Any]]:
    try:
        tensors = SavedTensors(path)
        run = json.loads(tensors.metadata[KEY])
    except (SafetensorError, KeyError, ValueError) as error:
        raise CheckpointError(f"{path}: not a checkpoint of a run: {error}") from error
    if run.get("version") != VERSION:
        raise CheckpointError(f"{path}: version {run.get('version')}, this program reads version {VERSION}")
    return tensors, run


def _digest(path: Path) -> str:
    return sha256(path)[:DIGITS]


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"*-*{SUFFIX}"), reverse=True)
