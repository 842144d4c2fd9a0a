"""Scores raw rows with an exported model: raw columns to ids to probabilities to named columns.

Shapes: n rows, T tasks.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from torch.nn.functional import pad

from adaftr_fast import models  # noqa: F401  # defines the ops that programs call
from adaftr_fast.data.dataset.batch import Batch, interleave
from adaftr_fast.data.dataset.manifest import (
    MANIFEST,
    Manifest,
    check_own_sha256,
    read_manifest,
)
from adaftr_fast.data.dataset.matrix import matrix
from adaftr_fast.data.encode.encoders import Encoder, encode_features
from adaftr_fast.data.encode.vocabulary import VOCABULARY, read_encoders
from adaftr_fast.data.schema.types import Schema
from adaftr_fast.errors import ServingError
from adaftr_fast.files.json import from_json, loads, shown
from adaftr_fast.files.publish import read_published
from adaftr_fast.files.whole import sha256
from adaftr_fast.nn import embedding_int8  # noqa: F401  # defines the op of int8 tables
from adaftr_fast.serving.columns import Columns, Cvr, output_columns
from adaftr_fast.serving.programs import apply_program
from adaftr_fast.serving.rows import Extra, RawRows, read_rows

VERSION = 4
ABOUT = "serving.json"
PROGRAM = "model.pt2"
AOT = "model.aot.pt2"
ONNX = "model.onnx"
ROWS = 8192  # rows per call, so that activations stay in the cache
TILE = 32  # a multiple of the rows that kernels of matrix products take at once


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
        sha256: the sha256 of every other file, by name. The file has its own beside them.
        int8: the size and the metrics with int8 tables, if the tables are int8.
        doubts: why the model may not be worth using, a sentence each.
    """

    version: int
    fingerprint: str
    tasks: list[str]
    metrics: dict[str, dict[str, float]]
    sha256: dict[str, str]
    int8: Int8 | None = None
    doubts: list[str] = field(default_factory=list)


Read = tuple[pa.RecordBatch, dict[str, pa.Array]]
"""Raw rows [n], and their columns as ``encode_features`` encodes them."""


