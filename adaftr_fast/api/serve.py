"""``adaftr_fast.export`` and ``adaftr_fast.predict``: models that score raw rows."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from adaftr_fast.api.places import Place, local, output_file, output_folder, place_of
from adaftr_fast.api.prepare import Names, local_inputs
from adaftr_fast.api.run import run_folder
from adaftr_fast.data.dataset.loader import PreparedData
from adaftr_fast.data.memory import Memory
from adaftr_fast.data.raw.tables import Inputs, input_files
from adaftr_fast.display.tables import Shown, Table
from adaftr_fast.errors import DataError
from adaftr_fast.models.build import ModelClass
from adaftr_fast.serving import predict as predicting
from adaftr_fast.serving.columns import Cvr
from adaftr_fast.serving.export import export_run
from adaftr_fast.serving.scorer import About, load_scorer
from adaftr_fast.training.checkpoint.weights import read_description
from adaftr_fast.training.trained import BEST, METRIC_COLUMNS, Run, metric_cells


@dataclass(frozen=True, repr=False)
class ExportedModel(Shown):
    """A folder that scores raw rows. It prints as its files and a table of validation metrics.

    With int8 tables it also prints their size beside that in float32, and the metrics beside those
    in float32.

    Attributes:
        folder: the folder with the program, the schema and the vocabulary.
        about: the tasks, the validation metrics and the checksums of the files.
    """

    folder: Path | str
    about: About

    def __fspath__(self) -> str:
        """Returns the folder, or a local copy of it, so that ``load_scorer`` and other functions
        take the model for its path.
        """
        return str(local(self.folder))

    def table(self) -> Table:
        """Returns a table of validation metrics with a row per task, and with int8 tables a second
        one.
        """
        rows = metric_cells(self.about.metrics)
        if self.about.int8 is not None:
            rows += [
                [f"{task}, int8 tables", *cells]
                for task, *cells in metric_cells(self.about.int8.metrics)
            ]
        return Table(["validation: task", *METRIC_COLUMNS], rows)

    def summary(self) -> str:
        """Returns one line with the folder and its files, and the size of int8 tables."""
        files = f"{self.folder}: {', '.join(self.about.sha256)}"
        if self.about.int8 is None:
            return files
        size, before = (
            each / 1e6 for each in (self.about.int8.nbytes, self.about.int8.float32_nbytes)
        )
        return f"{files}; tables: {size:,.1f} MB in int8, {before:,.1f} MB in float32"

    def _parts(self) -> list[str | Table]:
        return [self.summary(), self.table(), *self.about.doubts]


@dataclass(frozen=True, repr=False)
class Scores(Shown):
    """A parquet file of scores. It prints as the number of rows, the columns and the speed, and a
    table of the fields.

    Attributes:
        path: the file.
        columns: the names of the scores' columns.
        report: the rows scored, the rows left out, the missing or unknown values, and the seconds
            it took.
        doubts: why the model may not be worth using, as the training of the model found.
    """

    path: Path | str
    columns: list[str]
    report: predicting.Report
    doubts: list[str] = field(default_factory=list)

    def read(self) -> pa.Table:
        """Reads the whole file as an Arrow table."""
        with pq.ParquetFile(local(self.path), page_checksum_verification=True) as file:
            return file.read()

    def unknown(self) -> Table:
        """Returns a table with the share of values that are missing or unknown, per field: here,
        and in training.
        """
        header = ["field", "missing or unknown", "in training", "in validation"]
        return Table(header, self.report.unknown.cells())

    def lines(self) -> list[str]:
        """Returns a line with the file, its rows and the speed, and one each about lines of text
        and rows left out.
        """
        report = self.report
        rate = report.rows / report.seconds
        lines = [
            f"{self.path}: {report.rows:,} rows, {', '.join(self.columns)} ({rate:,.0f} rows/s)"
        ]
        if report.bad_rows.lines is not None:
            lines.append(f"Read: {report.bad_rows.account()}")
        if report.bad_rows.bad:
            lines.append(f"Left out: {report.bad_rows.summary()}")
        return lines

    def _parts(self) -> list[str | Table]:
        return [*self.lines(), self.unknown(), *self.doubts]


def export(
    run: Run | Place,
    out: Place,
    *,
    data: PreparedData | Place | None = None,
    aot: bool = False,
    onnx: bool = False,
    int8: bool = False,
    task: str | None = None,
    model_class: ModelClass | None = None,
) -> ExportedModel:
    """Writes the best model of a run as a program that scores raw rows.

    Args:
        run: a run or its folder.
        out: the folder to write; one that an export wrote before is replaced.
        data: the prepared folder of the run, if it has moved since.
        aot: also compile a native package (AOTInductor; takes a minute).
        onnx: also write ONNX (needs the extra ``onnx``).
        int8: round the embedding tables to int8 with a scale per row, in every program, and measure
            the model anew on the validation split (docs/serving.md).
        task: the one task to export, without the parameters that only other tasks need
            (docs/serving.md); None exports all tasks.
        model_class: the class of a model of one's own, or its name; a ``Run`` knows it.

    Raises:
        CheckpointError: the run has no whole checkpoint or needs ``model_class``, or its prepared
            data are gone or changed.
        ConfigError: ``model_class`` is not a model, or the run has a built-in one.
        ServingError: ``out`` holds something else, there is no such task or it does not run alone,
            a compiler or ONNX is missing, or a program differs from the model.
        TypeError: an argument is not of the types named here.

    Example::

        model = adaftr_fast.export(run, "models/mine")
    """
    source = local(run_folder(run))
    if isinstance(data, PreparedData):
        folder = data.folder
    else:
        folder = local(read_description(source / BEST).config.data.folder if data is None else data)
    if model_class is None and isinstance(run, Run):
        model_class = run.model_class
    with output_folder(out) as target:
        about = export_run(
            source,
            target,
            data=folder,
            aot=aot,
            onnx=onnx,
            int8=int8,
            task=task,
            model_class=model_class,
        )
    return ExportedModel(place_of(out), about)


def predict(
    model: ExportedModel | Place,
    files: Inputs,
    out: Place,
    *,
    keep: Names = (),
    click: str | None = None,
    conversion: str | None = None,
    bid: str | float | None = None,
    bid_weight: float = 1.0,
    cvr: Cvr = "quotient",
    bad_rows: float = 0.0,
    memory: float | None = None,
    progress: bool = True,
) -> Scores:
    """Scores raw rows with an exported model.

    Warns if more than twice as many values of a field are missing or unknown as in training and
    validation.

    Args:
        model: an exported model or its folder.
        files: raw rows as ``prepare`` reads them, files or tables in memory, labels not needed; of
            Ali-CCP pairs SKELETON COMMON.
        out: the parquet file to write.
        keep: input columns to put before the scores.
        click, conversion: the click and the conversion task; by default the two stages of the
            funnel that was declared at ``prepare``, else the tasks of that name.
        bid: adds the bid of Eq. 16 with p_c, the price of a conversion: a number, or the column
            that holds it.
        bid_weight: w of Eq. 16.
        cvr: "quotient" reads the conversion task's output as p_ctcvr and computes p_cvr = p_ctcvr /
            p_ctr, at most 1. "output" reads it as p_cvr, as Eq. 16 is printed, and computes p_ctcvr
            = p_ctr p_cvr; for conversions that need no click.
        bad_rows: the share of a text file's rows that may be unreadable; they are left out and
            reported.
        memory: how many GB (2^30 bytes) the process may take, beside the model and its
            vocabularies; None for 4.
        progress: show a progress bar.

    Raises:
        ConfigError: ``memory`` is too small for a batch of rows.
        ServingError: there is no exported model, or a damaged one, or ``out`` cannot be written or
            has the name of a text file.
        DataError: no input, an unreadable one, a missing column, or too many bad rows.
        TypeError: an argument is not of the types named here.

    Example::

        scores = adaftr_fast.predict(model, "today.csv", "scores.parquet", keep=["user"])
    """
    folder = model.folder if isinstance(model, ExportedModel) else model
    if not isinstance(folder, str | os.PathLike):
        raise TypeError(
            f"model: expected an exported model or its folder, got {type(model).__name__}"
        )
    scorer = load_scorer(
        local(folder), click=click, conversion=conversion, bid=bid, bid_weight=bid_weight, cvr=cvr
    )
    kept = [keep] if isinstance(keep, str) else keep
    with (
        output_file(out) as target,
        input_files(local_inputs(files), target, Memory.of(memory)) as paths,
    ):
        if not paths:
            raise DataError("files: expected one or more input files, got none")
        report = predicting.predict(
            scorer, paths, target, keep=kept, bad_rows=bad_rows, memory=memory, progress=progress
        )
    return Scores(place_of(out), scorer.columns.names(), report, scorer.about.doubts)
