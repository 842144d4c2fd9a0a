"""Writes a synthetic log as a folder: ``log/part-*.parquet``, ``log.json`` (the configuration) and
``schema.toml``.

Or in Ali-CCP's raw format, which ``adaftr_fast.data.raw.aliccp`` describes, to test and benchmark
how it is prepared. The rows of the last day are the test split.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from tqdm import tqdm

from adaftr_fast.data.memory import DEFAULT
from adaftr_fast.data.parallel import ordered_map
from adaftr_fast.data.synthetic.log import (
    DAY,
    PROBABILITY,
    ImpressionLog,
    LogConfig,
    LogField,
    as_arrow,
)
from adaftr_fast.display.progress import progress_bar
from adaftr_fast.errors import DataError
from adaftr_fast.files.json import dumps
from adaftr_fast.files.locks import LOCK, writing_folder
from adaftr_fast.files.publish import publishing
from adaftr_fast.files.toml import to_toml
from adaftr_fast.files.whole import remove_new, replace_file, replacing

Made = TypeVar("Made")
WORK = 8  # bytes of memory per byte of rows while they are made
BATCH_ROWS = 1 << 16  # rows per row group; the values do not depend on it
FILE_ROWS = 1 << 22  # rows per file
CONFIG = "log.json"
SCHEMA = "schema.toml"
LOG = "log"
# file names in the archives of the data set
NAMES = ("sample_skeleton_{}.csv", "common_features_{}.csv")
BATCH_USERS = 1 << 12  # user blobs are long


def write_log(config: LogConfig, folder: str | Path, *, progress: bool = False) -> ImpressionLog:
    """Writes a log of any length in bounded memory, on all cores. An interrupted run resumes at the
    next file.

    Raises:
        DataError: ``folder`` holds something other than this log or a part of it.
        BusyError: another process or thread writes ``folder``.
    """
    folder = Path(folder)
    log = ImpressionLog(config)
    with writing_folder(folder, CONFIG, SCHEMA):
        _create_or_resume(config, folder)
        try:
            _write_files(log, folder, progress=progress)
        finally:
            with suppress(OSError):  # unless there is a file to go on from
                (folder / LOG).rmdir()
                (folder / CONFIG).unlink()
        replace_file(folder / SCHEMA, schema_text(log).encode())
    return log


def _has_files(folder: Path) -> bool:
    return any((folder / LOG).glob("part-*.parquet"))


def _write_files(log: ImpressionLog, folder: Path, *, progress: bool) -> None:
    rows = log.config.rows
    schema = log.batch(0, 1).schema
    with _bar(rows, progress) as bar:
        for number, start in enumerate(range(0, rows, FILE_ROWS)):
            stop = min(start + FILE_ROWS, rows)
            path = folder / LOG / f"part-{number:05d}.parquet"
            if path.exists():
                bar.update(stop - start)
                continue
            batches = _in_threads(
                log,
                _ranges(start, stop, BATCH_ROWS),
                lambda part: log.batch(part.start, part.stop),
            )
            with (
                replacing(path) as new,
                pq.ParquetWriter(
                    new, schema, compression="zstd", write_page_checksum=True
                ) as writer,
            ):
                for batch in batches:
                    writer.write_batch(batch, row_group_size=BATCH_ROWS)
                    bar.update(batch.num_rows)


def _bar(rows: int, progress: bool) -> tqdm:
    return progress_bar(
        total=rows, unit=" rows", unit_scale=True, desc="synthesize", disable=not progress
    )


def _create_or_resume(config: LogConfig, folder: Path) -> None:
    """Creates the folder, or checks that it holds the same log."""
    written = dumps(config, indent=2) + "\n"
    path = folder / CONFIG
    if path.is_file():
        # of a process that was killed before its first file, another may take the place
        if _has_files(folder) and path.read_text(encoding="utf-8") != written:
            raise DataError(f"{path}: another synthetic log; name another folder")
    elif folder.exists() and (
        not folder.is_dir() or any(each.name != LOCK for each in folder.iterdir())
    ):
        raise DataError(f"{folder}: exists and is not a synthetic log; name another folder")
    replace_file(path, written.encode())  # first: it tells a part of a log from other folders
    (folder / LOG).mkdir(exist_ok=True)
    remove_new(folder / LOG)


def _ranges(start: int, stop: int, size: int) -> list[range]:
    return [range(first, min(first + size, stop)) for first in range(start, stop, size)]


def _in_threads(
    log: ImpressionLog, ranges: list[range], make: Callable[[range], Made]
) -> Iterator[Made]:
    """Yields what ``make`` makes of ranges of rows or users, in order: the same on any number of
    cores.
    """

    def needed(each: range) -> int:
        return min(WORK * len(each) * log.row_bytes, DEFAULT.held)  # of larger ones, one at a time

    return ordered_map(make, ranges, needed)


def schema_text(log: ImpressionLog) -> str:
    """Returns the schema of a log as TOML. The last day is test, the day before validation, all
    earlier days train.
    """
    last = log.config.days - 1
    rules = {"train": ("<", last - 1), "validation": ("==", last - 1), "test": ("==", last)}
    many = {"kind": "categorical", "tokens": "last"}
    source = {
        "name": f"synthetic-{log.config.layout}",
        "group": log.layout.group,
        "labels": {stage: stage for stage in log.stages},
        "truth": {stage: PROBABILITY + stage for stage in log.stages},
        "split": {split: {"where": [[DAY, op, day]]} for split, (op, day) in rules.items()},
        "fields": {
            field.name: many if field.tokens > 1 else "categorical" for field in log.layout.fields
        },
    }
    return f"# truth: the probabilities the labels were drawn from\n{to_toml(source)}"


def write_raw(config: LogConfig, folder: str | Path, *, progress: bool = False) -> list[Path]:
    """Writes skeleton and common features of ``train`` and ``test`` to a new folder.

    Returns:
        The four files in the order that ``prepare`` expects.

    Raises:
        DataError: the layout is not aliccp, there are fewer than two days, or the folder exists.
        BusyError: another process or thread writes the folder.
    """
    folder = Path(folder)
    if config.layout != "aliccp" or config.days < 2:
        raise DataError(
            f"raw layout: expected layout aliccp and days >= 2, got {config.layout} and "
            f"{config.days}"
        )
    with publishing(folder) as new:
        if folder.exists():
            raise DataError(f"{folder}: exists; name a new folder")
        new.mkdir()
        _write(ImpressionLog(config), new, progress=progress)
    return [folder / name.format(split) for split in ("train", "test") for name in NAMES]


def _write(log: ImpressionLog, new: Path, *, progress: bool) -> None:
    config = log.config
    test_start = -(-(config.days - 1) * config.rows // config.days)  # the first row of the last day
    with _bar(config.rows, progress) as bar:
        for split, start, stop in (("train", 0, test_start), ("test", test_start, config.rows)):
            skeleton, common = (new / name.format(split) for name in NAMES)
            with skeleton.open("wb") as file:
                seen = np.zeros(log.users + 1, bool)  # users are counted from 1
                for text, of_batch in _in_threads(
                    log, _ranges(start, stop, BATCH_ROWS), partial(_skeleton, log)
                ):
                    file.write(text)
                    seen[of_batch] = True
                    bar.update(text.count(b"\n"))
            with common.open("wb") as file:
                file.writelines(_common(log, np.flatnonzero(seen)))


def _skeleton(log: ImpressionLog, rows: range) -> tuple[bytes, np.ndarray]:
    """Returns lines, and the user of each."""
    row = np.array(rows)
    owners = log.owners(row)
    batch = log.batch(rows.start, rows.stop)
    fields = [field for field in log.layout.fields if field.owner != "user"]
    columns = [pa.array(row + 1), batch["click"], batch["conversion"], _index(owners["user"])]
    return _lines(columns, fields, [batch[field.name] for field in fields]), owners["user"]


def _common(log: ImpressionLog, users: np.ndarray) -> Iterator[bytes]:
    fields = [field for field in log.layout.fields if field.owner == "user"]

    def lines(places: range) -> bytes:
        batch = users[places.start : places.stop]
        return _lines(
            [_index(batch)], fields, [as_arrow(log.field_values(field, batch)) for field in fields]
        )

    return _in_threads(log, _ranges(0, len(users), BATCH_USERS), lines)


def _index(users: np.ndarray) -> pa.Array:
    """Returns the names of users' common features [n]."""
    return pc.binary_join_element_wise(
        "user", pc.utf8_lpad(pa.array(users).cast(pa.string()), 12, "0"), ""
    )


def _lines(columns: list[pa.Array], fields: list[LogField], values: list[pa.Array]) -> bytes:
    blobs = [_blob(field.name, each) for field, each in zip(fields, values)]
    blob = pc.binary_join_element_wise(*blobs, "\x01", null_handling="skip")
    counts = pc.add(pc.count_substring(blob, "\x01"), 1)  # each row has an id
    texts = [column.cast(pa.string()) for column in (*columns, counts)]
    lines = pc.binary_join_element_wise(*texts, blob, ",")
    return ("\n".join(lines.to_pylist()) + "\n").encode()


def _blob(name: str, values: pa.Array) -> pa.Array:
    """A field's tokens [n], null where it has none."""
    if not pa.types.is_list(values.type):
        return pc.binary_join_element_wise(name, "\x02", values.cast(pa.string()), "\x031.0", "")
    tokens = pa.ListArray.from_arrays(values.offsets, _blob(name, values.values))
    return pc.binary_join(tokens, "\x01")
