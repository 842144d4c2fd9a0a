"""``adaftr_fast.compare``: the results of several runs, and the options in which they differ."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adaftr_fast.api.places import Place, local, output_folder
from adaftr_fast.api.run import run_folder
from adaftr_fast.display.tables import Shown, Table
from adaftr_fast.errors import CheckpointError
from adaftr_fast.files.json import dumps
from adaftr_fast.files.locks import writing_folder
from adaftr_fast.training.trained import METRICS, PICTURE, REPORT, Run, result_table

if TYPE_CHECKING:
    from adaftr_fast.display.figures import Picture


def read_runs(folders: Sequence[Path | str]) -> tuple[list[Run], list[str]]:
    """Returns the runs that can be read, in order, and a line about each other one. No weights are
    read.

    Args:
        folders: the folders, as ``place_of`` returns them.

    A run is named by the part of its path that the folders do not share. The ``test`` of an
    unfinished run holds the validation metrics of its last epoch, and its name says so.
    """
    folders = list(dict.fromkeys(folders))
    runs = []
    unread = []
    for folder, name in zip(folders, _names(folders)):
        try:
            run = Run.read(local(folder))
            if not run.epochs:
                raise CheckpointError(f"{folder}: no epoch has been recorded")
        except (CheckpointError, OSError) as error:
            unread.append(" ".join(str(error).split()))
            continue
        if run.test:
            runs.append(replace(run, name=name))
        else:
            label = f"{name} (unfinished: validation after epoch {run.trained_epochs:g})"
            runs.append(replace(run, name=label, test=run.epochs[-1]["validation"]))
    return runs, unread


def _names(folders: Sequence[Path | str]) -> list[str]:
    if not all(isinstance(folder, Path) for folder in folders):
        return [str(folder) for folder in folders]
    places = [Path(os.path.abspath(str(folder))) for folder in folders]
    if len(places) < 2:
        return [place.name for place in places]
    shared = os.path.commonpath(places)
    return [
        os.path.relpath(place, shared) if str(place) != shared else place.name for place in places
    ]


def differing_options(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """Returns the values of the options in which the runs differ, one per run; None where a run
    lacks the option.
    """
    flat = [run.config.flat() for run in runs]
    names = dict.fromkeys(name for each in flat for name in each)
    values = {name: [each.get(name) for each in flat] for name in names}
    return {name: each for name, each in values.items() if any(value != each[0] for value in each)}


def groups_by_data(runs: Sequence[Run]) -> list[list[Run]]:
    """Returns the runs in groups whose ids and tasks have one meaning, and which were trained on
    one folder.
    """
    groups: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        place = os.path.abspath(run.config.data.folder)
        groups.setdefault((run.about.fingerprint, place), []).append(run)
    return list(groups.values())


@dataclass(frozen=True, repr=False)
class Comparison(Shown):
    """Several runs beside each other. It prints as tables of their metrics and of the options in
    which they differ.

    Attributes:
        runs: the runs that could be read.
        unread: a line about each run that could not.
    """

    _gap = "\n\n"
    runs: list[Run]
    unread: list[str]

    def table(self) -> Table:
        """Returns metrics, best epochs and speed, one row per run and task; AUCs in percent."""
        return result_table(self.runs, "run")

    def options(self) -> Table:
        """Returns the options in which the runs differ, one row per run and one column
        per option.
        """
        differing = differing_options(self.runs)
        rows = [
            [run.name, *(_shown(values[number]) for values in differing.values())]
            for number, run in enumerate(self.runs)
        ]
        return Table(["run", *differing], rows, text_columns=1 + len(differing))

    def notes(self) -> list[str]:
        """Returns a line for each group of runs on the same data, if there are several, and for
        each unread run.
        """
        groups = groups_by_data(self.runs)
        has_same_ids = len({run.about.fingerprint for run in self.runs}) == 1
        what = (
            "Another data folder, whose metrics compare if it has the same rows"
            if has_same_ids
            else "Other data, whose metrics do not compare"
        )
        lines = [
            f"{what}: {', '.join(run.name for run in group)}: "
            f"{group[0].config.data.folder} ({group[0].about.fingerprint[:8]})"
            for group in (groups if len(groups) > 1 else ())
        ]
        return [*lines, *(f"Not read: {line}" for line in self.unread)]

    def curves(self) -> Picture:
        """Draws training loss, validation AUC and the quantiles of learned values by epoch."""
        from adaftr_fast.training.curves import draw  # imports matplotlib

        return draw(self.runs)

    def write(self, folder: Place) -> None:
        """Writes ``report.md`` and ``report.png`` to ``folder``.

        Raises:
            BusyError: another process writes the folder.
            CheckpointError: it is the folder of a run, which has a report of its own.
            OSError: a file cannot be written.
        """
        from adaftr_fast.training.report import write_report  # imports matplotlib

        notes = "\n".join(f"- {line}" for line in self.notes())
        options = (
            f"## Options that differ\n\n{self.options().markdown()}"
            if differing_options(self.runs)
            else ""
        )
        with output_folder(folder) as target, writing_folder(target, REPORT, PICTURE):
            if (target / METRICS).exists():
                raise CheckpointError(
                    f"out: expected a folder for the report, got the folder of a run: {folder}"
                )
            write_report(
                target, "Comparison of runs", self.runs, before=notes, after=options, first="run"
            )

    def _parts(self) -> list[str | Table]:
        options = [self.options()] if differing_options(self.runs) else []
        notes = "\n".join(self.notes())
        return [self.table(), *options, *([notes] if notes else [])]


def compare(runs: Sequence[Run | Place], out: Place | None = None) -> Comparison:
    """Compares runs: test metrics, best epochs, speed, and the options in which they differ.

    An unfinished run is listed with the validation metrics of its last epoch. A run that cannot be
    read has a line in ``unread``.

    Args:
        runs: runs or their folders.
        out: a folder for ``report.md`` and ``report.png``; None writes no files.

    Raises:
        CheckpointError: no run can be read, or ``out`` is the folder of a run.
        TypeError: ``runs`` is not a list of runs and folders.
        BusyError, OSError: see ``Comparison.write``.
    """
    if isinstance(runs, Run | str | os.PathLike):
        raise TypeError(
            f"runs: expected a list of runs or their folders, got {type(runs).__name__}"
        )
    found, unread = read_runs([run_folder(run, "runs") for run in runs])
    if not found:
        raise CheckpointError(
            f"compare: no run can be read: {'; '.join(unread) or 'none is named'}"
        )
    comparison = Comparison(found, unread)
    if out is not None:
        comparison.write(out)
    return comparison


def _shown(value: object) -> str:
    return value if isinstance(value, str) else dumps(value)
