"""The manifest of a prepared folder, ``schema.json``: its content and the meaning of its ids,
except vocabularies.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from adaftr_fast.data.arrow import reading
from adaftr_fast.data.bad_rows import BadRows, Unused
from adaftr_fast.data.schema.parse import MOST_IDS, MOST_ROWS, funnel_stages, parse_schema
from adaftr_fast.data.schema.types import Schema
from adaftr_fast.errors import DataError
from adaftr_fast.files.json import dumps, from_json, loads
from adaftr_fast.files.whole import check_name, sha256
from adaftr_fast.nn.encoding import NumericEncoding

# format of prepared folders; increase it when their values change for the same schema and files
FORMAT = 6
MANIFEST = "schema.json"


@dataclass(frozen=True)
class FieldInfo:
    """One field of a prepared folder. Ids are in [0, num_embeddings); 0 means unknown or missing.

    Attributes:
        edges: bucket edges of a numeric field: id k stands for ``(edges[k-2], edges[k-1]]``.
        multiple: whether a row has a list of ids.
    """

    name: str
    kind: str
    columns: list[str]
    num_embeddings: int
    edges: list[float] | None = None
    multiple: bool = False


@dataclass(frozen=True)
class SplitInfo:
    """Number of rows of a split, and of positive rows per task.

    Attributes:
        unknown: rows per field that are missing or unknown: with id 0, or without any token.
        outside_funnel: rows per later stage of the schema's funnel that are positive in it but not
            in the stage before; empty without a funnel.
        both: rows that are positive in two tasks, by the first and the second of them in the order
            of the tasks.
        files: rows of each shard's file by name, in order of the rows; empty if one file has the
            name of the split.
    """

    rows: int
    positives: dict[str, int]
    unknown: dict[str, int]
    outside_funnel: dict[str, int] = dataclasses.field(default_factory=dict)
    both: dict[str, dict[str, int]] = dataclasses.field(default_factory=dict)
    files: dict[str, int] = dataclasses.field(default_factory=dict)


def total(infos: Iterable[SplitInfo]) -> SplitInfo:
    """Returns the sum of the rows of several files or splits."""
    return SplitInfo(**_sum([dataclasses.asdict(info) for info in infos]))


def _sum(counts: list[Any]) -> Any:
    """Returns the sum of numbers, or of dictionaries of numbers by key."""
    if not isinstance(counts[0], dict):
        return sum(counts)
    names = dict.fromkeys(name for each in counts for name in each)
    return {name: _sum([each[name] for each in counts if name in each]) for name in names}


@dataclass(frozen=True)
class ValueInfo:
    """The training values of a field with a vocabulary or buckets.

    Attributes:
        distinct: number of distinct values, without missing ones.
        rare: rows, or tokens of lists, whose value is too rare for an id.
        decimals: whether nine of ten distinct values of a categorical field are text of decimal
            numbers.
    """

    distinct: int
    rare: int
    decimals: bool


@dataclass(frozen=True)
class Manifest:
    """Describes a prepared folder.

    Attributes:
        fingerprint: sha256 of the meaning of ids and labels. Models are interchangeable between
            equal fingerprints.
        inputs: sha256 of the schema, the format and the input files. Equal inputs need not be
            prepared again.
        schema: content of the schema file.
        weight: column of the sample weights; None if all are one.
        bad_rows: bad rows of text inputs; None if there were no text inputs.
        unused: rows that are in no split.
        dense: encodings of the dense fields, whose numbers are stored as they are.
        values: the training values of each field whose values are counted; {} if the ids of another
            folder grow.
        bounds: the conditions of the splits by shares of time, by split.
        compared: the most telling values of the columns that labels compare with text, and their
            rows in all files, by column; empty without such columns.
        sha256: sha256 of every file by name; that of the manifest is the one it would have without
            its own.
    """

    dataset: str
    attribution: str
    format: int
    fingerprint: str
    inputs: str
    tasks: list[str]
    group: str | None
    splits: dict[str, SplitInfo]
    fields: list[FieldInfo]
    schema: dict[str, Any]
    weight: str | None
    bad_rows: BadRows | None
    unused: Unused
    dense: list[NumericEncoding]
    values: dict[str, ValueInfo] = dataclasses.field(default_factory=dict, kw_only=True)
    bounds: dict[str, str] = dataclasses.field(default_factory=dict, kw_only=True)
    compared: dict[str, dict[str, int]]
    sha256: dict[str, str]  # the last one, see ``signed``

    @cached_property
    def parsed(self) -> Schema:
        """The schema. Raises DataError if it is not a valid one."""
        return parse_schema(self.schema)

    @property
    def num_embeddings(self) -> list[int]:
        """Number of embedding rows of each field."""
        return [field.num_embeddings for field in self.fields]

    @property
    def field_names(self) -> list[str]:
        """Name of each field of embeddings."""
        return [field.name for field in self.fields]

    @property
    def features(self) -> list[str]:
        """Name of each field, of embeddings, then dense."""
        return self.field_names + [encoding.name for encoding in self.dense]

    @property
    def funnel(self) -> tuple[str, ...]:
        """Tasks of which each can be positive only where the one before it is; () if there are
        none.
        """
        return funnel_stages(self.schema.get("funnel"), self.tasks)

    @property
    def total(self) -> SplitInfo:
        """The sum of all splits."""
        return total(self.splits.values())

    def files(self, split: str) -> dict[str, int]:
        """Returns the rows of each file of a split by name, in order of the rows."""
        info = self.splits[split]
        return info.files or {f"{split}.parquet": info.rows}

    def write(self, folder: Path) -> None:
        """Writes ``folder/schema.json``."""
        (folder / MANIFEST).write_text(signed(dataclasses.asdict(self)), encoding="utf-8")

    def check_file(self, path: Path, content: bytes | None = None) -> None:
        """Checks the sha256 of a file of the folder.

        Args:
            content: the content, if it has been read.

        Raises:
            DataError: the file cannot be read or its sha256 differs: it is damaged, or the folder
                was replaced after this manifest was read.
        """
        with self.naming_replacement(path.parent):  # a new folder may lack the file
            with reading(path, "not readable"):
                found = sha256(path) if content is None else hashlib.sha256(content).hexdigest()
            if found != self.sha256.get(path.name):
                raise DataError(
                    f"{path}: damaged: its sha256 differs from the one in {MANIFEST}; prepare again"
                )

    def check_folder(self, folder: Path) -> None:
        """Raises DataError if ``folder`` has another manifest by now."""
        present = self
        with suppress(DataError, OSError):  # it is absent, or cannot be read
            present = read_manifest(folder)
        if present != self:
            raise DataError(
                f"{folder}: was replaced since it was opened; start again with the new one"
            )

    @contextmanager
    def naming_replacement(self, folder: Path) -> Iterator[None]:
        """Raises the error of ``check_folder`` in place of a DataError of the block, if that is the
        reason.
        """
        try:
            yield
        except DataError:
            self.check_folder(folder)
            raise


def signed(content: dict[str, Any], name: str = MANIFEST) -> str:
    """Returns the text of a file whose ``sha256`` by name ends with its own: the one that it has
    with "" in its place.
    """
    content = content | {"sha256": content["sha256"] | {name: ""}}
    before, quotes, after = f"{dumps(content, indent=2)}\n".rpartition('""')
    digest = hashlib.sha256((before + quotes + after).encode()).hexdigest()
    return f'{before}"{digest}"{after}'


def read_manifest(folder: Path) -> Manifest:
    """Reads ``folder/schema.json``.

    Raises:
        DataError: the file is missing, damaged or of another format, or names a file outside
            ``folder``.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise DataError(
            f"{folder}: not a prepared folder (no {MANIFEST}); make one with `adaftr-fast prepare`"
        )
    data = path.read_bytes()
    content = parse_manifest(path, data)
    if content["format"] != FORMAT:
        raise DataError(
            f"{path}: written in format {content['format']}, this version reads {FORMAT}: "
            "prepare again"
        )
    try:
        manifest = from_json(Manifest, content)
        _check_fields(manifest)
        _check_splits(manifest)
        check_own_sha256(data, manifest.sha256.get(MANIFEST, ""))
        return manifest
    except ValueError as error:
        raise DataError(f"{path}: damaged: {error}") from error