@dataclass(frozen=True)
class Scorer:
    """An exported model with its encoders; ``load_scorer`` makes it. It is thread-safe.

    Attributes:
        about: the tasks, the validation metrics and the checksums of the files.
        columns: the columns that ``score`` returns.
        schema: what the raw columns mean.
    """

    about: About
    manifest: Manifest
    schema: Schema
    encoders: dict[str, Encoder]
    program: torch.nn.Module
    columns: Columns

    def score(self, rows: RawRows, *, extra: Extra = "error") -> pa.Table:
        """Scores raw rows: a dict for one row, a list of dicts, or a table (pandas, Polars or
        Arrow) of n rows.

        A row needs the columns that fields read, and that of the prices, if there is one. Those of
        the schema that only training reads (labels, weight, group, time) and those that it ignores
        may be there. Values mean what they mean to ``prepare``, whatever type carries them: None,
        NaN and empty text are missing, and one that training has not seen is unknown. The rows
        beside a row change its scores by the rounding of a matrix product at most. A warning tells
        of floats from 2^53 on in a column of ids.

        Args:
            rows: the raw rows.
            extra: what to do with a column that the schema does not know: "error" or "ignore".

        Returns:
            A table of n rows, in their order, with the columns that ``predict`` writes:

            - ``p_<task>`` (float32): the probability of the task on an impression. A funnel of two
                stages, such as click and conversion, has in place of these two:
            - ``p_ctr``, ``p_ctcvr`` (float32): that of a click, and of a click and a conversion;
            - ``p_cvr`` (float32): p_ctcvr / p_ctr, at most 1: that of a conversion after a click;
            - ``bid`` (float64), if ``load_scorer`` asks for it: Eq. 16; null where the price is
                missing.

        Raises:
            DataError: a column is missing or unknown, or a value cannot be read as the schema says.
            ServingError: a probability is not finite.
            TypeError: ``rows`` is none of the above.
        """
        batch = read_rows(self.schema, self.columns.inputs(), rows, extra)
        return self.table(self.probabilities(self.encode(batch)), batch)

    def read(self, rows: RawRows, extra: Extra) -> Read:
        """Reads and encodes raw rows of a request. Raises what ``score`` does for them, or warns
        of.
        """
        batch = read_rows(self.schema, self.columns.inputs(), rows, extra, exact=True)
        return batch, encode_features(self.schema, self.encoders, batch)

    def table(self, scores: np.ndarray, batch: pa.RecordBatch) -> pa.Table:
        """Returns the table of ``score``. Raises DataError if prices are no finite numbers.

        Args:
            scores: the probabilities, float32 [n, T].
            batch: the raw rows, which hold the prices.
        """
        arrays = self.columns.make(scores, batch, self.schema.text)
        return pa.table(arrays, schema=pa.schema(self.columns.fields()))

    def encode(self, rows: pa.RecordBatch) -> Batch:
        """Encodes raw columns [n] to ids and numbers, as preparation does. Unseen values become 0.

        Raises:
            DataError: a column does not have the type of the schema.
        """
        return self.features(encode_features(self.schema, self.encoders, rows))

    def features(self, encoded: dict[str, pa.Array]) -> Batch:
        """Returns the columns of ``encode_features`` as the rows that the program takes."""
        ids = [_ids_and_offsets(encoded[field.name]) for field in self.schema.fields]
        return unlabelled(ids, [encoded[field.name].to_numpy() for field in self.schema.dense])

    @torch.no_grad()
    def probabilities(self, batch: Batch) -> np.ndarray:
        """Computes the probabilities of encoded rows, float32 [n, T].

        The program runs on whole multiples of ``TILE`` rows, the last of which are empty: most
        matrix products then round a row as they do among other rows. Wide ones on several threads
        may not.

        Raises:
            ServingError: a probability is not finite.
        """
        chunks = [batch[first : first + ROWS] for first in range(0, len(batch), ROWS)]
        parts = [apply_program(self.program, _padded(each))[: len(each)] for each in chunks]
        scores = (
            torch.cat(parts).numpy() if parts else np.empty((0, len(self.about.tasks)), np.float32)
        )
        if wrong := np.count_nonzero(~np.isfinite(scores)):
            raise ServingError(f"{wrong} of {scores.size} probabilities are not finite")
        return scores


def unlabelled(
    columns: Sequence[tuple[np.ndarray, np.ndarray | None]], dense: Sequence[np.ndarray]
) -> Batch:
    """Returns rows without labels, as a program takes them.

    Args:
        columns: the ids of each field, and their offsets [n + 1] if it is multi-valued, else None.
        dense: the numbers of each dense field, float32 [n].
    """
    if all(offsets is None for _, offsets in columns):
        ids = torch.from_numpy(matrix([own for own, _ in columns], np.int32))
        offsets = None
        rows = len(ids)
    else:
        ids, offsets = map(torch.from_numpy, interleave(columns))
        rows = (len(offsets) - 1) // len(columns)
    numbers = torch.from_numpy(matrix(dense, np.float32)) if dense else None
    return Batch(ids, torch.empty(rows, 0), offsets=offsets, dense=numbers)


def _ids_and_offsets(column: pa.Array) -> tuple[np.ndarray, np.ndarray | None]:
    if pa.types.is_list(column.type):
        return column.values.to_numpy(), column.offsets.to_numpy()
    return column.to_numpy(), None


def _padded(batch: Batch) -> Batch:
    """Appends rows of unknown values up to a multiple of ``TILE`` rows."""
    more = -len(batch) % TILE

    def longer(part: Tensor) -> Tensor:
        return pad(part, (0, 0, 0, more))

    if batch.offsets is None:
        return batch.map(longer)
    fields = (len(batch.offsets) - 1) // len(batch)
    offsets = pad(batch.offsets, (0, more * fields), value=len(batch.ids))
    dense = None if batch.dense is None else longer(batch.dense)
    return Batch(batch.ids, longer(batch.labels), offsets=offsets, dense=dense)


