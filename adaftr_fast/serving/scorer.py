"""An exported model in use: raw rows to ids to probabilities. n rows, F fields, T tasks, N ids."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from adaftr_fast._files import sha256
from adaftr_fast._json import from_json
from adaftr_fast.data.dataset.bags import interleave
from adaftr_fast.data.dataset.manifest import MANIFEST, Manifest, read_manifest
from adaftr_fast.data.dataset.rows import matrix
from adaftr_fast.data.dataset.vocabulary import VOCABULARY, read_encoders
from adaftr_fast.data.encode.encoders import Encoder, encode_field
from adaftr_fast.data.schema.parse import parse_schema
from adaftr_fast.data.schema.types import Schema
from adaftr_fast.errors import ServingError

VERSION = 1
ABOUT, PROGRAM, AOT, ONNX = "serving.json", "model.pt2", "model.aot.pt2", "model.onnx"
ROWS = 8192  # scored at a time, so that what is between two layers stays in the cache


Features = tuple[Tensor, ...]
"""What programs take: ids int32 [n, F], or where a field is multi-valued ids [N] and where they begin, int64 [n, F]."""


@dataclass(frozen=True)
class About:
    """What an exported folder says of itself.

    Attributes:
        fingerprint: that of the prepared data (``Manifest.fingerprint``).
        tasks: the columns of the probabilities.
        metrics: validation metrics of the model, per task.
        sha256: of every other file.
    """

    version: int
    fingerprint: str
    tasks: list[str]
    metrics: dict[str, dict[str, float]]
    sha256: dict[str, str]


@dataclass(frozen=True)
class Scorer:
    """What ``load_scorer`` gives; ``encode`` may be called in threads."""

    about: About
    manifest: Manifest
    schema: Schema
    encoders: dict[str, Encoder]
    program: torch.nn.Module

    def encode(self, rows: pa.RecordBatch) -> Features:
        """Raw columns [n] to ids as in preparation; what training has not seen is 0.

        Raises:
            DataError: a column cannot be read as the schema says.
        """
        columns = [encode_field(field, self.encoders[field.name], rows) for field in self.schema.fields]
        if any(pa.types.is_list(column.type) for column in columns):
            return bags([_ids_and_offsets(column) for column in columns])
        return (torch.from_numpy(matrix([column.to_numpy() for column in columns], np.int32)),)

    @torch.no_grad()
    def score(self, features: Features) -> np.ndarray:
        """What ``encode`` gives to probabilities, float32 [n, T], one column a task.

        Raises:
            ServingError: a probability is not finite.
        """
        parts = [self.program(*part) for part in _pieces(features)]
        scores = torch.cat(parts).numpy() if parts else np.empty((0, len(self.about.tasks)), np.float32)
        if wrong := np.count_nonzero(~np.isfinite(scores)):
            raise ServingError(f"{wrong} of {scores.size} probabilities are not finite")
        return scores


def bags(columns: Sequence[tuple[np.ndarray, np.ndarray | None]]) -> Features:
    """Columns as ``data.bags.interleave`` takes them, some with offsets."""
    ids, offsets = map(torch.from_numpy, interleave(columns))
    return ids, offsets[:-1].view(-1, len(columns))


def _ids_and_offsets(column: pa.Array) -> tuple[np.ndarray, np.ndarray | None]:
    if pa.types.is_list(column.type):
        return column.values.to_numpy(), column.offsets.to_numpy()
    return column.to_numpy(), None


def _pieces(features: Features) -> Iterator[Features]:
    """Neighbouring rows, ``ROWS`` at a time."""
    rows = features[-1]
    for first in range(0, len(rows), ROWS):
        part = rows[first : first + ROWS]
        if len(features) == 1:
            yield (part,)
            continue
        begin = int(part[0, 0])
        end = int(rows[first + ROWS, 0]) if first + ROWS < len(rows) else len(features[0])
        yield features[0][begin:end], part - begin


def load_scorer(folder: Path) -> Scorer:
    """Reads and verifies a folder that ``export_run`` wrote.

    Beyond what ``torch.export.load`` does with ``model.pt2``, no code from a file is run; the checksums tell damage
    from what was written, not a stranger's file from your own.

    Raises:
        ServingError: not an exported model, of another version, or a file of it is missing or damaged.
        DataError: its schema or vocabulary cannot be read.
    """
    about = read_about(folder)
    for name in (PROGRAM, MANIFEST, VOCABULARY):
        _verify(folder / name, about)
    manifest = read_manifest(folder)
    program = torch.export.load(folder / PROGRAM).module()
    schema = parse_schema(manifest.schema)
    return Scorer(about, manifest, schema, read_encoders(folder, manifest), program)


def read_about(folder: Path) -> About:
    """Reads ``serving.json``. Raises ServingError when there is none, one of another version or a damaged one."""
    path = folder / ABOUT
    if not path.is_file():
        raise ServingError(f"{folder}: not an exported model (no {ABOUT}); make one with `adaftr-fast export`")
    try:
        content = from_json(dict, json.loads(path.read_text(encoding="utf-8")))
        if content.get("version") != VERSION:
            raise ServingError(f"{path}: version {content.get('version')}, this program reads version {VERSION}")
        return from_json(About, content)
    except ValueError as error:
        raise ServingError(f"{path}: damaged or not of an export: {error}") from error


def _verify(path: Path, about: About) -> None:
    try:
        digest = sha256(path)
    except OSError as error:
        raise ServingError(f"{path}: cannot be read: {error}") from error
    if digest != about.sha256.get(path.name):
        raise ServingError(f"{path}: damaged: its sha256 is not the recorded one; export again")
