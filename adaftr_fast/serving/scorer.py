"""Scores raw rows with an exported model: raw columns to ids to probabilities.

Shapes: n rows, F fields, T tasks, N ids, D dense fields.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from adaftr_fast._files import sha256
from adaftr_fast._json import from_json, loads
from adaftr_fast._publish import read_published
from adaftr_fast.data.dataset.batch import interleave
from adaftr_fast.data.dataset.manifest import MANIFEST, Manifest, read_manifest
from adaftr_fast.data.dataset.matrix import matrix
from adaftr_fast.data.dataset.vocabulary import VOCABULARY, read_encoders
from adaftr_fast.data.encode.encoders import Encoder, encode_features
from adaftr_fast.data.schema.types import Schema
from adaftr_fast.errors import ServingError

VERSION = 3
ABOUT = "serving.json"
PROGRAM = "model.pt2"
AOT = "model.aot.pt2"
ONNX = "model.onnx"
ROWS = 8192  # rows per call, so that activations stay in the cache


class Features(NamedTuple):
    """Inputs of a program."""

    ids: Tensor  # int32 [n, F], with multi-valued fields [N]
    starts: Tensor | None = None  # int64 [n, F] with multi-valued fields
    dense: Tensor | None = None  # float32 [n, D] with dense fields, NaN = missing

    def run(self, program: Callable[..., Tensor]) -> Tensor:
        """Calls a program with the inputs that it takes -> [n, T]."""
        positional = (self.ids,) if self.starts is None else (self.ids, self.starts)
        return program(*positional) if self.dense is None else program(*positional, dense=self.dense)


@dataclass(frozen=True)
class Int8:
    """What becomes of a model whose tables are rounded to int8.

    Attributes:
        nbytes: the size of the tables.
        float32_nbytes: their size in float32.
        metrics: validation metrics of the model with int8 tables, per task.
    """

    nbytes: int
    float32_nbytes: int
    metrics: dict[str, dict[str, float]]


@dataclass(frozen=True)
class About:
    """The description of an exported folder.

    Attributes:
        version: the version of the format.
        fingerprint: the fingerprint of the prepared data (``Manifest.fingerprint``).
        tasks: the tasks, in the order of the probabilities.
        metrics: validation metrics of the model as it was trained, per task.
        sha256: the sha256 of every other file, by name.
        int8: the size and the metrics with int8 tables, if the tables are int8.
    """

    version: int
    fingerprint: str
    tasks: list[str]
    metrics: dict[str, dict[str, float]]
    sha256: dict[str, str]
    int8: Int8 | None = None


@dataclass(frozen=True)
class Scorer:
    """An exported model with its encoders; ``load_scorer`` makes it. ``encode`` is thread-safe."""

    about: About
    manifest: Manifest
    schema: Schema
    encoders: dict[str, Encoder]
    program: torch.nn.Module

    def encode(self, rows: pa.RecordBatch) -> Features:
        """Encodes raw columns [n] to ids and numbers, as preparation does. Unseen values become 0.

        Raises:
            DataError: a column does not have the type of the schema.
        """
        return self.features(encode_features(self.schema, self.encoders, rows))

    def features(self, encoded: dict[str, pa.Array]) -> Features:
        """Returns the columns of ``encode_features`` as the inputs of the program."""
        columns = [encoded[field.name] for field in self.schema.fields]
        if any(pa.types.is_list(column.type) for column in columns):
            features = bags([_ids_and_offsets(column) for column in columns])
        else:
            features = Features(torch.from_numpy(matrix([column.to_numpy() for column in columns], np.int32)))
        if not self.schema.dense:
            return features
        numbers = [encoded[field.name].to_numpy() for field in self.schema.dense]
        return features._replace(dense=torch.from_numpy(matrix(numbers, np.float32)))

    @torch.no_grad()
    def score(self, features: Features) -> np.ndarray:
        """Computes the probabilities of encoded rows, float32 [n, T].

        Raises:
            ServingError: a probability is not finite.
        """
        parts = [part.run(self.program) for part in _chunks(features)]
        scores = torch.cat(parts).numpy() if parts else np.empty((0, len(self.about.tasks)), np.float32)
        if wrong := np.count_nonzero(~np.isfinite(scores)):
            raise ServingError(f"{wrong} of {scores.size} probabilities are not finite")
        return scores


def bags(columns: Sequence[tuple[np.ndarray, np.ndarray | None]]) -> Features:
    """Interleaves ids and offsets of columns into the inputs of a program with multi-valued fields."""
    ids, offsets = map(torch.from_numpy, interleave(columns))
    return Features(ids, offsets[:-1].view(-1, len(columns)))


def _ids_and_offsets(column: pa.Array) -> tuple[np.ndarray, np.ndarray | None]:
    if pa.types.is_list(column.type):
        return column.values.to_numpy(), column.offsets.to_numpy()
    return column.to_numpy(), None


def _chunks(features: Features) -> Iterator[Features]:
    """Yields chunks of ``ROWS`` consecutive rows."""
    ids, starts, dense = features
    rows = ids if starts is None else starts
    for first in range(0, len(rows), ROWS):
        part = rows[first : first + ROWS]
        numbers = None if dense is None else dense[first : first + ROWS]
        if starts is None:
            yield Features(part, None, numbers)
            continue
        begin = int(part[0, 0])
        end = int(rows[first + ROWS, 0]) if first + ROWS < len(rows) else len(ids)
        yield Features(ids[begin:end], part - begin, numbers)


def load_scorer(folder: Path) -> Scorer:
    """Loads and verifies a folder that ``export_run`` wrote, and may replace meanwhile.

    ``torch.export.load`` of ``model.pt2`` is the only code that may run. The checksums detect damage; they do not
    authenticate the files.

    Raises:
        ServingError: the folder is not an exported model, has another version, or a file is missing or damaged.
        DataError: the schema or the vocabulary cannot be read.
    """
    return read_published(folder, _load)


def _load(folder: Path) -> Scorer:
    about = read_about(folder)
    for name in (PROGRAM, MANIFEST, VOCABULARY):
        _verify(folder / name, about)
    manifest = read_manifest(folder)
    program = torch.export.load(folder / PROGRAM).module()
    return Scorer(about, manifest, manifest.parsed, read_encoders(folder, manifest), program)


def read_about(folder: Path) -> About:
    """Reads ``serving.json``. Raises ServingError if it is missing, damaged or of another version."""
    path = folder / ABOUT
    if not path.is_file():
        raise ServingError(f"{folder}: not an exported model (no {ABOUT}); make one with `adaftr-fast export`")
    try:
        content = from_json(dict, loads(path.read_text(encoding="utf-8")))
        if (version := content.get("version")) != VERSION:
            raise ServingError(
                f"{path}: written in version {version}, this program reads version {VERSION}: export the run again"
            )
        return from_json(About, content)
    except ValueError as error:
        raise ServingError(f"{path}: damaged or not an export: {error}") from error


def _verify(path: Path, about: About) -> None:
    try:
        digest = sha256(path)
    except OSError as error:
        raise ServingError(f"{path}: cannot be read: {error}") from error
    if digest != about.sha256.get(path.name):
        raise ServingError(f"{path}: damaged: its sha256 differs from the recorded one; export the run again")
