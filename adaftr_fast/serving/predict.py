"""Scores raw rows into a parquet file, streamed in bounded memory, and counts their missing or
unknown values.

A model scores a file whose values it has never seen as readily as any other: ids with leading
zeros, in another case, or of another column. So the shares of missing or unknown values are
compared with those of training.

Shapes: n rows, T tasks.
"""

from __future__ import annotations

import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from tqdm import tqdm

from adaftr_fast.data.arrow import one_array, shown
from adaftr_fast.data.bad_rows import BadRows, check_share
from adaftr_fast.data.encode.encoders import (
    Vocabulary,
    count_unknown,
    encode_features,
    field_values,
)
from adaftr_fast.data.encode.typed import as_written
from adaftr_fast.data.memory import Memory
from adaftr_fast.data.parallel import ordered_map
from adaftr_fast.data.raw.inputs import Chunk, is_text
from adaftr_fast.data.raw.rows import RawFile, raw_files
from adaftr_fast.data.schema.types import PLAIN_TEXT, Schema
from adaftr_fast.display.progress import progress_bar
from adaftr_fast.errors import DataError, ServingError
from adaftr_fast.files.publish import publishing
from adaftr_fast.serving.columns import Columns
from adaftr_fast.serving.scorer import Scorer

Encoded = tuple[pa.RecordBatch, pa.Table, dict[str, pa.Array], BadRows]
CHANCE = 10  # rows that a count may differ by, however few are expected
MOST_EXAMPLES = 1000  # unknown values of a field that are compared with those of training
SPELLINGS: dict[str, Callable[[pa.Array], pa.Array]] = {
    "spaces around the values": pc.utf8_trim_whitespace,
    "the case of letters": pc.utf8_lower,
    "zeros in front": partial(pc.utf8_ltrim, characters="0"),
}
"""How unknown values may differ from known ones, with what makes these equal."""


class Unknown:
    """Missing or unknown values of scored rows, beside those of training and validation.

    In training, rare values are unknown; in validation, values that training lacks are as well.

    Args:
        scorer: the exported model.

    Attributes:
        rows: the number of rows.
        counts: rows per field whose value is missing or unknown, or whose list has no known token.
        vocabularies: the vocabularies by field; numbers and hashed values are always known.
        examples: some values per field that have no id, text.
    """

    def __init__(self, scorer: Scorer) -> None:
        self.rows = 0
        self.counts = Counter({field.name: 0 for field in scorer.schema.features})
        self.vocabularies = {
            name: encoder
            for name, encoder in scorer.encoders.items()
            if isinstance(encoder, Vocabulary)
        }
        self.examples: dict[str, pa.Array] = {}
        self._schema = scorer.schema
        self._splits = [scorer.manifest.splits[name] for name in ("train", "validation")]

    def add(self, rows: pa.RecordBatch, encoded: Mapping[str, pa.Array]) -> None:
        """Counts rows, and keeps unknown values of the fields that have fewer than
        ``MOST_EXAMPLES`` yet, as text.
        """
        self.rows += rows.num_rows
        self.counts.update({name: count_unknown(ids) for name, ids in encoded.items()})
        for field in self._schema.fields:
            is_single = field.kind == "categorical" and field.tokens is None
            if not is_single or field.name not in self.vocabularies:
                continue
            before = self.examples.get(field.name, pa.array([], pa.string()))
            unknown = pc.equal(encoded[field.name], 0)
            if len(before) < MOST_EXAMPLES and pc.any(unknown).as_py():
                columns = self._schema.inputs(field.columns)
                read = as_written(self._schema, rows.select(columns).filter(unknown))
                found = pc.unique(field_values(field, read).drop_null()).cast(pa.string())
                examples = pc.unique(pa.concat_arrays([before, found]))
                self.examples[field.name] = examples[:MOST_EXAMPLES]

    def cells(self) -> list[list[str]]:
        """Returns a row per field: its name, and its share here, in training and in validation."""
        return [
            [name, *map(_percent, (count / max(1, self.rows), *self._before(name)))]
            for name, count in self.counts.items()
        ]

    def warning(self) -> str | None:
        """Returns a warning if no value is known, or else if the share of a field has more than
        doubled.
        """
        names = [*self.vocabularies]
        if names and self.rows and all(self.counts[name] == self.rows for name in names):
            nothing = "is missing or unknown: the model knows nothing of these rows"
            return f"every value of {', '.join(names)} {nothing}{self._spellings(names)}"
        telling = [cells for cells in self.cells() if self._is_telling(cells[0])]
        if not telling:
            return None
        doubled = "; ".join(
            f"{name} ({here}, {train} in training, {validation} in validation)"
            for name, here, train, validation in telling
        )
        more = "more than twice as many values as in training are missing or unknown"
        return f"{more}: {doubled}{self._spellings([name for name, *_ in telling])}"

    def _spellings(self, names: Sequence[str]) -> str:
        """Returns what would make unknown values of these fields known, with an example of each
        field.
        """
        found = [hint for name in names if name in self.examples if (hint := self._spelling(name))]
        return "".join(f"; {hint}" for hint in found)

    def _spelling(self, name: str) -> str | None:
        values = self.vocabularies[name].values.cast(pa.string())
        for what, plain in SPELLINGS.items():
            places = pc.index_in(plain(self.examples[name]), value_set=plain(values))
            if places.null_count < len(places):
                here = self.examples[name].filter(places.is_valid())[0].as_py()
                there = values[places.drop_null()[0].as_py()].as_py()
                return f"{name} differs from training in {what}: {here!r} here, {there!r} there"
        return None

    def _is_telling(self, name: str) -> bool:
        count = self.counts[name]
        expected = self.rows * max(self._before(name))
        return count > 2 * expected + CHANCE or count == self.rows > 2 * expected

    def _before(self, name: str) -> list[float]:
        """Returns the shares of a field in training and in validation."""
        return [split.unknown[name] / split.rows for split in self._splits]


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"


