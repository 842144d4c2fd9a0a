"""The results of the runs of a study, one line each, in a results file that tables are made from."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path

from benchmarks.cells import Cell, Record, train_all
from benchmarks.measure import machine, save
from benchmarks.render import Case, Cases


class Store:
    """The runs of a study in a results file.

    Args:
        path: the file; it need not exist.
        names: the keys of a line that identify its run; a line may lack some.
    """

    def __init__(self, path: Path, names: tuple[str, ...]) -> None:
        self.path = path
        self._names = names
        known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"cases": []}
        self._machine = known.get("machine", {})
        self._commit = known.get("commit")
        self._lines = {self._key(line): line for line in known["cases"]}

    def cases(self) -> Cases:
        """Returns the lines of all runs."""
        return list(self._lines.values())

    def lacks(self, run: Case) -> bool:
        """Returns whether there is no line of a run."""
        return self._key(run) not in self._lines

    def train(
        self, planned: Iterable[tuple[Case, Cell]], found: Callable[[Record], Case], jobs: int
    ) -> Cases:
        """Trains the runs that the file lacks, adds them and writes it.

        Args:
            planned: what identifies each run, and its cell.
            found: returns the keys of a line that hold what its run has found.
            jobs: the number of parallel runs, each on one thread.

        Returns:
            The lines of the planned runs, in their order.

        Raises:
            KeyboardInterrupt, BrokenProcessPool: as ``train_all``.
        """
        planned = list(planned)
        missing = [(run, cell) for run, cell in planned if self.lacks(run)]
        records = train_all([cell for _, cell in missing], jobs)
        self.add(
            run | origin(record) | found(record)
            for run, cell in missing
            for record in [records[cell.key]]
        )
        return [self._lines[self._key(run)] for run, _ in planned]

    def add(self, lines: Iterable[Case]) -> None:
        """Adds lines and writes the file, whose head names all commits and processors."""
        new = {self._key(line): line for line in lines}
        if new.keys() <= self._lines.keys():
            return
        self._lines |= new
        on = machine() | {"threads": 1}
        for name in ("cpu", "in use"):
            on[name] = _joined(self._machine.get(name), [on[name]])
        self._machine = on
        self._commit = _joined(self._commit, [line["commit"] for line in new.values()])
        save(self.path, {"machine": on}, self.cases(), commit=self._commit)

    def _key(self, line: Case) -> str:
        return json.dumps([line.get(name) for name in self._names])


def origin(record: Record) -> Case:
    """Returns the keys of a line that say what trained its run, on which data."""
    return {"data": record.fingerprint[:12], "commit": record.commit, "cpu": record.cpu}


def _joined(known: str | None, new: Iterable[str]) -> str:
    """Joins the parts of ``known`` and new ones by "+", each once."""
    return " + ".join(dict.fromkeys([*(known.split(" + ") if known else []), *new]))