def load_scorer(
    folder: str | os.PathLike[str],
    *,
    click: str | None = None,
    conversion: str | None = None,
    bid: str | float | None = None,
    bid_weight: float = 1.0,
    cvr: Cvr = "quotient",
) -> Scorer:
    """Loads and verifies a folder that ``export`` wrote, and may replace meanwhile.

    ``torch.export.load`` of ``model.pt2`` is the only code that may run. The checksums detect
    damage; they do not authenticate the files.

    Args:
        folder: the exported folder, or what ``export`` returns.
        click, conversion: the click and the conversion task; by default the two stages of the
            funnel that the schema declares, else the tasks of that name.
        bid: adds the bid of Eq. 16 with p_c, the price of a conversion: a number, or the column
            that holds it.
        bid_weight: w of Eq. 16.
        cvr: "quotient" or "output", as for ``predict``.

    Raises:
        ServingError: the folder is not an exported model, has another version, or a file is missing
            or damaged; or the tasks or the bid are not such as ``predict`` takes.
        DataError: the schema or the vocabulary cannot be read.

    Example::

        scorer = adaftr_fast.load_scorer("models/mine", bid="price")
        scorer.score({"user": 7, "item": "a", "price": 2.5})["p_ctr"]
    """
    load = partial(
        _load,
        click=click,
        conversion=conversion,
        bid=None if bid is None else str(bid),
        bid_weight=bid_weight,
        cvr=cvr,
    )
    return read_published(Path(folder), load)


def _load(folder: Path, **options: Any) -> Scorer:
    about = read_about(folder)
    for name in (PROGRAM, MANIFEST, VOCABULARY):
        _verify(folder / name, about)
    manifest = read_manifest(folder)
    one_task = [[task] for task in manifest.tasks]
    if about.tasks not in (manifest.tasks, *one_task) or about.fingerprint != manifest.fingerprint:
        raise ServingError(
            f"{folder / ABOUT}: damaged: its tasks {about.tasks} are not those of {MANIFEST}, "
            f"{manifest.tasks}, or its data are others; export the run again"
        )
    program = _read_program(folder / PROGRAM)
    columns = output_columns(about.tasks, manifest.parsed.funnel, **options)
    return Scorer(
        about, manifest, manifest.parsed, read_encoders(folder, manifest), program, columns
    )


def _read_program(path: Path) -> torch.nn.Module:
    try:
        return torch.export.load(path).module()
    except Exception as error:  # of zip, pickle or torch, without a common class
        problem = f"{type(error).__name__}: {error}"
        raise ServingError(f"{path}: damaged: {problem}; export the run again") from error


def read_about(folder: Path) -> About:
    """Reads ``serving.json``. Raises ServingError if it is missing, damaged or of
    another version.
    """
    path = folder / ABOUT
    if not path.is_file():
        raise ServingError(
            f"{folder}: not an exported model (no {ABOUT}); make one with `adaftr-fast export`"
        )
    try:
        data = path.read_bytes()
        content = from_json(dict[str, Any], loads(data.decode()))
        if (version := content.get("version")) != VERSION:
            raise ServingError(
                f"{path}: written in version {shown(version)}, this program reads version {VERSION}: "
                "export the run again"
            )
        about = from_json(About, content)
        check_own_sha256(data, about.sha256.pop(ABOUT, ""))
        return about
    except ValueError as error:
        raise ServingError(f"{path}: damaged or not an export: {error}") from error


def _verify(path: Path, about: About) -> None:
    if not path.is_file():  # a pipe in its place would be waited for
        raise ServingError(f"{path}: cannot be read: expected a file")
    try:
        digest = sha256(path)
    except OSError as error:
        raise ServingError(f"{path}: cannot be read: {error}") from error
    if digest != about.sha256.get(path.name):
        raise ServingError(
            f"{path}: damaged: its sha256 differs from the recorded one; export the run again"
        )