@dataclass(frozen=True)
class Report:
    """The result of ``predict``.

    Attributes:
        rows: the number of scored rows.
        bad_rows: the counts of lines, and of rows that could not be read.
        unknown: the missing or unknown values of each field, beside those of training.
        seconds: the duration in seconds.
    """

    rows: int
    bad_rows: BadRows
    unknown: Unknown
    seconds: float


def predict(
    scorer: Scorer,
    files: Sequence[Path],
    out: Path,
    *,
    keep: Sequence[str] = (),
    bad_rows: float = 0.0,
    memory: float | None = None,
    progress: bool = False,
) -> Report:
    """Scores the rows of ``files`` in order and writes ``out`` atomically.

    Warns if more than twice as many values of a field are missing or unknown as in training and
    validation.

    Args:
        scorer: the exported model.
        files: any number of inputs in the formats of ``prepare``; for Ali-CCP, pairs SKELETON
            COMMON.
        out: the parquet file to write.
        keep: input columns to copy before the scores; those of text files as they are written.
        bad_rows: maximum share of unreadable rows of a text file, which are skipped and reported.
        memory: how many GB the process may take, beside the model and its vocabularies; None for 4.
        progress: shows a progress bar.

    Raises:
        ConfigError: ``memory`` is too small for a batch of rows.
        DataError: an input cannot be read, a column is missing, there are too many bad rows, or a
            row has no score.
        ServingError: ``out`` cannot be written, has the name of a text file, is a folder, is an
            input or in an input folder, or would have two columns of the same name.
        BusyError: another process writes ``out``.
    """
    check_share(bad_rows)
    _check_place(out, files)
    bound = Memory.of(memory)
    inputs = raw_files(scorer.schema, files, keep, scorer.columns.inputs(), bound)
    schema = _schema(inputs, keep, scorer.columns)
    account = BadRows()
    unknown = Unknown(scorer)
    start = time.perf_counter()
    try:
        with (
            publishing(out) as new,
            progress_bar(
                total=sum(file.size for file in inputs),
                unit="B",
                unit_scale=True,
                disable=not progress,
            ) as bar,
            pq.ParquetWriter(new, schema, compression="zstd", write_page_checksum=True) as writer,
        ):
            for file in inputs:
                scored = unknown.rows
                of_file = BadRows()
                for rows, kept, encoded, of_chunk in _encoded(scorer, file, bar, bound):
                    unknown.add(rows, encoded)
                    of_file += of_chunk
                    if bad_rows == 0:
                        _check(of_file, bad_rows, scorer.schema)  # later rows change nothing
                    scores = scorer.probabilities(scorer.features(encoded))
                    arrays = [one_array(kept[name]) for name in keep]
                    arrays += scorer.columns.make(scores, rows, scorer.schema.text)
                    writer.write_batch(_batch(schema, arrays))
                    speed = unknown.rows / (time.perf_counter() - start)
                    bar.set_postfix_str(f"{speed:,.0f} rows/s", refresh=False)
                _check(of_file, bad_rows, scorer.schema)
                of_file.check_kept(file.path, unknown.rows - scored)
                account += of_file
    except OSError as error:
        raise ServingError(f"{out}: cannot be written: {error.strerror or error}") from error
    if (message := unknown.warning()) is not None:
        warnings.warn(f"{', '.join(shown(file.path) for file in inputs)}: {message}", stacklevel=2)
    return Report(unknown.rows, account, unknown, time.perf_counter() - start)


