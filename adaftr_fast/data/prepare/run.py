"""Raw logs to a prepared folder: ids, labels and groups per split, and what they mean.

Text is turned to parquet first; then two streaming passes: vocabularies and bucket edges from the training rows, and
every split encoded batch by batch. The folder is built beside its place and renamed into it, so that it is whole or
absent; a run that was interrupted goes on with what was done. One process does it, or several, each a shard.
"""

from __future__ import annotations

import json
import re
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from adaftr_fast._files import sha256
from adaftr_fast._json import dumps
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
from adaftr_fast.data.synthetic.write import LOG, write_log
from adaftr_fast.errors import DataError

__all__ = ["Shard", "Unfinished", "prepare", "prepare_shard"]
FILES = re.compile(r"schema\.json|vocabulary\.parquet|(train|validation|test)(-\d+-of-\d+)?\.parquet")  # all it holds


def prepare(
    schema: Schema,
    files: list[str | Path] | None,
    folder: str | Path,
    *,
    bad_rows: float = 0.0,
    grow: str | Path | None = None,
    progress: bool = False,
) -> Manifest:
    """Writes ``train/validation/test.parquet``, ``schema.json`` and ``vocabulary.parquet`` to ``folder``.

    A folder that already holds this preparation of these files is left as it is; another preparation is replaced,
    provided that its folder holds nothing else.

    Args:
        files: the input files in the order of ``schema.files``: parquet files, folders of them, or delimited text;
            None or empty for what is shipped or generated.
        bad_rows: share of the rows of a text file that may be unreadable; they are left out and reported.
        grow: a prepared folder of the same fields whose ids keep their meaning, buckets included; values that are new
            in ``files`` get ids after its own.
        progress: show progress bars.

    Raises:
        DataError: an unreadable input, a missing column, too many bad rows, a label that is neither 0 nor 1, an empty
            split, or a folder that holds something else.
        OSError: the folder cannot be written; what was done is kept.
    """
    folder = Path(folder)
    inputs = _inputs(schema, files, bad_rows, grow)
    digests = inputs.digests(UNSHARDED)
    digest = inputs_digest(schema, inputs.known, digests)
    if (existing := _existing(folder, digest)) is not None:
        remove_finished(folder, digest)
        return existing
    paths = inputs.paths
    try:
        with work_folder(folder, digest) as work:
            if inputs.generated:
                write_log(schema.generate, work / "generated", progress=progress)
                paths = {schema.files[0]: work / "generated" / LOG}
            run = ShardRun(
                schema, paths, work, UNSHARDED, lambda: digests, inputs.check, inputs.known, bad_rows, progress
            )
            run_stages(run.stages(), work, UNSHARDED, inputs.check)
            publish(run.prepared, folder, partial(_check_replaceable, folder))
    except OSError as error:  # not of an input, whose errors are DataErrors
        raise OSError(f"{folder}: cannot be written; the same command goes on: {error}") from error
    return read_manifest(folder)


def prepare_shard(
    schema: Schema,
    files: list[str | Path] | None,
    folder: str | Path,
    shard: Shard,
    *,
    wait: float = 0.0,
    bad_rows: float = 0.0,
    grow: str | Path | None = None,
    progress: bool = False,
) -> Manifest | Unfinished:
    """One shard of what ``prepare`` does, the same rows, ids and meanings; other processes do the others.

    All see the same ``folder`` and the same files. A shard takes its steps as far as the others have come, and whichever
    takes a step last merges it, at last into ``folder``; so that once every shard has been called three times, with
    Ali-CCP's raw files four, it is there. What was done is kept beside it in ``.NAME.parts`` until then.

    Args:
        wait: seconds to wait for the other parts after each step.

    Returns:
        The manifest once all parts are done, else the step that other parts have still to take.

    Raises:
        DataError, OSError: as ``prepare``; or a log to be generated, other parts of another schema, other files or
            other options, another process that does this shard, a shard that failed while this one waited for it, or
            the work of all parts removed. What was done is kept.
    """
    folder = Path(folder)
    inputs = _inputs(schema, files, bad_rows, grow)
    if inputs.generated:
        raise DataError(f"data set {schema.name}: a log that is generated has no parts; name the files of one")
    work = folder.parent / f".{folder.name}.parts"
    remove_leftovers(work)
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
            with file_lock(work / LOCK):
                if run.prepared.exists():
                    publish(run.prepared, folder, partial(_check_replaceable, folder))
                remove_work(work)
    except FileNotFoundError:
        if work.exists():
            raise
        return _published(inputs, schema, folder, before)
    except OSError as error:
        raise OSError(f"{folder}: cannot be written; the same command goes on: {error}") from error
    return read_manifest(folder)


