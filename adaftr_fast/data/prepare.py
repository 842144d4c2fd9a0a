"""Raw parquet files to a prepared folder: ids, labels and groups per split, and what they mean.

Two streaming passes: vocabularies and bucket edges from the training rows, then every split encoded batch by
batch. The folder is built beside its place and renamed into it, so that it is whole or absent.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from tqdm import tqdm

from adaftr_fast._json import dumps
from adaftr_fast.data.encode import Encoder, GroupNumbers, field_values, fit_encoders
from adaftr_fast.data.errors import DataError
from adaftr_fast.data.manifest import (
    FORMAT,
    MANIFEST,
    VOCABULARY,
    Manifest,
    SplitInfo,
    field_info,
    fingerprint,
    read_head,
    read_manifest,
    write_vocabulary,
)
from adaftr_fast.data.schema_types import SPLITS, Label, Schema
from adaftr_fast.data.source import LABEL, Source, input_paths
from adaftr_fast.data.synthetic.write import LOG, write_log

GROUP = "group:id"  # column of a prepared file; the colon keeps it apart from field and task names
TRUTH = "truth:"  # prefix of the columns of known quantities, which no model reads
FILES = {MANIFEST, VOCABULARY, *(f"{split}.parquet" for split in SPLITS)}  # all that a prepared folder holds


def prepare(schema: Schema, files: list[str | Path] | None, folder: str | Path, *, progress: bool = False) -> Manifest:
    """Writes ``train/validation/test.parquet``, ``schema.json`` and ``vocabulary.parquet`` to ``folder``.

    A folder that already holds this preparation of these files is left as it is; another preparation is replaced,
    provided that its folder holds nothing else.

    Args:
        files: the input files in the order of ``schema.files``; None or empty for what is shipped or generated.
        progress: show a progress bar.

    Raises:
        DataError: an unreadable input, a missing column, a label that is neither 0 nor 1, an empty split, or
            a folder that holds something else.
    """
    folder = Path(folder)
    generate = schema.generate is not None and not files
    paths = {} if generate else input_paths(schema, files or [])
    inputs = _inputs_digest(schema, paths)
    existing = _existing(folder, inputs)
    if existing is not None:
        return existing
    with replacing(folder) as new, tempfile.TemporaryDirectory(dir=new) as scratch:
        if generate:
            write_log(schema.generate, scratch, progress=progress)
            paths = {schema.files[0]: Path(scratch) / LOG}
        source = Source(schema, paths)
        rows = sum(source.count_rows(split) for split in ("train", *SPLITS))
        with tqdm(total=rows, unit=" rows", unit_scale=True, desc="prepare", disable=not progress) as bar:
            encoders = fit_encoders(schema.fields, _counted(source.scan("train"), bar))
            splits = {
                split: _write_split(schema, encoders, _counted(source.scan(split), bar), new / f"{split}.parquet")
                for split in SPLITS
            }
        _check_splits(splits)
        write_vocabulary(new / VOCABULARY, encoders)
        manifest = _manifest(schema, inputs, encoders, splits)
        manifest.write(new)
    return manifest


def _manifest(schema: Schema, inputs: str, encoders: dict[str, Encoder], splits: dict[str, SplitInfo]) -> Manifest:
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
    )


def _write_split(
    schema: Schema, encoders: dict[str, Encoder], batches: Iterator[pa.RecordBatch], path: Path
) -> SplitInfo:
    groups = GroupNumbers() if schema.group else None
    rows, positives = 0, dict.fromkeys((label.name for label in schema.labels), 0)
    columns = [pa.field(field.name, pa.int32()) for field in schema.fields]
    columns += [pa.field(label.name, pa.uint8()) for label in schema.labels]
    columns += [pa.field(GROUP, pa.int64())] if groups else []
    columns += [pa.field(TRUTH + name, pa.float64()) for name in schema.truth]
    with pq.ParquetWriter(path, pa.schema(columns), compression="zstd", write_page_checksum=True) as writer:
        for batch in batches:
            encoded = {field.name: encoders[field.name].encode(field_values(field, batch)) for field in schema.fields}
            for label in schema.labels:
                encoded[label.name] = _label_values(label, batch[LABEL + label.name])
                positives[label.name] += pc.sum(encoded[label.name]).as_py() or 0
            if groups:
                encoded[GROUP] = _group_numbers(schema.group, groups, batch[schema.group])
            encoded |= {TRUTH + name: _truth_values(name, batch[column]) for name, column in schema.truth.items()}
            writer.write_batch(pa.RecordBatch.from_pydict(encoded, schema=writer.schema))
            rows += batch.num_rows
    return SplitInfo(rows, positives)


def _group_numbers(name: str, groups: GroupNumbers, values: pa.Array) -> pa.Array:
    """Raw group values [n] to int64 numbers [n], or DataError."""
    try:
        return groups.encode(values)
    except pa.ArrowException as error:
        raise DataError(f"group {name}: expected text or numbers, got values of type {values.type}") from error


def _truth_values(name: str, values: pa.Array) -> pa.Array:
    """Raw values of a truth column [n] to float64 [n], or DataError."""
    try:
        return values.cast(pa.float64())
    except pa.ArrowException as error:
        raise DataError(f"truth {name}: expected numbers, got values of type {values.type}") from error


def _label_values(label: Label, values: pa.Array) -> pa.Array:
    """Raw label values [n] to uint8 0/1 [n], or DataError."""
    if values.null_count:
        raise DataError(f"label {label.name}: missing in {values.null_count} rows of a batch of {len(values)}")
    try:
        numbers = values.cast(pa.float64())
    except pa.ArrowException as error:
        raise DataError(f"label {label.name}: expected 0 or 1, got values of type {values.type}") from error
    wrong = numbers.filter(pc.invert(pc.is_in(numbers, value_set=pa.array([0.0, 1.0]))))
    if len(wrong):
        raise DataError(f"label {label.name}: expected 0 or 1, got {wrong[0].as_py():g}")
    return numbers.cast(pa.uint8())


def _check_splits(splits: dict[str, SplitInfo]) -> None:
    for name, info in splits.items():
        if info.rows == 0:
            raise DataError(f"split {name} has no rows")
    for task, positives in splits["train"].positives.items():
        if positives in (0, splits["train"].rows):
            raise DataError(f"label {task}: {positives} of {splits['train'].rows} training rows are positive")


def _counted(batches: Iterator[pa.RecordBatch], bar: tqdm) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        yield batch
        bar.update(batch.num_rows)


def _inputs_digest(schema: Schema, paths: dict[str, Path]) -> str:
    """sha256 of the schema and all input files, those of a folder in order of their names."""
    digest = hashlib.sha256(dumps([FORMAT, schema.source]).encode())
    for path in paths.values():
        if not path.exists():
            raise DataError(f"{path}: no such file")
        for part in sorted(path.glob("**/*.parquet")) if path.is_dir() else [path]:
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


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """A new folder that takes the place of ``folder`` when the block ends well and vanishes when it fails."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    new, old = (folder.parent / f".{folder.name}.{word}-{os.getpid()}" for word in ("new", "old"))
    new.mkdir()
    try:
        yield new
    except BaseException:
        shutil.rmtree(new)
        raise
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
