"""Daily training (Section 3.4): evaluates the previous day's model on each new day, then trains it
on that day.

Each day has a folder with ``data`` and ``run``. A day keeps the ids of the previous day and adds
ids for new values. The buckets are those of the first day. Nine tenths of a day's rows are the
training split, and one tenth is the validation split. The previous day's model is evaluated on all
rows, none of which it has seen. It reads new ids as "unknown", as in serving.

With several ranks, rank 0 prepares the days and writes the records. All ranks train and evaluate.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from adaftr_fast.config import DataConfig, RunConfig, WarmStartConfig
from adaftr_fast.data.bad_rows import check_share
from adaftr_fast.data.dataset.batch import Batch
from adaftr_fast.data.dataset.loader import PreparedData, Split
from adaftr_fast.data.dataset.rows import Rows
from adaftr_fast.data.prepare.run import prepare
from adaftr_fast.data.schema.parse import parse_schema
from adaftr_fast.data.schema.types import Schema
from adaftr_fast.distributed.ranks import ALONE, Ranks
from adaftr_fast.engines import Engine
from adaftr_fast.errors import DataError
from adaftr_fast.files.json import dumps, from_json, loads
from adaftr_fast.files.whole import naming, sync, write_json
from adaftr_fast.runs.output import HERE, Output
from adaftr_fast.runs.run import check_options, find_all, fit_one, open_split, writing
from adaftr_fast.training.checkpoint.files import check_shared_folder
from adaftr_fast.training.evaluation import TaskMetrics, evaluate
from adaftr_fast.training.trained import DOUBTS, earlier, load_sharded

RECORDS = "daily.jsonl"
TRAIN = 0.9  # share of a day's rows in the training split


def train_daily(
    schema: Schema,
    files: Sequence[str | Path],
    config: RunConfig,
    out: Path,
    ranks: Ranks = ALONE,
    engine: Engine | None = None,
    output: Output = HERE,
    bad_rows: float = 0.0,
) -> Iterator[dict[str, Any]]:
    """Trains on one file per day, yields a record per day and writes all records to
    ``daily.jsonl``.

    Days in ``daily.jsonl`` are skipped, and their files need not exist any more. An interrupted day
    is resumed.

    Args:
        schema: a schema of one file. Its split is ignored.
        files: the files in the order of the days, including the finished days, as
            ``output.found`` takes them.
        config: the configuration of every day. Its ``warm_start`` is that of the first day; a later
            day starts from the previous one. Its ``data`` are replaced each day.
        out: the folder of ``daily.jsonl`` and the days' folders.
        ranks: the ranks that train together. All of them must see ``out``, and get the records.
        engine: the engine that prepares each day, on rank 0; None is ``Local()``.
        output: the output that ``out`` is.
        bad_rows: the share of a day's rows that may be unreadable or lack a label. They are left
            out, and the record of the day has their number.

    Raises:
        CheckpointError: a rank does not see ``out``.
        RankError: the ranks have different options or files.
        DataError: the schema reads several files, the days in ``out`` are not the first of
            ``files``, ``bad_rows`` is no share, or a day cannot be prepared.
        KeyboardInterrupt, TrainingError, CheckpointError, BusyError: see ``train_one``.
    """
    check_share(bad_rows)
    schema = part_schema(schema)
    with writing_parts(out, config, ranks, files=[str(file) for file in files], bad_rows=bad_rows):
        journal = Journal(out / RECORDS, ranks)
        _check(out, journal.records, files)
        for day, file in list(enumerate(files, start=1))[len(journal.records) :]:
            before = _folder(out, day - 1) if day > 1 else None
            path = output.found(str(file))
            with train_part(
                schema, path, _folder(out, day), before, config, ranks, engine, output, bad_rows
            ) as found:
                journal.append({"day": day, "file": str(file)} | found)
            if output.save is not None:
                output.save()
            yield journal.records[-1]


@contextmanager
def writing_parts(
    out: Path, config: RunConfig, ranks: Ranks, *names: str, **agreed: Any
) -> Iterator[None]:
    """Makes this run the only writer of the folder of a log's parts, which all ranks see.

    Args:
        out: the folder.
        config: the configuration of every part.
        ranks: the ranks that train together.
        names: the files that ``replace_file`` writes in the folder.
        agreed: plain values that must be the same on all ranks, as the configuration.

    Raises:
        TrainingError, RankError: see ``check_options``, or the ranks have different options.
        CheckpointError: a rank does not see ``out``.
        BusyError: another process writes ``out``.
    """
    check_options(config, ranks)
    ranks.agree(" or ".join(["settings", *agreed]), config.flat() | agreed)
    with writing(out, ranks, *names):
        check_shared_folder(out, ranks, "every rank reads the data and runs of the parts")
        yield


class Journal:
    """The records of the finished parts of a log, a line of JSON each. All ranks hold them, and
    rank 0 writes them.

    Args:
        path: the file, which this run alone writes.
        ranks: the ranks, which all call ``append``.

    Attributes:
        records: the records, in order.

    Raises:
        DataError: the file is damaged.
    """

    keys: tuple[str, ...] = ("day", "file")  # that every record has

    def __init__(self, path: Path, ranks: Ranks = ALONE) -> None:
        self.path = path
        self.ranks = ranks
        self.records: list[dict[str, Any]] = ranks.from_rank_zero(lambda: _read(path, self.keys))

    def append(self, record: dict[str, Any]) -> None:
        """Adds the record of a part, which is finished by that. It is on disk on return."""
        self.ranks.from_rank_zero(lambda: _append(self.path, record))
        self.records.append(record)


@contextmanager
def train_part(
    schema: Schema,
    file: Path,
    folder: Path,
    before: Path | None,
    config: RunConfig,
    ranks: Ranks = ALONE,
    engine: Engine | None = None,
    output: Output = HERE,
    bad_rows: float = 0.0,
) -> Iterator[dict[str, Any]]:
    """Prepares a part of a log with the ids of the part before, measures that part's model on it,
    and trains on it.

    It yields the record of rows, ids and metrics. A metric that is undefined, as an AUC on rows of
    a single class, is nan. The part is finished when the block, which writes the record, has ended
    without an error.

    Args:
        schema: the result of ``part_schema``.
        file: the rows.
        folder: the folder of the part, with ``data`` and ``run``. An unfinished part is resumed.
        before: the folder of the part before; None for the first.
        config: the configuration; its ``warm_start`` is that of the first part.
        ranks: the ranks that train together, which all call it.
        engine: the engine that prepares the part; None is ``Local()``.
        output: what the folders are parts of.
        bad_rows: the share of rows that may be unreadable or lack a label. They are left out, and
            recorded if any.
    """

    def prepared() -> None:
        grow = before and before / "data"
        prepare(
            schema,
            [file],
            folder / "data",
            engine=engine,
            grow=grow,
            bad_rows=bad_rows,
            progress=config.training.progress,
        )

    ranks.after_rank_zero(prepared)
    data = PreparedData(folder / "data")
    measured = None if before is None else _measure(before / "run", data, config, ranks)
    start = (
        config.warm_start if before is None else WarmStartConfig(output.recorded(before / "run"))
    )
    part_config = replace(config, data=DataConfig(output.recorded(data.folder)), warm_start=start)
    bad = data.manifest.bad_rows
    left_out = {"bad_rows": bad.bad} if bad and bad.bad else {}
    with fit_one(
        data, part_config, folder / "run", ranks=ranks, output=output, needs_metrics=False
    ) as trainer:
        validation = trainer.result.validation
        doubts = find_all(trainer, data, "validation", validation)
        if ranks.is_rank_zero:
            write_json(folder / "run" / DOUBTS, doubts)
        yield {
            "rows": data.manifest.splits["test"].rows,
            **left_out,
            "ids": sum(data.manifest.num_embeddings),
            "before_training": measured,
            "validation": validation,
            "doubts": doubts,
        }
        trainer.files.finish()


def _measure(run: Path, data: PreparedData, config: RunConfig, ranks: Ranks) -> TaskMetrics:
    """Evaluates the model of ``run`` on all rows of a later day, of which each rank predicts a
    part.
    """
    if config.training.tables == "replicated":
        trained = earlier(run, config.model.name)
    else:
        trained = load_sharded(run, config, ranks)
    known = KnownIds(open_split(data, "test", ranks).rows, trained.about.num_embeddings)
    split = Split(known, funnel=data.manifest.funnel)
    training = trained.config.training
    return evaluate(trained.model, split, training.eval_batch_size, ranks, training.gauc_weights)


class KnownIds:
    """Rows of a later day whose ids that a model has no embedding row for are replaced by 0,
    unknown.

    Args:
        rows: the rows.
        num_embeddings: the number of embedding rows of each field in the model.
    """

    def __init__(self, rows: Rows, num_embeddings: Sequence[int]) -> None:
        self.rows = rows
        self.sizes = rows.sizes
        self.nbytes = rows.nbytes
        self.grouped = rows.grouped
        self.limits = torch.tensor(num_embeddings)

    def read(self, chunks: Sequence[int], order: np.ndarray | None) -> Batch:
        batch = self.rows.read(chunks, order)
        limits = self.limits
        if batch.offsets is not None:
            limits = limits.repeat(len(batch)).repeat_interleave(batch.offsets.diff())  # [N]
        return replace(batch, ids=batch.ids.masked_fill(batch.ids >= limits, 0))


def part_schema(schema: Schema) -> Schema:
    """Returns the schema of one part's file, which splits rows by a hash of their number.

    Raises:
        DataError: the schema reads several files.
    """
    if len(schema.files) != 1:
        raise DataError(
            f"data set {schema.name}: expected a schema of one file, got {', '.join(schema.files)}"
        )
    split = {
        "train": {"hash": {"start": 0.0, "stop": TRAIN}},
        "validation": {"hash": {"start": TRAIN, "stop": 1.0}},
        "test": {},
    }
    source = {
        key: value for key, value in schema.source.items() if key not in ("shipped", "generate")
    }
    return parse_schema(source | {"files": ["day"], "split": split})


def _folder(out: Path, day: int) -> Path:
    return out / f"day-{day:04d}"


def with_keys(keys: Sequence[str], content: Any) -> dict[str, Any]:
    """Returns ``content``. Raises ValueError unless it is an object with these keys."""
    found = from_json(dict[str, Any], content)
    if missing := [key for key in keys if key not in found]:
        raise ValueError(f"missing key {missing[0]!r}")
    return found


def _read(path: Path, keys: Sequence[str]) -> list[dict[str, Any]]:
    """Reads the records. A last line without its end, of a killed process, is removed."""
    if not path.exists():
        return []
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(path, whole)
    try:
        lines = content[:whole].decode().split("\n")[:-1]
        return [with_keys(keys, loads(line)) for line in lines]
    except ValueError as error:
        raise DataError(f"{path}: damaged: {error}") from error


def _append(path: Path, record: dict[str, Any]) -> None:
    is_new = not path.exists()
    with naming(path), path.open("ab") as file:
        file.write((dumps(record) + "\n").encode())
        file.flush()
        os.fsync(file.fileno())
    if is_new:
        sync(path.parent)


def _check(out: Path, records: list[dict[str, Any]], files: Sequence[str | Path]) -> None:
    """Raises DataError unless the finished days are the first of ``files``."""
    done = [record["file"] for record in records]
    for day, (then, now) in enumerate(zip(done, map(str, files)), start=1):
        if then != now:
            raise DataError(
                f"{out}: day {day}: expected {then}, got {now}: pass all days in order, or "
                "another --out"
            )
    if len(files) < len(done):
        raise DataError(
            f"{out}: expected files of at least {len(done)} days, got {len(files)}: pass all days "
            "in order"
        )