@dataclass(frozen=True)
class _Inputs:
    """What a preparation starts from: input files by role, or a log to be generated, and ids to be grown.

    Attributes:
        state: what differs once a file has changed.
    """

    paths: dict[str, Path]
    generated: bool
    known: PreparedIds | None
    state: list[tuple[str, int, int]]

    def files(self) -> list[Path]:
        """All of them, those of a folder in the order they are read."""
        return _files(self.paths)

    def digests(self, shard: Shard) -> dict[str, str]:
        """sha256 of a shard's share of the files, by number."""
        return {str(number): sha256(file) for number, file in list(enumerate(self.files()))[shard.stride]}

    def digest(self, schema: Schema) -> str:
        """By which it is told whether a folder was prepared of them."""
        return inputs_digest(schema, self.known, self.digests(UNSHARDED))

    def check(self) -> None:
        """Raises DataError if a file is not what it was when this was made."""
        if (now := _state(self.files())) != self.state:
            names = {file[0] for file in now + self.state if now.count(file) != self.state.count(file)}
            raise DataError(f"{', '.join(sorted(names))}: changed while it was prepared; prepare again")

    def key(self, schema: Schema, shard: Shard, bad_rows: float) -> dict[str, object]:
        """What all parts must have in common, as far as it is quickly told."""
        return {
            "format": FORMAT,
            "schema": schema.source,
            "list of files (name, size, time of change)": self.state,
            "number of parts": shard.count,
            "ids to grow": self.known and self.known.fingerprint,
            "bad_rows": bad_rows,
        }


def _inputs(schema: Schema, files: list[str | Path] | None, bad_rows: float, grow: str | Path | None) -> _Inputs:
    if not 0.0 <= bad_rows < 1.0:
        raise DataError(f"bad_rows: expected a share in [0, 1), got {bad_rows}")
    generated = schema.generate is not None and not files
    paths = {} if generated else input_paths(schema, files or [])
    known = None if grow is None else _ids_to_grow(schema, Path(grow))
    return _Inputs(paths, generated, known, _state(_files(paths)))


def _files(paths: dict[str, Path]) -> list[Path]:
    return [file for path in paths.values() for file in data_files(path)]


def _state(files: list[Path]) -> list[tuple[str, int, int]]:
    """Name, size and time of change of every file; not its folder, since machines may see it under different names."""
    stats = [(file.name, file.stat()) for file in files]
    return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]


def _ids_to_grow(schema: Schema, folder: Path) -> PreparedIds:
    manifest = read_manifest(folder)
    other_fields = parse_schema(manifest.schema).fields
    if other_fields != schema.fields:
        raise DataError(f"{folder}: its fields are not those of data set {schema.name}, so its ids cannot be kept")
    return PreparedIds(manifest.fingerprint, read_encoders(folder, manifest))


def _existing(folder: Path, inputs: str) -> Manifest | None:
    """The manifest of a folder that is up to date, None for a place to write to.

    Raises:
        DataError: what is there may not be replaced, since it is not wholly the work of ``prepare``.
    """
    if not folder.exists():
        return None
    if (folder / MANIFEST).is_file() and read_manifest_json(folder / MANIFEST).get("inputs") == inputs:
        with suppress(DataError):  # damaged: prepared anew
            return read_manifest(folder)
    _check_replaceable(folder)
    return None


def _published(inputs: _Inputs, schema: Schema, folder: Path, before: dict[str, Any]) -> Manifest:
    """The manifest, once the work is gone: as a rule since the shard that came last has published the folder.

    Args:
        before: the head of the manifest that was there when this shard began.

    Raises:
        DataError: the folder is not what the parts were to make, so their work was removed.
    """
    content = _manifest_json(folder)
    if _has_schema(content, schema):
        digest = inputs.digest(schema) if content == before else content["inputs"]
        if (manifest := _existing(folder, digest)) is not None:
            return manifest
    raise DataError(f"{folder}: the work of its parts was removed; begin all parts anew")


def _manifest_json(folder: Path) -> dict[str, Any]:
    return read_manifest_json(folder / MANIFEST) if (folder / MANIFEST).is_file() else {}


def _has_schema(manifest: dict[str, Any], schema: Schema) -> bool:
    return manifest.get("schema") == json.loads(dumps(schema.source))


def _check_replaceable(folder: Path) -> None:
    """Raises DataError if what is there, other than nothing, is not wholly the work of ``prepare``."""
    if not folder.is_dir():
        raise DataError(f"{folder}: exists and is not a folder; name another one")
    entries = sorted(folder.iterdir())
    if entries and not (folder / MANIFEST).is_file():
        raise DataError(f"{folder}: exists and is not a prepared folder (it holds {entries[0].name}); name another one")
    for entry in entries:
        if not FILES.fullmatch(entry.name) or not entry.is_file():
            raise DataError(f"{folder}: not replaced, since it also holds {entry.name}; name another folder")
