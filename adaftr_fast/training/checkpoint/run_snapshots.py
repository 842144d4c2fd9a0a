"""Saving a run where it stands, and taking it up again: the bridge between a trainer's state and ``last/``."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from adaftr_fast._tensor_file import ChunkedTensor, SavedTensors
from adaftr_fast.config import RunConfig
from adaftr_fast.config.run import FREE_ON_RESUME
from adaftr_fast.errors import CheckpointError
from adaftr_fast.training.checkpoint.progress import Progress
from adaftr_fast.training.checkpoint.snapshots import load_snapshot, remove_snapshots, save_snapshot
from adaftr_fast.training.checkpoint.weights import Description

LAST = "last"  # inside a run's folder; there while the run is unfinished
MEAN = "mean/"
Found = tuple[Progress, SavedTensors, dict[str, Tensor]]
"""Progress, what ``save`` was given (read when it is asked for), and sums of the running means."""


class RunSnapshots:
    """The snapshots of one run.

    Args:
        folder: the run's folder.
        about: the run's settings and data; a snapshot of other ones is refused.
        rows: of the training split.
        seconds: time between two snapshots within an epoch.
    """

    def __init__(self, folder: Path, about: Description, rows: int, seconds: float) -> None:
        self.folder, self.seconds = folder / LAST, seconds
        self.identity = {"settings": about.config.flat(), "data": about.fingerprint, "rows": rows}
        self._saved_at = time.monotonic()

    def due(self) -> bool:
        return time.monotonic() - self._saved_at >= self.seconds

    def save(self, progress: Progress, tensors: Mapping[str, Tensor | ChunkedTensor], sums: dict[str, Tensor]) -> None:
        """Raises CheckpointError when it cannot be written."""
        means = {MEAN + name: value for name, value in sums.items()}
        run = {"identity": self.identity, "progress": asdict(progress)}
        position = progress.total_steps + progress.epoch  # the end of an epoch comes after its last step
        save_snapshot(self.folder, position, {**tensors, **means}, run)
        self._saved_at = time.monotonic()

    def load(self) -> Found | None:
        """What the newest snapshot holds; None where there is no unfinished run.

        Raises:
            CheckpointError: the unfinished run has other settings or data, or nothing of it can be read.
        """
        found = load_snapshot(self.folder)
        if found is None:
            return None
        tensors, run = found
        self._check(run["identity"])
        sums = {name.removeprefix(MEAN): tensors[name] for name in tensors if name.startswith(MEAN)}
        return Progress(**run["progress"]), tensors, sums

    def discard(self) -> None:
        """Removes all snapshots: the run is finished, or shall begin anew."""
        remove_snapshots(self.folder)

    def _check(self, saved: dict[str, Any]) -> None:
        then, now = DEFAULTS | saved["settings"], DEFAULTS | self.identity["settings"]
        for name in sorted((then.keys() | now.keys()) - FREE_ON_RESUME):
            if then.get(name) != now.get(name):
                raise CheckpointError(
                    f"{self.folder.parent}: holds an unfinished run with {name} = {then.get(name)}, "
                    f"this one has {now.get(name)}: continue with its settings, or begin anew (--restart)"
                )
        for name in ("data", "rows"):
            if saved[name] != self.identity[name]:
                raise CheckpointError(f"{self.folder.parent}: holds an unfinished run on other data (--restart)")


DEFAULTS = RunConfig().flat()
"""The settings of a run from before an option existed."""
