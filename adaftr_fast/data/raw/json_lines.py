"""Parses blocks of JSON lines, an object in each, into columns. Rows that are none are reported.

Arrow reads a block whose values have the types of the first rows, whole. Any other block is read
line by line: it has a damaged line, or values of several types in a column, which are text there.
Both ways give the same values.

Shapes: n rows.
"""

from __future__ import annotations

import codecs
import io
import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json

from adaftr_fast.data.arrow import column_of, one_array
from adaftr_fast.data.bad_rows import BadLine
from adaftr_fast.data.raw.text import TextBlock, count_lines, is_utf8
from adaftr_fast.data.schema.columns import EXACT_INTEGERS
from adaftr_fast.data.schema.types import PLAIN_TEXT, TextFormat

LISTS = pa.list_(pa.string())  # the type of lists once they are read
SPACES = b" \t\r"
CONSTANT = re.compile(rb"[:,\[]\s*-?(?:NaN|Inf)")  # which Arrow reads as a number


class _Object(list[tuple[str, Any]]):
    """The keys and values of an object, in their order."""


def first_types(data: bytes) -> dict[str, pa.DataType]:
    """Returns the types of all keys of some lines: text where they are several, lists where most
    values are, and a struct where a value is an object.
    """
    columns: dict[str, list[Any]] = {}
    for line in data.removeprefix(codecs.BOM_UTF8).split(b"\n"):
        try:
            row = dict(_parsed(line))
        except ValueError:  # a bad row, or blank
            continue
        for name, value in row.items():
            columns.setdefault(name, []).append(value)
    return {name: _type(values) for name, values in columns.items()}


def _type(values: list[Any]) -> pa.DataType:
    inside = [each for value in values if _is_list(value) for each in value]
    if any(isinstance(each, _Object) or _is_list(each) for each in inside) or any(
        isinstance(value, _Object) for value in values
    ):
        return pa.struct([])
    lists = [value for value in values if _is_list(value)]
    others = [value for value in values if not _is_list(value)]
    # the fewer of both are bad values
    are_lists = 2 * len(lists) > len(lists) + sum(each is not None for each in others)
    kind = column_of(lists if are_lists else others).type
    return LISTS if pa.types.is_list(kind) and pa.types.is_null(kind.value_type) else kind


def parse_lines(
    data: bytes, types: Mapping[str, pa.DataType], form: TextFormat = PLAIN_TEXT
) -> TextBlock:
    """Parses whole lines to columns, null where a row lacks the key.

    A row is bad if it is no object of JSON (RFC 8259) in UTF-8, if a key of a column occurs twice,
    or if a value is an object, a number beyond the range of float64, or a list in a column without
    lists or the reverse. In numbers, integers are exact.

    Args:
        data: the lines.
        types: the columns to read, with their types in the first rows.
        form: how text holds values.
    """
    data = data.removeprefix(codecs.BOM_UTF8)
    lines = [line.strip(SPACES) for line in data.split(b"\n")[: count_lines(data)]]
    numbers = np.flatnonzero(np.fromiter(map(bool, lines), bool, len(lines))) + 1
    blank = len(lines) - len(numbers)
    columns = _read(data, lines, types) if len(numbers) else None
    bad: list[BadLine] = []
    if columns is None:
        columns, bad = _read_lines(lines, numbers, types)
    wrong = {each.line for each in bad}
    line = numbers[[number not in wrong for number in numbers.tolist()]] if bad else numbers
    return TextBlock(columns, line, len(lines), blank, len(numbers), bad, form)


