"""Prepares raw logs: encodes ids, labels and groups of every split, and records their meaning.

Text is staged as parquet first. Then one pass over the training rows computes vocabularies and bucket edges, and a
second pass encodes every split in batches. The folder is built next to its destination and renamed, so it is complete
or absent. An interrupted run resumes with the work already done. Work is done in one process, or in several shards.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from adaftr_fast._files import followed, sha256
from adaftr_fast._json import dumps
from adaftr_fast._publish import publisher_lock
from adaftr_fast.data.dataset.manifest import FORMAT, MANIFEST, Manifest, read_manifest, read_manifest_json
from adaftr_fast.data.dataset.vocabulary import read_encoders
from adaftr_fast.data.prepare.barrier import Unfinished, run_stages
from adaftr_fast.data.prepare.stages import PreparedIds, ShardRun, inputs_digest
from adaftr_fast.data.prepare.work_folder import (
    LOCK,
    file_lock,
    publish,
    remove_finished,
    remove_leftovers,
    remove_work,
    shared_work_folder,
    work_folder,
)
from adaftr_fast.data.raw.source import data_files, input_paths
from adaftr_fast.data.schema.parse import parse_schema
from adaftr_fast.data.schema.types import Schema
from adaftr_fast.data.shard import UNSHARDED, Shard
from adaftr_fast.data.synthetic.log import LogConfig
from adaftr_fast.data.synthetic.write import LOG, write_log
from adaftr_fast.errors import DataError

__all__ = ["Unfinished", "prepare", "prepare_shard"]
FILES = re.compile(
    r"schema\.json|vocabulary\.parquet|(train|validation|test)(-\d+-of-\d+)?\.parquet"
)  # all files of a prepared folder


def prepare(
    schema: Schema,
    files: Sequence[str | Path] | None,
    folder: str | Path,
    *,
    bad_rows: float = 0.0,
    grow: str | Path | None = None,
    progress: bool = False,
) -> Manifest:
    """Writes ``train/validation/test.parquet``, ``schema.json`` and ``vocabulary.parquet`` to ``folder``.

    If ``folder`` already holds the result for this schema and these files, it is left unchanged. Another prepared
    folder is replaced, unless it also holds other files.

    Args:
        files: input files in the order of ``schema.files``: parquet files, folders of parquet files, or delimited text.
            None or empty reads the shipped file or generates the synthetic log of the schema.
        bad_rows: share of the rows of a text file that may be unreadable. They are left out and reported.
        grow: prepared folder with the same fields. Its ids keep their meaning, buckets included, and values that are
            new in ``files`` get ids after its own.
        progress: whether to show progress bars.

    Raises:
        DataError: an input is unreadable, a column is missing, too many rows are bad, a label is neither 0 nor 1, a
            split is empty, or ``folder`` holds other files.
        BusyError: another process prepares ``folder``.
        OSError: ``folder`` cannot be written. The work already done is kept.
    """
    folder = followed(Path(folder))
    inputs = _inputs(schema, files, bad_rows, grow)
    digests = inputs.digests(UNSHARDED)
    digest = inputs_digest(schema, inputs.known, digests)
    if (existing := _existing(folder, digest)) is not None:
        remove_finished(folder, digest)
        return existing
    paths = inputs.paths
    try:
        with work_folder(folder, digest) as work:
            if inputs.generated is not None:
                write_log(inputs.generated, work / "generated", progress=progress)
                paths = {schema.files[0]: work / "generated" / LOG}
            run = ShardRun(
                schema, paths, work, UNSHARDED, lambda: digests, inputs.check, inputs.known, bad_rows, progress
            )
            run_stages(run.stages(), work, UNSHARDED, inputs.check)
            publish(work, folder, partial(_check_replaceable, folder))
    except OSError as error:  # errors of inputs are DataErrors
        raise OSError(f"{folder}: cannot be written: {error}; run the same command again to resume") from error
    return read_manifest(folder)


def prepare_shard(
    schema: Schema,
    files: Sequence[str | Path] | None,
    folder: str | Path,
    shard: Shard,
    *,
    wait: float = 0.0,
    bad_rows: float = 0.0,
    grow: str | Path | None = None,
    progress: bool = False,
) -> Manifest | Unfinished:
    """Runs one shard of ``prepare``. All shards together give the same rows, ids and manifest as one process.

    Every shard needs the same ``folder`` and the same files. A shard runs its stages as far as the others allow, and
    the last shard to finish a stage merges it; after the last stage it publishes ``folder``. Three calls per shard
    suffice (four for Ali-CCP's raw files). Work in progress is kept in ``.NAME.parts`` next to ``folder``.

    Args:
        wait: seconds to wait for the other shards after each stage.

    Returns:
        The manifest once all shards are done, else the stage that other shards have yet to run.

    Raises:
        DataError: as ``prepare``; or the log would be generated, the other shards were started with another schema,
            other files or other options, another process runs this shard, a shard failed while this one waited for it,
            or the work folder was removed. Finished work is kept.
        BusyError, OSError: as ``prepare``.
    """
    folder = followed(Path(folder))
    inputs = _inputs(schema, files, bad_rows, grow)
    if inputs.generated is not None:
        raise DataError(f"data set {schema.name}: a generated log cannot be sharded; synthesize it and name its files")
    work = folder.parent / f".{folder.name}.parts"
    remove_leftovers(work, folder)
    before = _manifest_json(folder)
    try:
        if not work.exists():
            if folder.exists():
                digest = inputs.digest(schema) if _has_schema(before, schema) else ""
                if (existing := _existing(folder, digest)) is not None:
                    return existing
            work.mkdir(parents=True, exist_ok=True)
        with shared_work_folder(work, folder, shard, inputs.key(schema, shard, bad_rows)):
            digests = partial(inputs.digests, shard)
            run = ShardRun(schema, inputs.paths, work, shard, digests, inputs.check, inputs.known, bad_rows, progress)
            if (unfinished := run_stages(run.stages(), work, shard, inputs.check, wait)) is not None:
                return unfinished
            with file_lock(work / LOCK), publisher_lock(folder):
                publish(work, folder, partial(_check_replaceable, folder))
                remove_work(work)
    except FileNotFoundError:
        if work.exists():
            raise
        return _published(inputs, schema, folder, before)
    except OSError as error:
        raise OSError(f"{folder}: cannot be written: {error}; run the same command again to resume") from error
    return read_manifest(folder)


@dataclass(frozen=True)
class _Inputs:
    """Inputs of a run: files by role, or a log to generate, and ids to grow.

    Attributes:
        generated: log to generate; None if there are files.
        state: name, size and modification time of every file.
    """

    paths: dict[str, Path]
    generated: LogConfig | None
    known: PreparedIds | None
    state: list[tuple[str, int, int]]

    def files(self) -> list[Path]:
        """Returns all files, those of a folder in reading order."""
        return _files(self.paths)

    def digests(self, shard: Shard) -> dict[str, str]:
        """Returns the sha256 of a shard's files, by index of the file."""
        return {str(number): sha256(file) for number, file in list(enumerate(self.files()))[shard.stride]}

    def digest(self, schema: Schema) -> str:
        """Returns the digest that identifies a folder prepared from these inputs."""
        return inputs_digest(schema, self.known, self.digests(UNSHARDED))

    def check(self) -> None:
        """Raises DataError if a file has changed since this object was created."""
        if (now := _state(self.files())) != self.state:
            names = {file[0] for file in now + self.state if now.count(file) != self.state.count(file)}
            raise DataError(f"{', '.join(sorted(names))}: changed during the run; run prepare again")

    def key(self, schema: Schema, shard: Shard, bad_rows: float) -> dict[str, object]:
        """Returns what all shards must have in common, as far as it is quick to compute."""
        return {
            "format": FORMAT,
            "schema": schema.source,
            "list of files (name, size, time of change)": self.state,
            "number of parts": shard.count,  # named as in 0.1.0, so that work begun by it resumes
            "ids to grow": self.known and self.known.fingerprint,
            "bad_rows": bad_rows,
        }


def _inputs(schema: Schema, files: Sequence[str | Path] | None, bad_rows: float, grow: str | Path | None) -> _Inputs:
    if not 0.0 <= bad_rows < 1.0:
        raise DataError(f"bad_rows: expected a share in [0, 1), got {bad_rows}")
    generated = None if files else schema.generate
    paths = input_paths(schema, files or []) if generated is None else {}
    known = None if grow is None else _ids_to_grow(schema, Path(grow))
    return _Inputs(paths, generated, known, _state(_files(paths)))


def _files(paths: dict[str, Path]) -> list[Path]:
    return [file for path in paths.values() for file in data_files(path)]


def _state(files: list[Path]) -> list[tuple[str, int, int]]:
    """Returns the name, size and modification time of every file. Folders may differ between machines."""
    stats = [(file.name, file.stat()) for file in files]
    return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]


