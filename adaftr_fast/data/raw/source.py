"""Finds the files of inputs, opens parquet, and names files and columns in errors."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from importlib import resources

import pyarrow as pa
import pyarrow.dataset as ds

from adaftr_fast._files import AnyPath
from adaftr_fast.data.encode.written import holds_text
from adaftr_fast.data.raw.batches import PARQUET
from adaftr_fast.data.raw.tables import is_list
from adaftr_fast.data.schema.types import Schema
from adaftr_fast.errors import DataError, StoreError, UserError, first_line
from adaftr_fast.stores import arrow_path, files_below, in_store, known_sha256, open_file

SHIPPED = resources.files("adaftr_fast.data") / "files"
# the last of names of columns in parquet
READ_ERRORS = (pa.ArrowException, OSError, UnicodeDecodeError)
LISTED = 50  # columns that an error names
NOT_PARQUET = "not a readable parquet file"
_ONE_FOLDER = "the files of a folder must have the same columns"
Inputs = Mapping[str, Sequence[AnyPath]]  # files and folders of files, by role


@dataclass(frozen=True)
class Unused:
    """Numbers of rows that are in no split.

    Attributes:
        unmatched: rows that no split selects.
        dropped: rows that meet the condition ``drop``.
    """

    unmatched: int = 0
    dropped: int = 0

    def __add__(self, other: Unused) -> Unused:
        return Unused(self.unmatched + other.unmatched, self.dropped + other.dropped)


@contextmanager
def reading(
    path: AnyPath | str, what: str, os_error: type[UserError] = DataError
) -> Iterator[None]:
    """Raises an error of the block as DataError, or one of the system as ``os_error``, with path
    and ``what``.
    """
    try:
        yield
    except READ_ERRORS as error:
        if isinstance(error, os_error):
            raise
        kind = os_error if isinstance(error, OSError) else DataError
        raise kind(f"{path}: {what}: {first_line(error)}") from error


def reading_input(paths: Sequence[AnyPath], what: str) -> AbstractContextManager[None]:
    """Raises an error of the block as ``reading`` does, and one of a store, where another attempt
    may succeed, as StoreError.
    """
    os_error = StoreError if in_store(paths[0]) else DataError
    return reading(listed(map(str, paths)), what, os_error)


def check_names(schema: pa.Schema) -> None:
    """Raises UnicodeDecodeError if the name of a column, or of a part of one, is not UTF-8."""
    _ = schema.names, [str(kind) for kind in schema.types]


def check_columns(
    path: AnyPath, names: Iterable[str], wanted: Iterable[str], schema: Schema | None = None
) -> None:
    """Raises DataError if ``names``, the columns of a file, lack one of those that are wanted, by a
    schema if any.
    """
    found = dict.fromkeys(names)
    if missing := [column for column in wanted if column not in found]:
        reader = "" if schema is None else f", which schema {schema.name} reads"
        raise DataError(
            f"{path}: no column {listed(map(repr, missing))}{reader}; the file has {listed(found)}"
        )


def check_files(files: Sequence[ds.Dataset], columns: Iterable[str]) -> None:
    """Raises DataError if a file lacks one of ``columns``, or has values of another kind there than
    the first one.
    """
    columns = list(columns)
    first, *others = (fragment for file in files for fragment in file.get_fragments())
    kinds = files[0].schema
    for file in others:
        found = file.physical_schema
        for column in columns:
            kind = kinds.field(column).type
            if column not in found.names:
                raise DataError(
                    f"{file.path}: no column {column!r}, which {first.path} has; {_ONE_FOLDER}"
                )
            if not _reads_as(found.field(column).type, kind):
                got = (
                    f"column {column!r} is {found.field(column).type}, in {first.path} it is {kind}"
                )
                raise DataError(f"{file.path}: {got}; {_ONE_FOLDER}")


def _reads_as(found: pa.DataType, kind: pa.DataType) -> bool:
    """Returns whether the values of one type keep their meaning when Arrow casts them to another
    one.
    """
    found, kind = (
        each.value_type if pa.types.is_dictionary(each) else each for each in (found, kind)
    )
    if is_list(found) and is_list(kind):
        return _reads_as(found.value_type, kind.value_type)
    names = _kind(found), _kind(kind)
    is_plain = names[0] in ("number", "boolean") and not pa.types.is_decimal(found)
    return pa.types.is_null(found) or names[0] == names[1] or (is_plain and names[1] == "text")


def _kind(kind: pa.DataType) -> str:
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return "number"
    if pa.types.is_boolean(kind):
        return "boolean"
    if holds_text(kind):
        return "text"
    return "timestamp" if pa.types.is_timestamp(kind) else str(kind).removeprefix("large_")


def listed(names: Iterable[str]) -> str:
    """Returns the names as text, at most ``LISTED`` of them."""
    names = list(names)
    more = f" and {len(names) - LISTED:,} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more


def input_paths(schema: Schema, files: Sequence[str | AnyPath]) -> dict[str, tuple[AnyPath, ...]]:
    """Returns the input files by role, or the file in the package if none is given. A single role
    takes all files.

    Raises:
        DataError: the number of files does not match the schema.
        StoreError: a URL is none of a store that can be read.
    """
    if not files and schema.shipped is not None:
        files = [str(SHIPPED / schema.shipped)]
    if files and len(schema.files) == 1 and schema.format is None:
        return {schema.files[0]: tuple(map(open_file, files))}
    if len(files) != len(schema.files):
        roles = " ".join(role.upper() for role in schema.files)
        raise DataError(
            f"data set {schema.name}: expected {len(schema.files)} file(s) ({roles}), got "
            f"{len(files)}"
        )
    return {role: (open_file(file),) for role, file in zip(schema.files, files)}


def data_files(path: AnyPath) -> list[AnyPath]:
    """Returns the file itself, or all files of a folder in reading order, except hidden ones."""
    if not path.exists():
        raise DataError(f"{path}: no such file")
    if not path.is_dir():
        return [path]
    with reading_input([path], NOT_PARQUET):
        return files_below(path)


def content_digest(path: AnyPath) -> str:
    """Returns a SHA-256 that tells a file from others.

    It is that of the content of a local or a published file. Another file in a store would have to
    be read once more: it is that of URL, size and time.
    """
    if (known := known_sha256(path)) is not None:
        return known
    stat = path.stat()
    return hashlib.sha256(f"{path} {stat.st_size} {stat.st_mtime_ns}".encode()).hexdigest()


def open_dataset(path: AnyPath) -> ds.Dataset:
    """Opens a file or a folder of files for scans. Raises one of ``READ_ERRORS``."""
    filesystem, place = arrow_path(path)
    dataset = ds.dataset(place, filesystem=filesystem, format=PARQUET)
    check_names(dataset.schema)
    return dataset
