"""Compares how many values are missing or unknown in rows that are scored and in the rows of training.

A model scores a file whose values it has never seen as readily as any other: ids with leading zeros, in another case,
or of another column.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from adaftr_fast.data.dataset.manifest import Manifest, SplitInfo
from adaftr_fast.data.encode.encoders import Encoder, Vocabulary

CHANCE = 10  # rows that a count may differ by, however few are expected


@dataclass(frozen=True)
class Unknown:
    """Missing or unknown values of scored rows.

    Attributes:
        rows: the number of rows.
        counts: rows per field whose value is missing or unknown, or whose list has no known token.
        splits: the training and the validation split of the prepared folder, which have such counts too: in training,
            rare values are unknown; in validation, values that training lacks are as well.
        vocabularies: the fields that have a vocabulary; numbers and hashed values are always known.
    """

    rows: int
    counts: Mapping[str, int]
    splits: Mapping[str, SplitInfo]
    vocabularies: Sequence[str]

    @classmethod
    def of(cls, rows: int, counts: Mapping[str, int], manifest: Manifest, encoders: Mapping[str, Encoder]) -> Unknown:
        """Returns the counts beside those of ``manifest``."""
        splits = {name: manifest.splits[name] for name in ("train", "validation")}
        vocabularies = [name for name, encoder in encoders.items() if isinstance(encoder, Vocabulary)]
        return cls(rows, counts, splits, vocabularies)

    def cells(self) -> list[list[str]]:
        """Returns a row per field: its name, and its share here, in training and in validation."""
        return [
            [name, _percent(count / max(1, self.rows)), self._before("train", name), self._before("validation", name)]
            for name, count in self.counts.items()
        ]

    def warnings(self) -> list[str]:
        """Returns a warning if no value is known, or else if the share of a field has more than doubled."""
        names = self.vocabularies
        if names and self.rows and all(self.counts[name] == self.rows for name in names):
            return [f"every value of {', '.join(names)} is missing or unknown: the model knows nothing of these rows"]
        doubled = [
            f"{name} ({here}, {train} in training, {validation} in validation)"
            for name, here, train, validation in self.cells()
            if self._is_telling(name)
        ]
        if not doubled:
            return []
        return [f"more than twice as many values as in training are missing or unknown: {'; '.join(doubled)}"]

    def _is_telling(self, name: str) -> bool:
        count, expected = self.counts[name], self._expected(name)
        return count > 2 * expected + CHANCE or count == self.rows > 2 * expected

    def _expected(self, name: str) -> float:
        return self.rows * max(info.unknown[name] / info.rows for info in self.splits.values())

    def _before(self, split: str, name: str) -> str:
        info = self.splits[split]
        return _percent(info.unknown[name] / info.rows)


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"