def _check_fields(manifest: Manifest) -> None:
    """Raises ValueError unless there are fields and tasks, and the fields are those of
    the schema.
    """
    if not manifest.fields or not manifest.tasks:
        raise ValueError(
            f"expected fields and tasks, got {len(manifest.fields)} and {len(manifest.tasks)}"
        )
    for field in manifest.fields:
        if not 1 <= field.num_embeddings <= MOST_IDS + 1:
            expected = f"num_embeddings of 1 to {MOST_IDS + 1}"
            raise ValueError(
                f"fields: {field.name}: expected {expected}, got {field.num_embeddings}"
            )
    schema = manifest.parsed
    names = [each.name for each in schema.features + schema.labels]
    numeric = [field.kind == "numeric" for field in schema.fields]
    with_edges = [field.edges is not None for field in manifest.fields]
    if names != manifest.features + manifest.tasks or numeric != with_edges:
        raise ValueError("its fields are not those of its schema")
    for name, values in manifest.values.items():
        counts = (values.distinct, values.rare)
        if min(counts) < 0 or max(counts) > MOST_ROWS:
            raise ValueError(f"values.{name}: expected counts of 0 to {MOST_ROWS}, got {counts}")


def _check_splits(manifest: Manifest) -> None:
    """Raises ValueError unless there is a training split, and all splits count what the manifest
    has.
    """
    features = manifest.features
    for split, info in manifest.splits.items():
        check_name(split, "splits")
        is_possible = 1 <= info.rows <= MOST_ROWS
        if not is_possible or not _counts_each(manifest.tasks, info.positives, info.rows):
            counts = f"{info.rows} rows and positives {info.positives}"
            tasks = ", ".join(manifest.tasks)
            expected = f"1 to {MOST_ROWS} rows, and as many or fewer positives of {tasks}"
            raise ValueError(f"splits.{split}: expected {expected}, got {counts}")
        if not _counts_each(features, info.unknown, info.rows):
            expected = f"counts of {', '.join(features)} up to {info.rows}"
            raise ValueError(f"splits.{split}.unknown: expected {expected}, got {info.unknown}")
        for name in info.files:
            check_name(name, f"splits.{split}.files")
    if "train" not in manifest.splits:
        raise ValueError(f"splits: expected train, got {', '.join(manifest.splits) or 'none'}")


def _counts_each(names: Sequence[str], counts: dict[str, int], rows: int) -> bool:
    return counts.keys() == set(names) and all(0 <= count <= rows for count in counts.values())


def check_own_sha256(data: bytes, digest: str) -> None:
    """Raises ValueError unless the file ``data`` is as ``signed`` made it."""
    before, _, after = data.rpartition(digest.encode() or b"?")
    if hashlib.sha256(before + after).hexdigest() != digest:
        raise ValueError("its sha256 differs from the recorded one")


def parse_manifest(path: Path, data: bytes) -> dict[str, Any]:
    """Parses a manifest of any format without checks, except for the two keys that identify a
    manifest.

    Raises:
        DataError: the file is not JSON, or lacks ``format`` or ``fingerprint``.
    """
    try:
        content = loads(data.decode())
    except ValueError as error:  # includes JSONDecodeError and UnicodeDecodeError
        raise DataError(f"{path}: not a manifest of a prepared folder: {error}") from error
    if not isinstance(content, dict) or not {"format", "fingerprint"} <= content.keys():
        raise DataError(
            f"{path}: not a manifest of a prepared folder: no keys 'format' and 'fingerprint'"
        )
    return content
