"""Writes a log as a folder: ``log/part-*.parquet``, ``log.json`` (the configuration) and ``schema.toml``."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pyarrow.parquet as pq
from tqdm import tqdm

from adaftr_fast._files import remove_new, replace_file, replacing
from adaftr_fast._json import dumps
from adaftr_fast._locks import LOCK, writing_folder
from adaftr_fast.data.synthetic.log import DAY, PROBABILITY, ImpressionLog, LogConfig
from adaftr_fast.errors import DataError

BATCH_ROWS = 1 << 16  # rows per row group; the values do not depend on it
FILE_ROWS = 1 << 22  # rows per file
CONFIG = "log.json"
SCHEMA = "schema.toml"
LOG = "log"


def write_log(config: LogConfig, folder: str | Path, *, progress: bool = False) -> ImpressionLog:
    """Writes a log of any length in bounded memory. An interrupted run resumes at the next file.

    Raises:
        DataError: ``folder`` holds something other than this log or a part of it.
        BusyError: another process or thread writes ``folder``.
    """
    folder = Path(folder)
    log = ImpressionLog(config)
    with writing_folder(folder, CONFIG, SCHEMA):
        _create_or_resume(config, folder)
        _write_files(log, folder, progress=progress)
        replace_file(folder / SCHEMA, schema_text(log).encode())
    return log


def _write_files(log: ImpressionLog, folder: Path, *, progress: bool) -> None:
    config = log.config
    with tqdm(total=config.rows, unit=" rows", unit_scale=True, desc="synthesize", disable=not progress) as bar:
        for number, start in enumerate(range(0, config.rows, FILE_ROWS)):
            stop = min(start + FILE_ROWS, config.rows)
            path = folder / LOG / f"part-{number:05d}.parquet"
            if path.exists():
                bar.update(stop - start)
            else:
                with replacing(path) as new:
                    _write_file(log, new, start, stop, bar)


def _create_or_resume(config: LogConfig, folder: Path) -> None:
    """Creates the folder, or checks that it holds the same log."""
    written = dumps(dataclasses.asdict(config), indent=2) + "\n"
    path = folder / CONFIG
    if path.is_file():
        if path.read_text(encoding="utf-8") != written:
            raise DataError(f"{path}: another synthetic log; name another folder")
    elif folder.exists() and (not folder.is_dir() or any(each.name != LOCK for each in folder.iterdir())):
        raise DataError(f"{folder}: exists and is not a synthetic log; name another folder")
    replace_file(path, written.encode())  # first: it tells a part of a log from other folders
    (folder / LOG).mkdir(exist_ok=True)
    remove_new(folder / LOG)


def _write_file(log: ImpressionLog, path: Path, start: int, stop: int, bar: tqdm) -> None:
    writer: pq.ParquetWriter | None = None
    for first in range(start, stop, BATCH_ROWS):
        batch = log.batch(first, min(first + BATCH_ROWS, stop))
        writer = writer or pq.ParquetWriter(path, batch.schema, compression="zstd", write_page_checksum=True)
        writer.write_batch(batch, row_group_size=BATCH_ROWS)
        bar.update(batch.num_rows)
    assert writer is not None  # a file has rows
    writer.close()


def schema_text(log: ImpressionLog) -> str:
    """Returns the schema of a log as TOML. The last day is test, the day before validation, all earlier days train."""
    last = log.config.days - 1
    lines = [f'name = "synthetic-{log.config.layout}"', f"group = {_quoted(log.layout.group)}", "", "[labels]"]
    lines += [f"{stage} = {_quoted(stage)}" for stage in log.stages]
    lines += ["", "[truth]  # the probabilities the labels were drawn from"]
    lines += [f"{stage} = {_quoted(PROBABILITY + stage)}" for stage in log.stages]
    rules = {"train": ("<", last - 1), "validation": ("==", last - 1), "test": ("==", last)}
    lines += ["", "[split]"]
    lines += [f'{split} = {{ where = [["{DAY}", "{op}", {day}]] }}' for split, (op, day) in rules.items()]
    lines += ["", "[fields]"]
    for field in log.layout.fields:
        kind = '{ kind = "categorical", tokens = "last" }' if field.tokens > 1 else '"categorical"'
        lines.append(f"{_quoted(field.name)} = {kind}")
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    return json.dumps(text)
