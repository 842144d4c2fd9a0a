"""``schema.json``: what a prepared folder holds and what its ids mean, but for the values of its vocabularies."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adaftr_fast._json import dumps, from_json
from adaftr_fast.data.encode.encoders import Buckets, Encoder, Vocabulary
from adaftr_fast.data.raw.bad_rows import BadRows
from adaftr_fast.data.schema.types import Field, Label
from adaftr_fast.errors import DataError

FORMAT = 4  # of prepared folders; raise it when their content changes for the same schema and files
MANIFEST = "schema.json"


@dataclass(frozen=True)
class FieldInfo:
    """One field of a prepared folder: ids in [0, num_embeddings), 0 = unknown or missing.

    ``edges`` are those of a numeric field: id k stands for ``(edges[k-2], edges[k-1]]``. A row of a ``multiple`` field
    has a list of ids.
    """

    name: str
    kind: str
    columns: list[str]
    num_embeddings: int
    edges: list[float] | None = None
    multiple: bool = False


@dataclass(frozen=True)
class SplitInfo:
    """Rows of a split and how many are positive, per task.

    Attributes:
        files: where several parts wrote it, their files' names in the order of their rows, and the rows of each;
            empty = one file with the split's name.
    """

    rows: int
    positives: dict[str, int]
    files: dict[str, int] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True)
class Manifest:
    """A prepared folder in words.

    Attributes:
        fingerprint: sha256 of the meaning of ids and labels; equal fingerprints mean interchangeable models.
        inputs: sha256 of the schema, the format and the input files; equal inputs need no second preparation.
        schema: the schema file the folder was prepared by.
        weight: the column the sample weights come from, None = all one.
        bad_rows: the account of text inputs; None = there were none.
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
    weight: str | None = None
    bad_rows: BadRows | None = None

    @property
    def num_embeddings(self) -> list[int]:
        """Embedding rows of each field."""
        return [field.num_embeddings for field in self.fields]

    def files(self, split: str) -> dict[str, int]:
        """The names of a split's files in the order of their rows, and the rows of each."""
        info = self.splits[split]
        return info.files or {f"{split}.parquet": info.rows}

    def write(self, folder: Path) -> None:
        (folder / MANIFEST).write_text(dumps(dataclasses.asdict(self), indent=2) + "\n", encoding="utf-8")


def read_manifest(folder: Path) -> Manifest:
    """Reads ``folder/schema.json``. Raises DataError when there is none, one of another format or a damaged one."""
    path = folder / MANIFEST
    if not path.is_file():
        raise DataError(f"{folder}: not a prepared folder (no {MANIFEST}); make one with `adaftr-fast prepare`")
    content = read_manifest_json(path)
    if content["format"] != FORMAT:
        raise DataError(f"{path}: written in format {content['format']}, this version reads {FORMAT}: prepare again")
    try:
        return from_json(Manifest, content)
    except ValueError as error:
        raise DataError(f"{path}: damaged: {error}") from error


def read_manifest_json(path: Path) -> dict[str, Any]:
    """The content of a manifest of any format, unchecked but for the two keys by which it is known to be one.

    Raises:
        DataError: not JSON, or without ``format`` and ``fingerprint``.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError alike
        raise DataError(f"{path}: not a manifest of a prepared folder: {error}") from error
    if not isinstance(content, dict) or not {"format", "fingerprint"} <= content.keys():
        raise DataError(f"{path}: not a manifest of a prepared folder: no keys 'format' and 'fingerprint'")
    return content


def field_info(field: Field, encoder: Encoder) -> FieldInfo:
    edges = [float(edge) for edge in encoder.edges] if isinstance(encoder, Buckets) else None
    return FieldInfo(field.name, field.kind, list(field.columns), encoder.num_embeddings, edges, field.tokens == "all")


def fingerprint(fields: list[FieldInfo], labels: Sequence[Label], encoders: dict[str, Encoder]) -> str:
    """sha256 over everything a model's weights depend on: fields, edges, vocabularies in id order, labels' meaning."""
    meaning = [[dataclasses.asdict(each) for each in part] for part in (fields, labels)]
    digest = hashlib.sha256(dumps(meaning).encode())
    for field in fields:
        encoder = encoders[field.name]
        if isinstance(encoder, Vocabulary):
            digest.update(json.dumps(encoder.values.to_pylist()).encode())
    return digest.hexdigest()
