"""Prepares raw logs: encodes ids, labels and groups of every split, and records their meaning.

Text is staged as parquet first. Where splits are shares of time, a pass over the times finds their
bounds. Then one pass over the training rows computes vocabularies and bucket edges, and another
encodes every split in batches. But for the times, an engine runs these steps (steps.py) for each
shard of the rows, and this process merges their results (merge.py). The folder is built in a
temporary one next to its destination and renamed, so it is complete or absent.
"""

from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from adaftr_fast.data.arrow import shown
from adaftr_fast.data.bad_rows import BadRows, check_share, option
from adaftr_fast.data.dataset.manifest import (
    FORMAT,
    MANIFEST,
    Manifest,
    parse_manifest,
    read_manifest,
)
from adaftr_fast.data.encode.vocabulary import read_encoders
from adaftr_fast.data.memory import Memory
from adaftr_fast.data.parallel import Shard
from adaftr_fast.data.prepare import steps
from adaftr_fast.data.prepare.merge import (
    PreparedIds,
    merge_counted,
    merge_encoded,
    merge_read,
)
from adaftr_fast.data.prepare.steps import InputFiles, Job
from adaftr_fast.data.prepare.work_folder import remove_left, work_folder
from adaftr_fast.data.raw.inputs import has_rows, staged_inputs
from adaftr_fast.data.raw.source import data_files, input_paths
from adaftr_fast.data.raw.times import with_time_types, with_times
from adaftr_fast.data.schema.parse import parse_schema
from adaftr_fast.data.schema.types import Schema
from adaftr_fast.data.synthetic.write import LOG, write_log
from adaftr_fast.display.progress import progress_bar
from adaftr_fast.engines import Engine, Local, ignore
from adaftr_fast.errors import ConfigError, DataError
from adaftr_fast.files.json import dumps
from adaftr_fast.files.whole import followed, make_folder
from adaftr_fast.files.whole import replace as replace_path

SHARD_BYTES = 512 << 20  # of the inputs, for each shard on a cluster
MAX_SHARDS = 1000
Results = list[tuple[Shard, Any]]  # of a step, by shard
FILES = re.compile(
    r"schema\.json|vocabulary\.parquet|report\.html|(train|validation|test)(-\d+-of-\d+)?\.parquet"
)