def _ids_to_grow(schema: Schema, folder: Path) -> PreparedIds:
    manifest = read_manifest(folder)
    if parse_schema(manifest.schema).features != schema.features:
        raise DataError(f"{folder}: its fields differ from those of data set {schema.name}, so its ids cannot be kept")
    return PreparedIds(manifest.fingerprint, read_encoders(folder, manifest), manifest.dense)


def _existing(folder: Path, inputs: str) -> Manifest | None:
    """Returns the manifest of a folder that is up to date; None if the folder is to be written.

    Raises:
        DataError: the folder may not be replaced, because it holds other files.
    """
    if not folder.exists():
        return None
    if (folder / MANIFEST).is_file() and read_manifest_json(folder / MANIFEST).get("inputs") == inputs:
        with suppress(DataError):  # damaged: prepare again
            return read_manifest(folder)
    _check_replaceable(folder)
    return None


def _published(inputs: _Inputs, schema: Schema, folder: Path, before: dict[str, Any]) -> Manifest:
    """Returns the manifest after the work folder was removed, usually because the last shard has published ``folder``.

    Args:
        before: manifest that was there when this shard started.

    Raises:
        DataError: ``folder`` is not the result of these shards, so their work folder was removed.
    """
    content = _manifest_json(folder)
    if _has_schema(content, schema):
        digest = inputs.digest(schema) if content == before else content["inputs"]
        if (manifest := _existing(folder, digest)) is not None:
            return manifest
    raise DataError(f"{folder}: the work folder of its shards was removed; start all shards again")


def _manifest_json(folder: Path) -> dict[str, Any]:
    return read_manifest_json(folder / MANIFEST) if (folder / MANIFEST).is_file() else {}


def _has_schema(manifest: dict[str, Any], schema: Schema) -> bool:
    return manifest.get("schema") == json.loads(dumps(schema.source))


def _check_replaceable(folder: Path) -> None:
    """Raises DataError if the folder holds anything that ``prepare`` did not write."""
    if not folder.is_dir():
        raise DataError(f"{folder}: exists and is not a folder; name another one")
    entries = sorted(folder.iterdir())
    if entries and not (folder / MANIFEST).is_file():
        raise DataError(f"{folder}: exists and is not a prepared folder (it holds {entries[0].name}); name another one")
    for entry in entries:
        if not FILES.fullmatch(entry.name) or not entry.is_file():
            raise DataError(f"{folder}: not replaced, because it also holds {entry.name}; name another folder")
