"""The snapshots of one run: when to save them, and whether a run may resume from them."""

from __future__ import annotations

import time
from collections.abc import Mapping
from concurrent.futures import Future, wait
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from adaftr_fast._tensor_file import ChunkedTensor, SavedTensors
from adaftr_fast.config import RunConfig
from adaftr_fast.config.run import FREE_ON_RESUME
from adaftr_fast.errors import CheckpointError
from adaftr_fast.training.checkpoint.background import StateCopy, low_priority_thread
from adaftr_fast.training.checkpoint.progress import Progress
from adaftr_fast.training.checkpoint.snapshots import load_snapshot, remove_snapshots, save_snapshot
from adaftr_fast.training.checkpoint.weights import Description

LAST = "last"  # in the run folder; present while the run is unfinished
MEAN = "mean/"
Found = tuple[Progress, SavedTensors, dict[str, Tensor]]
"""The progress, the saved tensors (read on access) and the sums of the running means."""


class RunSnapshots:
    """Saves and loads the snapshots of one run.

    Args:
        folder: the run folder.
        about: the run's options and data. Snapshots of other options or data raise an error.
        rows: the number of rows of the training split.
        seconds: time between two snapshots of an epoch, in seconds. The next one starts after the last is written.
    """

    def __init__(self, folder: Path, about: Description, rows: int, seconds: float) -> None:
        self.folder, self.seconds = folder / LAST, seconds
        self.identity: dict[str, Any] = {"settings": about.config.flat(), "data": about.fingerprint, "rows": rows}
        self._saved_at = time.monotonic()
        self._copy, self._thread = StateCopy(), low_priority_thread()
        self._writing: Future[None] | None = None  # the write of the thread, until its error has been raised

    def due(self) -> bool:
        """Returns whether ``seconds`` have passed since the last snapshot, which must have been written.

        Raises:
            CheckpointError: the thread could not write the last snapshot.
        """
        if self._writing is not None:
            if not self._writing.done():
                return False
            self.wait()
        return time.monotonic() - self._saved_at >= self.seconds

    def start(self, progress: Progress, tensors: dict[str, Tensor], sums: dict[str, Tensor]) -> None:
        """Copies a snapshot in memory and starts to write it in a thread. The tensors may change afterwards.

        If memory does not suffice for the copy, it calls ``save`` instead.

        Raises:
            CheckpointError: the snapshot before could not be written.
        """
        self.wait()
        copied = self._copy.take(tensors | _means(sums))
        if copied is None:
            self.save(progress, tensors, sums)
            return
        position, run = self._description(progress)
        self._writing = self._thread.submit(self._write_copy, position, copied, run)
        self._saved_at = time.monotonic()

    def save(self, progress: Progress, tensors: Mapping[str, Tensor | ChunkedTensor], sums: dict[str, Tensor]) -> None:
        """Writes a snapshot, which is on disk on return. Raises CheckpointError if this or the last write fails."""
        self.wait()
        position, run = self._description(progress)
        save_snapshot(self.folder, position, {**tensors, **_means(sums)}, run)
        self._saved_at = time.monotonic()

    def wait(self) -> None:
        """Waits until the thread has written the snapshot. Raises CheckpointError if that failed."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def close(self) -> None:
        """Waits until the thread is idle; does not raise its error. For the end of training, also after an error."""
        if self._writing is not None:
            wait([self._writing])

    def _write_copy(self, position: int, tensors: dict[str, Tensor], run: dict[str, Any]) -> None:
        self._copy.wait()
        save_snapshot(self.folder, position, tensors, run)

    def _description(self, progress: Progress) -> tuple[int, dict[str, Any]]:
        """Returns the position and the metadata of a snapshot."""
        position = progress.total_steps + progress.epoch  # the end of an epoch comes after its last step
        return position, {"identity": self.identity, "progress": asdict(progress)}

    def load(self) -> Found | None:
        """Loads the newest snapshot; returns None if there is no unfinished run.

        Raises:
            CheckpointError: the unfinished run has other options or data, or no snapshot can be read.
        """
        found = load_snapshot(self.folder)
        if found is None:
            return None
        tensors, run = found
        self._check(run["identity"])
        sums = {name.removeprefix(MEAN): tensors[name] for name in tensors if name.startswith(MEAN)}
        return Progress(**run["progress"]), tensors, sums

    def discard(self) -> None:
        """Removes all snapshots. Raises CheckpointError like ``wait``."""
        self.wait()
        remove_snapshots(self.folder)

    def _check(self, saved: dict[str, Any]) -> None:
        then, now = DEFAULTS | saved["settings"], DEFAULTS | self.identity["settings"]
        for name in sorted((then.keys() | now.keys()) - FREE_ON_RESUME):
            if then.get(name) != now.get(name):
                raise CheckpointError(
                    f"{self.folder.parent}: contains an unfinished run with {name} = {then.get(name)}, this run has "
                    f"{now.get(name)}: resume it with its options, or discard it with --restart"
                )
        for name in ("data", "rows"):
            if saved[name] != self.identity[name]:
                raise CheckpointError(
                    f"{self.folder.parent}: contains an unfinished run on other data: discard it with --restart"
                )


def _means(sums: dict[str, Tensor]) -> dict[str, Tensor]:
    return {MEAN + name: value for name, value in sums.items()}


DEFAULTS = RunConfig().flat()
"""The values of options that are missing in a snapshot because they were added later."""
