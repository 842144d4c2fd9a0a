"""``adaftr_fast.export`` and ``adaftr_fast.predict``: models that score raw rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from adaftr_fast._tables import Table
from adaftr_fast.api.run import Run
from adaftr_fast.serving import predict as predicting
from adaftr_fast.serving.columns import output_columns
from adaftr_fast.serving.export import export_run
from adaftr_fast.serving.scorer import About, load_scorer
from adaftr_fast.training.result import metric_cells


@dataclass(frozen=True)
class ExportedModel:
    """A folder that scores raw rows. It prints as its files and validation metrics.

    Attributes:
        folder: holds the program, the schema and the vocabulary.
        about: tasks, validation metrics and checksums of the files.
    """

    folder: Path
    about: About

    def table(self) -> Table:
        """Validation metrics, a row a task."""
        return Table(["validation: task", "AUC", "GAUC", "log-loss"], metric_cells(self.about.metrics))

    def summary(self) -> str:
        """One line: the folder and its files."""
        return f"{self.folder}: {', '.join(self.about.sha256)}"

    def __repr__(self) -> str:
        return f"{self.summary()}\n{self.table().markdown()}"

    def _repr_html_(self) -> str:
        return f"<p>{self.summary()}</p>{self.table().html()}"


@dataclass(frozen=True)
class Scores:
    """A parquet file of scores. It prints as the number of rows, the columns and the speed.

    Attributes:
        path: the file.
        columns: the names of the scores.
        report: rows scored, rows left out, seconds.
    """

    path: Path
    columns: list[str]
    report: predicting.Report

    def read(self) -> pa.Table:
        """The whole file as an Arrow table."""
        return pq.read_table(self.path)

    def __repr__(self) -> str:
        report = self.report
        rate = report.rows / report.seconds
        lines = [f"{self.path}: {report.rows:,} rows, {', '.join(self.columns)} ({rate:,.0f} rows/s)"]
        if report.bad_rows.bad:
            lines.append(f"Left out: {report.bad_rows.summary()}")
        return "\n".join(lines)


def export(
    run: Run | str | Path,
    out: str | Path,
    *,
    data: str | Path | None = None,
    aot: bool = False,
    onnx: bool = False,
) -> ExportedModel:
    """Writes the best model of a run as a program that scores raw rows.

    Args:
        run: a run or its folder.
        out: the folder to write; one that an export wrote before is replaced.
        data: the prepared folder of the run, if it has moved since.
        aot: also compile a native package (AOTInductor; takes a minute).
        onnx: also write ONNX (needs the extra ``onnx``).

    Raises:
        CheckpointError: the run has no whole checkpoint, or its prepared data are gone or changed.
        ServingError: ``out`` holds something else, a compiler or ONNX is missing, or a program differs from the model.
    """
    folder = run.folder if isinstance(run, Run) else Path(run)
    about = export_run(folder, Path(out), data=None if data is None else Path(data), aot=aot, onnx=onnx)
    return ExportedModel(Path(out), about)


def predict(
    model: ExportedModel | str | Path,
    files: Sequence[str | Path] | str | Path,
    out: str | Path,
    *,
    keep: Sequence[str] = (),
    click: str | None = None,
    conversion: str | None = None,
    bid: str | None = None,
    bid_weight: float = 1.0,
    bad_rows: float = 0.0,
    progress: bool = True,
) -> Scores:
    """Scores raw rows with an exported model.

    Args:
        model: an exported model or its folder.
        files: raw rows as ``prepare`` reads them, labels not needed; of Ali-CCP pairs SKELETON COMMON.
        out: the parquet file to write.
        keep: input columns to put before the scores.
        click, conversion: the tasks that are p_ctr and p_ctcvr; by default those of that name.
        bid: adds the bid of Eq. 16 with p_c, the price of a conversion: a number, or the column that holds it.
        bid_weight: w of Eq. 16.
        bad_rows: share of the rows of a text file that may be unreadable; they are left out and reported.
        progress: show a progress bar.

    Raises:
        ServingError: no exported model, a damaged one, or ``out`` cannot be written.
        DataError: an unreadable input, a missing column, or too many bad rows.
    """
    folder = model.folder if isinstance(model, ExportedModel) else Path(model)
    files = [files] if isinstance(files, str | Path) else list(files)
    scorer = load_scorer(folder)
    columns = output_columns(scorer.about.tasks, click=click, conversion=conversion, bid=bid, bid_weight=bid_weight)
    options = {"keep": keep, "bad_rows": bad_rows, "progress": progress}
    report = predicting.predict(scorer, files, Path(out), columns, **options)
    return Scores(Path(out), list(columns.names()), report)