def _read(
    data: bytes, lines: list[bytes], types: Mapping[str, pa.DataType]
) -> dict[str, pa.Array] | None:
    """Returns the columns, as Arrow reads them; None if a line is no row, or if Arrow may read it
    otherwise than RFC 8259 says.
    """
    whole = [line for line in lines if line]
    # so that no row has several lines; rows as many as lines tell that no line has several rows
    if not all(line.startswith(b"{") and line.endswith(b"}") for line in whole):
        return None
    if CONSTANT.search(data) or not is_utf8(data):
        return None
    try:
        table = pyarrow.json.read_json(
            io.BytesIO(data),
            pyarrow.json.ReadOptions(use_threads=False, block_size=len(data) + 1),
            pyarrow.json.ParseOptions(
                explicit_schema=pa.schema(
                    [(name, stored_type(kind)) for name, kind in types.items()]
                ),
                unexpected_field_behavior="ignore",
            ),
        )
        table.validate(full=True)
    except pa.ArrowException:
        return None
    if table.num_rows != len(whole):
        return None
    columns = {name: one_array(table[name]) for name in types}
    return None if any(map(_may_be_inexact, columns.values())) else columns


def stored_type(kind: pa.DataType) -> pa.DataType:
    """Returns the type that Arrow reads: text for what has none, so that any value is read by
    line.
    """
    return pa.string() if pa.types.is_null(kind) or pa.types.is_struct(kind) else kind


def _may_be_inexact(values: pa.Array) -> bool:
    """Returns whether floats are infinite, or large enough to have been other integers."""
    values = values.flatten() if pa.types.is_list(values.type) else values
    if not pa.types.is_floating(values.type):
        return False
    return bool(pc.any(pc.greater_equal(pc.abs(values), EXACT_INTEGERS)).as_py())


def _read_lines(
    lines: list[bytes], numbers: np.ndarray, types: Mapping[str, pa.DataType]
) -> tuple[dict[str, pa.Array], list[BadLine]]:
    """Returns the columns of the rows, and the lines that are none.

    Args:
        numbers: the lines that are not blank, counted from 1.
    """
    bad = []
    columns: dict[str, list[Any]] = {name: [] for name in types}
    for number in numbers.tolist():
        line = lines[number - 1]
        try:
            row = _row(_parsed(line), types)
        except ValueError as error:
            bad.append(BadLine(number, str(error), line.decode("utf-8", "backslashreplace")))
        else:
            for name, values in columns.items():
                values.append(row.get(name))
    return {name: column_of(values) for name, values in columns.items()}, bad


def _parsed(line: bytes) -> _Object:
    """Returns the object of a line. Raises ValueError with the reason if there is none."""
    try:
        found = json.loads(line.decode(), parse_constant=_constant, object_pairs_hook=_Object)
        if b"\\u" in line:
            json.dumps(found, ensure_ascii=False).encode()
    except UnicodeDecodeError as error:
        raise ValueError("the line is not UTF-8") from error
    except UnicodeEncodeError as error:
        raise ValueError("the line has half of a surrogate pair") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"the line is not JSON: {error.msg}") from error
    except RecursionError as error:
        raise ValueError("the line is nested too deeply") from error
    except ValueError as error:  # a constant, or an integer of too many digits
        raise ValueError(f"the line is not JSON: {str(error).partition(':')[0]}") from error
    if not isinstance(found, _Object):
        raise ValueError("the line is not an object")
    return found


def _constant(name: str) -> None:
    raise ValueError(f"{name} is no number, and a missing value is null")


def _row(pairs: _Object, types: Mapping[str, pa.DataType]) -> dict[str, Any]:
    """Returns the values of columns. Raises ValueError with the reason if a value cannot be read."""
    found = [(name, value) for name, value in pairs if name in types]
    row = dict(found)
    if len(row) < len(found):
        (name, count), *_ = Counter(name for name, _ in found).most_common(1)
        raise ValueError(f"{name} occurs {count} times")
    for name, value in row.items():
        if value is not None and _is_list(value) != pa.types.is_list(types[name]):
            raise ValueError(f"{name} is {'a list' if _is_list(value) else 'no list'}")
        for each in value if _is_list(value) else (value,):
            if isinstance(each, list):
                raise ValueError(f"{name} holds {'a list' if _is_list(each) else 'an object'}")
            if isinstance(each, float) and math.isinf(each):
                raise ValueError(f"{name} is beyond the range of float64")
    return row


def _is_list(value: Any) -> bool:
    return isinstance(value, list) and not isinstance(value, _Object)
