"""The files of a work folder. Their names depend on the step and the shard only, so a step may run twice.

The steps of all shards share the folder, on one machine or several. Nothing else names or creates its files.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adaftr_fast._files import make_folder, replace_file
from adaftr_fast._json import dumps
from adaftr_fast.data.dataset.split_file import split_file_name
from adaftr_fast.data.prepare.work_folder import KEY, PREPARED
from adaftr_fast.data.schema.types import SPLITS
from adaftr_fast.data.shard import Shard


@dataclass(frozen=True)
class WorkFiles:
    """The files of a work folder.

    Attributes:
        folder: the work folder.
        inputs: the digest of schema and inputs. Steps write to a folder of this name, so that a worker that is taken
            for lost cannot write among files of other inputs later.
    """

    folder: Path
    inputs: str

    @property
    def key(self) -> Path:
        """The file that every work folder has."""
        return self.folder / KEY

    @property
    def steps(self) -> Path:
        """The folder of all that steps write."""
        return self.folder / f"steps-{self.inputs[:16]}"

    @property
    def staged(self) -> Path:
        """Folders of staged text, by role."""
        return self.steps / "staged"

    @property
    def prepared(self) -> Path:
        """The prepared folder in progress, to which only the merging process writes."""
        return self.folder / PREPARED

    def counts(self, shard: Shard) -> Path:
        """Counts of the values of a shard: of the columns that labels compare with text, then of the fields."""
        return self.steps / "counted" / f"fields-{_of(shard)}.arrow"

    def groups(self, split: str, shard: Shard | None = None) -> Path:
        """Groups of a split, of one shard or of all."""
        return self.steps / "counted" / f"groups-{split}{f'-{_of(shard)}' if shard else ''}.parquet"

    def encoded(self, split: str, shard: Shard) -> Path:
        """Encoded rows of a shard, before they are moved to ``prepared``."""
        return self.steps / "encoded" / split_file_name(split, shard)

    def make_folders(self) -> None:
        """Creates the folders of the steps. A lost worker creates none, so that it adds nothing to other work."""
        for path in (self.staged, self.counts(Shard()).parent, self.encoded(SPLITS[0], Shard()).parent, self.prepared):
            make_folder(path)

    def recorded(self, step: str, shard: Shard | None = None) -> Any:
        """Returns the result of a finished step, of one shard or merged; None if it is not finished."""
        path = self._result(step, shard)
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    def record(self, step: str, result: Any, shard: Shard | None = None) -> None:
        """Records a result, a value that JSON can represent, once the files that it stands for are on disk."""
        replace_file(self._result(step, shard), dumps(result).encode())

    def _result(self, step: str, shard: Shard | None) -> Path:
        return self.folder / (f"{step}-{_of(shard)}.json" if shard else f"{step}.json")


def _of(shard: Shard) -> str:
    return f"{shard.number:05d}-of-{shard.count:05d}"
