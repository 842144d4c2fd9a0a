"""The folder that a run writes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from adaftr_fast._files import AnyPath
from adaftr_fast.distributed.ranks import ALONE, Ranks
from adaftr_fast.stores import as_path, local_copy, local_folder, parts_below


@dataclass(frozen=True)
class Output:
    """The folder that a command writes, on this machine and by its lasting name.

    Attributes:
        local: the folder that is written.
        path: the folder that the user named; ``local`` unless it is in a store.
    """

    local: Path
    path: AnyPath

    def recorded(self, path: AnyPath) -> str:
        """Returns the text that names a path on every machine: a URL for a path in the local folder
        of a store's.
        """
        if isinstance(path, Path) and path.is_relative_to(self.local):
            return str(self.path.joinpath(*path.relative_to(self.local).parts))
        return str(path)

    def found(self, name: str) -> AnyPath:
        """Returns the path that ``recorded`` names so."""
        path = as_path(name)
        inner = parts_below(path, self.path)
        return path if inner is None else self.local.joinpath(*inner)

    def local_copy(self, name: str) -> Path:
        """Returns a local folder with the content of ``found(name)``, see ``stores.local_copy``."""
        return local_copy(self.found(name))


HERE = Output(Path(), Path())
"""An output on this machine: every path has its own name."""


@contextmanager
def output(folder: str | AnyPath, ranks: Ranks = ALONE) -> Iterator[Output]:
    """Yields where ``folder`` is written, on every rank the same; see ``local_folder``.

    Rank 0 downloads and uploads. All ranks raise its errors.
    """
    place = as_path(folder)
    with ExitStack() as stack:
        local = ranks.after_rank_zero(lambda: str(stack.enter_context(local_folder(place))))
        yield Output(Path(local), place)
