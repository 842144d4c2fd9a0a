"""``adaftr_fast.compare``: the results of several runs, and the options in which they differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adaftr_fast._files import AnyPath
from adaftr_fast._json import dumps
from adaftr_fast._locks import writing_folder
from adaftr_fast._tables import Table, paragraphs
from adaftr_fast.api.run import Run, run_folder
from adaftr_fast.errors import CheckpointError
from adaftr_fast.runs.compare import Recorded, differing_options, groups_by_data, read_runs
from adaftr_fast.stores import local_folder
from adaftr_fast.training.logger import METRICS
from adaftr_fast.training.result import PICTURE, REPORT, TrainedRun, result_table

if TYPE_CHECKING:
    from adaftr_fast._figures import Picture


@dataclass(frozen=True)
class Comparison:
    """Several runs beside each other. It prints as tables of their metrics and of the options in which they differ.

    Attributes:
        runs: the runs that could be read.
        unread: a line about each run that could not.
    """

    runs: list[Recorded]
    unread: list[str]

    @property
    def results(self) -> list[TrainedRun]:
        """The epochs and metrics of each run. ``test`` of an unfinished run is the validation of its last epoch."""
        return [run.result for run in self.runs]

    def table(self) -> Table:
        """Returns metrics, best epochs and speed, one row per run and task; AUCs in percent."""
        return result_table(self.results, "run")

    def options(self) -> Table:
        """Returns the options in which the runs differ, one row per run and one column per option."""
        differing = differing_options(self.runs)
        rows = [
            [run.result.name, *(_shown(values[number]) for values in differing.values())]
            for number, run in enumerate(self.runs)
        ]
        return Table(["run", *differing], rows, text_columns=1 + len(differing))

    def notes(self) -> list[str]:
        """Returns a line for each group of runs on the same data, if there are several, and for each unread run."""
        groups = groups_by_data(self.runs)
        has_same_ids = len({run.about.fingerprint for run in self.runs}) == 1
        what = (
            "Another data folder, whose metrics compare if it has the same rows"
            if has_same_ids
            else "Other data, whose metrics do not compare"
        )
        lines = [
            f"{what}: {', '.join(run.result.name for run in group)}: "
            f"{group[0].about.config.data.folder} ({group[0].about.fingerprint[:8]})"
            for group in (groups if len(groups) > 1 else ())
        ]
        return [*lines, *(f"Not read: {line}" for line in self.unread)]

    def curves(self) -> Picture:
        """Draws training loss, validation AUC and the quantiles of learned values by epoch."""
        from adaftr_fast.training.report import draw  # imports matplotlib

        return draw(self.results)

    def write(self, folder: str | AnyPath) -> None:
        """Writes ``report.md`` and ``report.png`` to ``folder``.

        Raises:
            BusyError: another process writes the folder.
            CheckpointError: it is the folder of a run, which has a report of its own.
            OSError: a file cannot be written.
        """
        from adaftr_fast.training.report import write_report  # imports matplotlib

        notes = "\n".join(f"- {line}" for line in self.notes())
        options = f"## Options that differ\n\n{self.options().markdown()}" if differing_options(self.runs) else ""
        with local_folder(folder) as target, writing_folder(target, REPORT, PICTURE):
            if (target / METRICS).exists():
                raise CheckpointError(f"out: expected a folder for the report, got the folder of a run: {folder}")
            write_report(target, "Comparison of runs", self.results, before=notes, after=options, first="run")

    def __repr__(self) -> str:
        options = [self.options().markdown()] if differing_options(self.runs) else []
        return "\n\n".join([self.table().markdown(), *options, *(["\n".join(self.notes())] if self.notes() else [])])

    def _repr_html_(self) -> str:
        options = self.options().html() if differing_options(self.runs) else ""
        return self.table().html() + options + paragraphs(*self.notes())


def compare(runs: Sequence[Run | str | AnyPath], out: str | AnyPath | None = None) -> Comparison:
    """Compares runs: test metrics, best epochs, speed, and the options in which they differ.

    An unfinished run is listed with the validation metrics of its last epoch. A run that cannot be read has a line in
    ``unread``.

    Args:
        runs: runs or their folders.
        out: a folder for ``report.md`` and ``report.png``; None writes no files.

    Raises:
        CheckpointError: no run can be read, or ``out`` is the folder of a run.
        TypeError: ``runs`` is not a list of runs and folders.
        BusyError, OSError: see ``Comparison.write``.
    """
    if isinstance(runs, Run | str | AnyPath):
        raise TypeError(f"runs: expected a list of runs or their folders, got {type(runs).__name__}")
    found, unread = read_runs([run_folder(run, "runs") for run in runs])
    if not found:
        raise CheckpointError(f"compare: no run can be read: {'; '.join(unread) or 'none is named'}")
    comparison = Comparison(found, unread)
    if out is not None:
        comparison.write(out)
    return comparison


def _shown(value: object) -> str:
    return value if isinstance(value, str) else dumps(value)
