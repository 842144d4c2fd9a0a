"""What every part of data does with Arrow: errors that name the file, and columns as one array."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from adaftr_fast.errors import DataError, first_line

LISTS = (list, tuple, np.ndarray)  # as Python and NumPy have them
# the last of names of columns in parquet
READ_ERRORS = (pa.ArrowException, OSError, UnicodeDecodeError)
FOLDER = ".tables"  # how the name of a folder with the files of tables in memory ends


def shown(path: Path | str) -> str:
    """Returns the name of an input in messages: "the table" in place of the file of a table in
    memory, else the path.
    """
    file = Path(path)
    is_table = file.parent.name.endswith(FOLDER)
    return f"the {file.stem.replace('-', ' ')}" if is_table else str(path)


@contextmanager
def reading(path: Path | str, what: str) -> Iterator[None]:
    """Raises an error of the block as DataError with path and ``what``."""
    try:
        yield
    except READ_ERRORS as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{shown(path)}: {what}: {first_line(error)}") from error


def check_names(schema: pa.Schema) -> None:
    """Raises UnicodeDecodeError if the name of a column, or of a part of one, is not UTF-8."""
    _ = schema.names, [str(kind) for kind in schema.types]


def column_of(values: list[Any]) -> pa.Array:
    """Returns values of Python or NumPy as a column [n]. Those of several types, and integers
    beyond 64 bits, become text, in the form that Arrow gives them, and lists become ones of texts.
    """
    try:
        return pa.array(values)
    except (pa.ArrowException, OverflowError):  # the last of an integer
        return pa.array([_text(value) for value in values])


def _text(value: Any) -> Any:
    if is_missing(value):
        return None
    if isinstance(value, LISTS):
        return [_text(each) for each in value]
    if isinstance(value, bool | float | np.floating):
        return pa.array([value]).cast(pa.string())[0].as_py()
    return value.decode() if isinstance(value, bytes) else str(value)


def is_missing(value: object) -> bool:
    """Returns whether a value is None or NaN."""
    return value is None or (isinstance(value, float | np.floating) and value != value)


def one_array(column: pa.ChunkedArray) -> pa.Array:
    """Returns the column as one array."""
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
