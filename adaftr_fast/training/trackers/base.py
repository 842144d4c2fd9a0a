"""What every tracker does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

Numbers = Mapping[str, float]
"""Numbers by name, such as "validation/click/auc". An undefined metric is nan."""


@dataclass(frozen=True)
class Opening:
    """What a tracker is opened with.

    Attributes:
        folder: the run folder.
        parameters: the options of the run as ``section.option`` -> value.
        first_step: the first step that will be logged, from which on what an interrupted process logged is void. The
            step of a validation is its number in the run.
        known: what ``known`` of the tracker of the interrupted process was; None to begin a run.
    """

    folder: Path
    parameters: Mapping[str, Any]
    first_step: int
    known: str | None

    @property
    def name(self) -> str:
        """The last two parts of the run folder, such as "runs/mine"."""
        return "/".join(self.folder.resolve().parts[-2:])


class Tracker(Protocol):
    """A run in a tracker. Its constructor takes an ``Opening``; it and the methods raise what the package raises.

    Attributes:
        known: what identifies the run to a process that resumes it.
    """

    known: str

    def log(self, numbers: Numbers, step: int) -> None:
        """Logs the numbers of a validation. What is logged is not lost if the process is killed later, W&B aside."""

    def log_test(self, numbers: Numbers) -> None:
        """Logs the metrics on the test split, once."""

    def close(self, failed: bool) -> None:
        """Ends the run, which another process may resume if training ``failed`` or was interrupted."""