def _check_place(out: Path, files: Sequence[Path]) -> None:
    """Raises ServingError if ``out`` has the name of a text file, is a folder, an input, or in an
    input folder.
    """
    if is_text(out):
        raise ServingError(f"{out}: scores are written as parquet; name the file .parquet")
    if out.is_dir():
        raise ServingError(f"{out}: expected a file name, got a folder")
    for file in files:
        if out.resolve() == file.resolve():
            raise ServingError(f"{out}: is one of the inputs")
        if file.is_dir() and file.resolve() in out.resolve().parents:
            raise ServingError(
                f"{out}: is in the input folder {file}, so the next run would read it"
            )


def _check(account: BadRows, bad_rows: float, schema: Schema) -> None:
    """Raises DataError if too many rows are bad, and names the options of ``prepare`` that may be
    absent.
    """
    try:
        account.check(bad_rows)
    except DataError as error:
        if schema.text != PLAIN_TEXT or not any(
            "is not of type" in reason for reason in account.reasons
        ):
            raise
        how = (
            "the model's schema has no words for missing values and no marks of numbers; if the "
            "text has some, prepare "
            "with --null, --thousands or --decimal (in Python null=, thousands=, decimal=), and "
            "train again"
        )
        raise DataError(f"{error}; {how}") from error


def _encoded(scorer: Scorer, file: RawFile, bar: tqdm, memory: Memory) -> Iterator[Encoded]:
    """Yields parsed rows, their columns to keep and their encoded columns chunk by chunk; threads
    parse and encode.
    """

    def encode(chunk: Chunk) -> tuple[Encoded, int]:
        table, kept, account = chunk.parse()
        rows = pa.record_batch([one_array(column) for column in table.columns], schema=table.schema)
        encoded = encode_features(scorer.schema, scorer.encoders, rows)
        account = account.shifted(chunk.path, chunk.first_line)
        return (rows, kept, encoded, account), chunk.size

    for found, size in ordered_map(encode, file.chunks(), attrgetter("memory"), memory):
        yield found
        bar.update(size)


def _schema(inputs: Sequence[RawFile], keep: Sequence[str], columns: Columns) -> pa.Schema:
    """Returns the output schema; copied columns have the types of the first input."""
    kept = [pa.field(name, inputs[0].types[name]) for name in keep] if inputs else []
    names = [*keep, *columns.names()]
    if len(set(names)) < len(names):
        raise ServingError(
            f"the output would have two columns of the same name: {', '.join(names)}"
        )
    return pa.schema(kept + columns.fields())


def _batch(schema: pa.Schema, arrays: list[pa.Array]) -> pa.RecordBatch:
    """Casts arrays to the types of the output, since inputs may differ in their types."""
    try:
        return pa.record_batch(
            [array.cast(each.type) for array, each in zip(arrays, schema)], schema=schema
        )
    except pa.ArrowException as error:
        raise DataError(
            f"--keep: a column has another type than in the first input: {error}"
        ) from error
