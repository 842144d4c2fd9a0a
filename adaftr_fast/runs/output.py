"""The folder that a run writes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from adaftr_fast.training.files import OpenTrackers


@dataclass(frozen=True)
class Output:
    """The folder that a command writes, on this machine and by its lasting name.

    Attributes:
        local: the folder that is written.
        url: the name of the folder on every machine, if ``local`` is uploaded.
        copied: returns a local path with the content of what a text names.
        save: uploads the folder, if that is due. Called when it can be resumed from. On ranks other
            than 0 it does nothing. None for a folder that is not uploaded.
        open_trackers: opens the trackers of a run in the folder; None if a run may have none.
    """

    local: Path
    url: str | None = None
    copied: Callable[[str], Path] = Path
    save: Callable[[], None] | None = None
    open_trackers: OpenTrackers | None = None

    def recorded(self, path: Path | str) -> str:
        """Returns the text that names a path on every machine, where there is one."""
        if self.url is None or not Path(path).is_relative_to(self.local):
            return str(path)
        return "/".join([self.url, *Path(path).relative_to(self.local).parts])

    def found(self, name: str) -> Path:
        """Returns a local path with the content of what ``recorded`` names so."""
        if self.url is not None and f"{name}/".startswith(f"{self.url}/"):
            return self.local / name[len(self.url) :].strip("/")
        return self.copied(name)


HERE = Output(Path())
"""An output on this machine: every path has its own name."""
