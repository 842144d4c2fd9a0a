"""Raw logs to a prepared folder: ids, labels and groups per split, and what they mean.

Text is turned to parquet first; then two streaming passes: vocabularies and bucket edges from the training rows, and
every split encoded batch by batch. The folder is built beside its place and renamed into it, so that it is whole or
absent; a run that was interrupted goes on with the parts and splits that were done.
"""

from __future__ import annotations

import hashlib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from adaftr_fast._json import dumps
from adaftr_fast.data.bad_rows import BadRows
from adaftr_fast.data.encode import Encoder, fit_encoders
from adaftr_fast.data.errors import DataError
from adaftr_fast.data.inputs import as_parquet
from adaftr_fast.data.manifest import (
    FORMAT,
    MANIFEST,
    Manifest,
    SplitInfo,
    field_info,
    fingerprint,
    read_head,
    read_manifest,
)
from adaftr_fast.data.schema import parse_schema
from adaftr_fast.data.schema_types import SPLITS, Schema
from adaftr_fast.data.source import Source, data_files, input_paths
from adaftr_fast.data.split_file import GROUP, TRUTH, WEIGHT, split_info, write_split
from adaftr_fast.data.synthetic.write import LOG, write_log
from adaftr_fast.data.vocabulary import VOCABULARY, grown, read_encoders, write_vocabulary
from adaftr_fast.data.workplace import publish, workplace

__all__ = ["FILES", "GROUP", "TRUTH", "WEIGHT", "prepare"]
FILES = {MANIFEST, VOCABULARY, *(f"{split}.parquet" for split in SPLITS)}  # all that a prepared folder holds


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
    if not 0.0 <= bad_rows < 1.0:
        raise DataError(f"bad_rows: expected a share in [0, 1), got {bad_rows}")
    folder = Path(folder)
    generate = schema.generate is not None and not files
    paths = {} if generate else input_paths(schema, files or [])
    known = None if grow is None else _known(schema, Path(grow))
    inputs = _inputs_digest(schema, paths, known)
    existing = _existing(folder, inputs)
    if existing is not None:
        return existing
    try:
        with workplace(folder, inputs) as work:
            if generate:
                write_log(schema.generate, work / "generated", progress=progress)
                paths = {schema.files[0]: work / "generated" / LOG}
            paths, account = as_parquet(schema, paths, work / "staged", tolerance=bad_rows, progress=progress)
            source = Source(schema, paths)
            manifest = _encode(schema, source, inputs, work / "prepared", account, known, progress)
            publish(work / "prepared", folder)
    except OSError as error:  # not of an input, whose errors are DataErrors
        raise OSError(f"{folder}: cannot be written; the same command goes on: {error}") from error
    return manifest


def _encode(
    schema: Schema,
    source: Source,
    inputs: str,
    new: Path,
    account: BadRows | None,
    known: PreparedIds | None,
    progress: bool,
) -> Manifest:
    """The two passes over parquet, and all files of the prepared folder ``new``."""
    new.mkdir(exist_ok=True)
    rows = sum(source.count_rows(split) for split in ("train", *SPLITS))
    with tqdm(total=rows, unit=" rows", unit_scale=True, desc="prepare", disable=not progress) as bar:
        encoders = fit_encoders(schema.fields, source.scan("train", bar.update))
        encoders = encoders if known is None else grown(known.encoders, encoders)
        for split in SPLITS:
            path = new / f"{split}.parquet"
            if path.exists():  # of a run that was interrupted later
                bar.update(source.count_rows(split))
            else:
                write_split(schema, encoders, source.scan(split, bar.update), path)
    splits = {split: split_info(new / f"{split}.parquet") for split in SPLITS}
    _check_splits(splits)
    write_vocabulary(new / VOCABULARY, encoders)
    manifest = _manifest(schema, inputs, encoders, splits, account)
    manifest.write(new)
    return manifest


def _manifest(
    schema: Schema,
    inputs: str,
    encoders: dict[str, Encoder],
    splits: dict[str, SplitInfo],
    account: BadRows | None,
) -> Manifest:
    fields = [field_info(field, encoders[field.name]) for field in schema.fields]
    return Manifest(
        dataset=schema.name,
        attribution=schema.attribution,
        format=FORMAT,
        fingerprint=fingerprint(fields, schema.labels, encoders),
        inputs=inputs,
        tasks=[label.name for label in schema.labels],
        group=schema.group,
        splits=splits,
        fields=fields,
        schema=schema.source,
        weight=schema.weight,
        bad_rows=account,
    )


def _check_splits(splits: dict[str, SplitInfo]) -> None:
    for name, info in splits.items():
        if info.rows == 0:
            raise DataError(f"split {name} has no rows")
    for task, positives in splits["train"].positives.items():
        if positives in (0, splits["train"].rows):
            raise DataError(f"label {task}: {positives} of {splits['train'].rows} training rows are positive")


@dataclass(frozen=True)
class PreparedIds:
    """What the ids of another prepared folder mean."""

    fingerprint: str
    encoders: dict[str, Encoder]


def _known(schema: Schema, folder: Path) -> PreparedIds:
    manifest = read_manifest(folder)
    theirs = parse_schema(manifest.schema).fields
    if theirs != schema.fields:
        raise DataError(f"{folder}: its fields are not those of data set {schema.name}, so its ids cannot be kept")
    return PreparedIds(manifest.fingerprint, read_encoders(folder, manifest))


def _inputs_digest(schema: Schema, paths: dict[str, Path], known: PreparedIds | None) -> str:
    """sha256 of the schema, what is grown and all input files, those of a folder in the order they are read."""
    digest = hashlib.sha256(dumps([FORMAT, schema.source, *([known.fingerprint] if known else [])]).encode())
    for path in paths.values():
        for part in data_files(path):
            with part.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _existing(folder: Path, inputs: str) -> Manifest | None:
    """The manifest of a folder that is up to date, None for a place to write to.

    Raises:
        DataError: what is there may not be replaced, since it is not wholly the work of ``prepare``.
    """
    if not folder.exists():
        return None
    if not folder.is_dir():
        raise DataError(f"{folder}: exists and is not a folder; name another one")
    entries = sorted(folder.iterdir())
    if entries and not (folder / MANIFEST).is_file():
        raise DataError(f"{folder}: exists and is not a prepared folder (it holds {entries[0].name}); name another one")
    if entries and read_head(folder / MANIFEST).get("inputs") == inputs:
        with suppress(DataError):  # damaged: prepared anew
            return read_manifest(folder)
    for entry in entries:
        if entry.name not in FILES or not entry.is_file():
            raise DataError(f"{folder}: not replaced, since it also holds {entry.name}; name another folder")
    return None