def prepare(
    schema: Schema,
    files: Sequence[str | Path] | None,
    folder: str | Path,
    *,
    engine: Engine | None = None,
    shards: int | None = None,
    bad_rows: float = 0.0,
    grow: str | Path | None = None,
    memory: float | None = None,
    progress: bool = False,
    finish: Callable[[Path], None] = ignore,
) -> Manifest:
    """Writes ``train/validation/test.parquet``, ``schema.json`` and ``vocabulary.parquet`` to
    ``folder``.

    If ``folder`` already holds the result for this schema and these files, it is left unchanged.
    Another prepared folder is replaced, unless it also holds other files. Rows, ids, vocabulary and
    manifest do not depend on the engine and the number of shards, except for the files that hold
    the rows: each shard writes one per split.

    Args:
        files: input files in the order of ``schema.files``: parquet files, folders of parquet
            files, delimited text, or JSON lines. None or empty reads the shipped file or generates the
            synthetic log of the schema.
        engine: runs the steps; None is this process. The machines of a remote engine must see the
            files and the folder above ``folder`` under the same names.
        shards: into how many shards the rows are divided. None is 1, or one for each 512 MB of the
            files with a remote engine.
        bad_rows: share of the rows of a text file that may be unreadable. They are left out and
            reported.
        grow: prepared folder with the same fields. Its ids keep their meaning, buckets included,
            and values that are new in ``files`` get ids after its own.
        memory: how many GB each process may take, beside the distinct values of the fields; None
            for 4.
        progress: whether to show progress bars.
        finish: called with the folder before it is published, to add ``report.html``.

    Raises:
        ConfigError: ``memory`` is too small for a batch of rows, or ``bad_rows`` for what an
            earlier call left out.
        DataError: an input is unreadable, a column is missing, too many rows are bad, a label is
            neither 0 nor 1, a split is empty, or ``folder`` holds other files.
        EngineError: the engine fails, or one of its machines does not see the files.
        BusyError: another process prepares ``folder``.
        OSError: ``folder`` cannot be written.
    """
    engine = engine or Local()
    bound = Memory.of(memory)
    check_share(bad_rows)
    if shards is not None and not 1 <= shards <= MAX_SHARDS:
        raise DataError(f"shards: expected 1 to {MAX_SHARDS}, got {shards}")
    generated = None if files else schema.generate
    inputs = InputFiles.found(input_paths(schema, files or []) if generated is None else {})
    known = None
    if grow is not None:
        schema, known = _grown(schema, Path(grow))
    parts = Shard.all(
        shards or (min(-(-inputs.size // SHARD_BYTES), MAX_SHARDS) or 1 if engine.remote else 1)
    )
    digest = _inputs_digest(schema, known, inputs, engine, parts, progress)
    local = followed(Path(folder))
    if (existing := _existing(local, digest, bad_rows)) is not None:
        remove_left(local)
        return existing
    try:
        with work_folder(local) as work:
            if generated is not None:
                write_log(generated, work.generated, progress=progress)
                inputs = InputFiles.found({schema.files[0]: [work.generated / LOG]})
            schema = with_time_types(schema, inputs.paths)
            texts, rows = staged_inputs(schema, inputs.paths, work.staged)
            job = Job(
                schema,
                inputs,
                work,
                digest,
                tolerance=bad_rows,
                grows=known is not None,
                texts=texts,
                rows=rows,
                remote=engine.remote,
                memory=bound,
            )
            _Run(job, engine, parts, progress).run(known)
            finish(work.prepared)
            if local.exists():
                _check_replaceable(local)
            replace_path(work.prepared, local)
    except DataError:
        inputs.check()  # a file that was read while it changed is not what its error says
        raise
    except OSError as error:  # errors of inputs are DataErrors
        raise OSError(f"{folder}: cannot be written: {error}") from error
    return read_manifest(local)


@dataclass
class _Run:
    """Runs the steps in order."""

    job: Job
    engine: Engine
    shards: list[Shard]
    progress: bool

    def run(self, known: PreparedIds | None) -> None:
        """Fills the prepared folder of the job.

        Args:
            known: ids to grow, if any.
        """
        bad_rows = self._read()
        if any(rule.time for rule in self.job.schema.split.values()):
            schema = with_times(self.job.source(), progress=self.progress)
            self.job = replace(self.job, schema=schema)
        counted = self._on_shards("count", steps.count)
        manifest = merge_counted(self.job, known, bad_rows, counted)
        encoded = self._on_shards("encode", partial(steps.encode, manifest))
        merge_encoded(self.job.work, manifest, encoded)

    def _read(self) -> BadRows:
        """Stages all text. Returns its bad rows."""
        bad_rows = BadRows()
        for number, texts in enumerate(self.job.texts):
            for text in texts:
                make_folder(text.folder)
            size = sum(text.path.stat().st_size for text in texts)
            name = "join" if number else "read"  # join needs what read has staged
            staged = self._on_shards(name, partial(steps.read, number), size)
            blocks, found = merge_read(self.job, texts, staged)
            self.job = replace(self.job, blocks=self.job.blocks | blocks)
            bad_rows += found
        return bad_rows

    def _on_shards(self, name: str, step: Callable[..., Any], text: int | None = None) -> Results:
        """Returns the results of a step by shard.

        Args:
            text: bytes of text that the step reads; None if it reads all rows.
        """
        job = self.job.for_workers() if self.engine.remote else self.job
        with self._bar(name, text) as bar:
            results = self.engine.map(partial(step, job), self.shards, advance=bar.update)
        self.job.inputs.check()
        return list(zip(self.shards, results))

    def _bar(self, name: str, text: int | None) -> tqdm:
        unit = " rows" if text is None else "B"
        total = self.job.source().count_rows() if text is None and self.progress else text or 0
        return progress_bar(
            total=total, unit=unit, unit_scale=True, desc=name, disable=not self.progress
        )


def _inputs_digest(
    schema: Schema,
    known: PreparedIds | None,
    inputs: InputFiles,
    engine: Engine,
    shards: list[Shard],
    progress: bool,
) -> str:
    """Returns the sha256 of the schema, the ids to grow and the digests of all input files."""
    seen = inputs.elsewhere() if engine.remote else inputs
    step = partial(steps.hash_files, seen, engine.remote)
    digests = [""] * len(inputs.state)
    parts = Shard.all(min(len(shards), len(digests)))
    disable = not (progress and engine.remote)
    with progress_bar(
        total=inputs.size, unit="B", unit_scale=True, desc="hash", disable=disable
    ) as bar:
        for part, found in zip(parts, engine.map(step, parts, advance=bar.update)):
            digests[part.stride] = found
    _warn_of_copies(inputs, digests)
    grown = [known.fingerprint] if known else []
    whole = hashlib.sha256(dumps([FORMAT, schema.source, *grown]).encode())
    whole.update(bytes.fromhex("".join(digests)))
    return whole.hexdigest()


def _warn_of_copies(inputs: InputFiles, digests: Sequence[str]) -> None:
    """Warns of files of one role that have the same content, so that their rows count twice."""
    of_file = iter(digests)
    for paths in inputs.paths.values():
        first: dict[str, Path] = {}
        files = (file for each in paths for file in data_files(each))
        for path, digest in zip(files, of_file):  # fewer digests if a file was added meanwhile
            other = first.setdefault(digest, path)
            if other is not path and has_rows(path):
                warnings.warn(
                    f"{shown(path)}: has the same content as {shown(other)}, so each of its rows is "
                    "read twice; leave one of them out",
                    stacklevel=4,
                )


def _grown(schema: Schema, folder: Path) -> tuple[Schema, PreparedIds]:
    """Returns the schema with its fields in the order of a prepared folder, and the ids of the
    folder.
    """
    manifest = read_manifest(folder)
    fields = schema.source["fields"]
    order = manifest.schema["fields"]
    if fields.keys() == order.keys():
        schema = parse_schema(schema.source | {"fields": {name: fields[name] for name in order}})
    if differing := _differing(manifest.parsed, schema):
        raise DataError(
            f"{folder}: its fields differ from those of data set {schema.name} in "
            f"{', '.join(differing)}, so its ids cannot be kept"
        )
    encoders = read_encoders(folder, manifest)
    return schema, PreparedIds(manifest.fingerprint, encoders, manifest.dense)


def _differing(known: Schema, schema: Schema) -> list[str]:
    """Returns the fields that only one of the schemas has, or that they read in different ways."""

    def read(each: Schema) -> dict[str, Any]:
        return {field.name: (field, each.meaning(field.columns)) for field in each.features}

    one = read(known)
    other = read(schema)
    differing = [name for name in one | other if one.get(name) != other.get(name)]
    return differing or ([] if [*one] == [*other] else ["their order"])


def _existing(folder: Path, inputs: str, tolerance: float) -> Manifest | None:
    """Returns the manifest of a folder that is up to date; None if the folder is to be written.

    Raises:
        ConfigError: a larger share of rows was left out than ``tolerance``.
        DataError: the folder may not be replaced, because it holds other files.
    """
    if not folder.exists():
        return None
    path = folder / MANIFEST
    if path.is_file() and parse_manifest(path, path.read_bytes()).get("inputs") == inputs:
        try:
            manifest = read_manifest(folder)
        except DataError:
            pass  # damaged: prepare again
        else:
            _check_left_out(folder, manifest, tolerance)
            return manifest
    _check_replaceable(folder)
    return None


def _check_left_out(folder: Path, manifest: Manifest, tolerance: float) -> None:
    """Raises ConfigError if a larger share of rows was left out than ``tolerance``."""
    found = manifest.bad_rows or BadRows()
    if found.exceed(tolerance):
        left_out = f"more rows were left out than bad_rows {tolerance:g} allows: {found.summary()}"
        raise ConfigError(f"{folder}: {left_out}; pass {option(found.share)}, or remove the folder")


def _check_replaceable(folder: Path) -> None:
    """Raises DataError if the folder holds anything that ``prepare`` did not write."""
    if not folder.is_dir():
        raise DataError(f"{folder}: exists and is not a folder; name another one")
    entries = sorted(entry.name for entry in folder.iterdir())
    if entries and MANIFEST not in entries:
        raise DataError(
            f"{folder}: exists and is not a prepared folder (it holds {entries[0]}); name "
            "another one"
        )
    for name in entries:
        if not (FILES.fullmatch(name) and (folder / name).is_file()):
            raise DataError(
                f"{folder}: not replaced, because it also holds {name}; name another folder"
            )
