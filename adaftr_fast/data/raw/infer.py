"""Infers a schema from files and a few column names."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from adaftr_fast.data.arrow import one_array, reading, shown
from adaftr_fast.data.encode.written import holds_text, plain_numbers, without_empty, without_words
from adaftr_fast.data.raw.formats import infer_dates, infer_format
from adaftr_fast.data.raw.inputs import (
    SAMPLE_ROWS,
    InputFile,
    TextFile,
    first_with_rows,
    is_json,
    open_input,
    share_keys,
    text_files,
)
from adaftr_fast.data.raw.source import check_columns
from adaftr_fast.data.raw.tables import is_list
from adaftr_fast.data.raw.text import are_numbers, typed
from adaftr_fast.data.raw.times import check_times, unsorted_times
from adaftr_fast.data.schema.types import PLAIN_TEXT, TextFormat
from adaftr_fast.errors import DataError

TRAIN, VALIDATION = 0.8, 0.9  # shares of the rows where validation and test begin
LARGEST_EXACT = 2.0**53  # float64 tells integers below it from their neighbours
WHOLE = r"^[+-]?[0-9]+(\.0*)?$"
ID_NAME = re.compile(r"(^|[^A-Za-z])(?i:id|uid|gid|user|item|hash|key)$|[a-z](Id|ID|Uid|Hash|Key)$")
FEW = 20  # distinct values of integers that are told apart rather than ordered
PIECEWISE = {"kind": "dense", "encoding": "piecewise"}
MARKS = "|;,"
SHARE = 0.25  # of the values have several tokens
FEWEST_LISTS = 20  # distinct ones
# lists per distinct token: lists combine the same tokens, while every title and place brings its
# own
REUSE = 2
# of the tokens that follow others also begin a list, and conversely: tags do, cities and countries
# do not
MIXED = 0.8
THOUSANDS = re.compile(r"[+-]?[0-9]{1,3}(,[0-9]{3})*")
BRACKETS = "[{(\"'"  # a list that another program has printed


def infer_schema(
    inputs: Sequence[Path],
    labels: Sequence[str],
    *,
    group: str | None = None,
    time: str | None = None,
    weight: str | None = None,
    ignore: Sequence[str] = (),
    multi: Mapping[str, str] = MappingProxyType({}),
    funnel: Sequence[str] | None = None,
    dense: Sequence[str] = (),
    hash: Mapping[str, int] = MappingProxyType({}),
    min_count: int | None = None,
    keep_group: bool = False,
    text: TextFormat = PLAIN_TEXT,
) -> dict[str, Any]:
    """Returns the content of a schema file. Every column without another role becomes a field.

    Floats are dense fields, encoded piecewise; if there is no other field, also numeric ones.
    Integers, text and booleans are categorical fields, and so are floats that hold ids, which a
    warning names. Integers of many values that are not named as ids are a dense field, too, whose
    name ends in ``_number``. The group is no field where it divides the splits, since its ids are
    then unknown outside training, unless another argument names it. Lists are categorical fields
    with all tokens, and so is text that holds lists, such as "action|comedy", of which a warning
    tells the separator. Columns of dates and times are left out. The first 80 % of the rows are the
    training split, the next 10 % validation and the rest test. Rows are ordered by ``time``;
    without it by a hash of the group, so that no user is in two splits; without a group by a hash
    of the row number.

    Args:
        inputs: files of parquet or delimited text, and folders of such files; the first one tells
            the types, and all files of JSON lines the keys. Text in parquet has the types that it
            would have in a text file.
        labels: 0/1 columns, one per task. AdaFTR contrasts the first with each other one.
        group: column by which GAUC groups rows.
        time: column that orders the rows: numbers, timestamps, or text of times.
        weight: column of sample weights.
        ignore: columns that are not features.
        multi: separators of text columns that hold lists; "" for a column that is to be read as one
            value.
        funnel: labels in order, each of which happens only after the one before; () if there is
            none. None leaves it to ``parse_schema``.
        dense: columns of numbers that a model reads themselves.
        hash: numbers of ids of columns whose values are mapped to ids by their hash.
        min_count: training rows that a value needs to get an id; None for 1.
        keep_group: whether the group is a field although its hash divides the splits, for rows that
            are divided otherwise.
        text: how text holds values. What is not set is inferred from the first rows.

    Raises:
        DataError: the file is unreadable, a name is not one of its columns, the first times are
            text that does not sort by time, or ``multi`` names a column that is not a field, holds
            lists already, or cannot hold the separator.
    """
    files = [file for each in inputs for file in text_files(each)]
    path = first_with_rows(files)
    unread = {*labels, *ignore, *hash} - {time}
    with reading(path, "not readable"):
        others = [file for file in files if is_json(file) and is_json(path) and file != path]
        file, *_ = share_keys([open_input(each, text) for each in (path, *others)])
        file, columns = _types(file, unread, {*multi}, time)
    roles = (each for each in (group, time, weight) if each)
    check_columns(path, columns.names, [*labels, *ignore, *multi, *dense, *hash, *roles])
    file = _with_dates(file, columns, time) if time else file
    not_fields = {*labels, *ignore, time, weight}
    fields = {each.name: _field(each.type) for each in columns if each.name not in not_fields}
    flat = [name for name, field in fields.items() if isinstance(field, str) or name in multi]
    sample = _sample(file, flat)
    numeric = [name for name in flat if fields[name] == "numeric" and not multi.get(name)]
    if ids := _ids(sample, file.form, numeric):
        fields |= dict.fromkeys(ids, "categorical")
        named = "; ".join(f"{name} ({reason})" for name, reason in ids.items())
        warnings.warn(f"{shown(path)}: read as ids, not as numbers: {named}", stacklevel=2)
    for name in multi:
        if name not in fields:
            raise DataError(
                f"{shown(path)}: multi: {name!r} is not a field: it is a label, the time, the weight, or "
                "left out"
            )
    texts = [each.name for each in columns if holds_text(each.type) and each.name in fields]
    if time:
        _warn_of_copies(file, columns)
    _warn_of_objects(file, sample, columns, [name for name in texts if name not in multi])
    fields |= _lists(file, sample, [name for name in texts if name != group], multi)
    fields |= _numbers(file, columns, fields, {group, *multi, *dense, *hash})
    if group and not (time or keep_group) and group not in {*multi, *dense, *hash}:
        fields[group] = None
    fields |= dict.fromkeys(dense, "dense")
    fields |= {name: {"kind": "categorical", "hashed": ids} for name, ids in hash.items()}
    left_out = [name for name in dict.fromkeys([*ignore, *fields]) if not fields.get(name)]
    source = {
        "name": path.name.split(".")[0],
        "labels": {label: label for label in labels},
        "group": group or None,
        "weight": weight or None,
        "ignore": left_out or None,
        "funnel": None if funnel is None else list(funnel),
        "defaults": None if min_count is None else {"min_count": min_count},
        "text": _written(file.form) or None,
        "split": _by_time(time) if time else _by_hash(group),
        "fields": {name: field for name, field in fields.items() if field},
    }
    return {key: value for key, value in source.items() if value is not None}


def _types(
    file: InputFile, not_fields: set[str], multi: set[str], time: str | None
) -> tuple[InputFile, pa.Schema]:
    """Returns the file with how its text holds values, as its first rows tell it, and the types of
    its columns.

    Columns of text have the types of their first rows, but for those of ``not_fields`` and for the
    times of parquet.
    """
    is_text = isinstance(file, TextFile)
    given = file.form
    unread = not_fields if is_text else {*not_fields, time}
    names = [each.name for each in file.types if holds_text(each.type) and each.name not in unread]
    rows = file.first(names)
    texts = {name: one_array(rows[name]) for name in names}
    if not is_text:
        texts = {name: without_empty(values) for name, values in texts.items()}
    values = {name: column for name, column in texts.items() if name not in multi}
    form = infer_format(values, file.delimiter, given)
    found = {each.name: each for each in typed(pa.table(texts), form).schema} if texts else {}
    plain = [name for name in values if form.thousands and pa.types.is_string(found[name].type)]
    marked = [name for name in plain if are_numbers(without_words(values[name], form), form)]
    found |= {name: pa.field(name, pa.float64()) for name in marked}
    if form.thousands and not given.thousands:
        how = (
            "--thousands, --decimal and --multi (in Python thousands=, decimal=, multi=) say "
            "otherwise"
        )
        named = f"{', '.join(marked)}: read as numbers with thousands {form.thousands!r}"
        warnings.warn(f"{shown(file.path)}: {named}; {how}", stacklevel=4)
    types = pa.schema([found.get(each.name, each) for each in file.types])
    return replace(file, form=form), types


def _with_dates(file: InputFile, types: pa.Schema, time: str) -> InputFile:
    """Returns the file with the forms of a column of times, if it is text that does not sort by
    time.

    Raises:
        DataError: the text has no form of times, or one in which day and month cannot be told
            apart.
    """
    if file.form.dates or not holds_text(types.field(time).type):
        return file
    values = without_words(one_array(_sample(file, [time])[time]), file.form)
    if not unsorted_times(values):
        return file
    dates = infer_dates(f"{shown(file.path)}: time {time}", values)
    if not dates:
        check_times(file.path, time, values)
    return replace(file, form=replace(file.form, dates=dates))


def _sample(file: InputFile, columns: list[str]) -> pa.Table:
    """Returns the first rows of columns, those of a text file as they are written."""
    with reading(file.path, "not readable"):
        return file.first(columns).slice(0, SAMPLE_ROWS)


def _written(form: TextFormat) -> dict[str, Any]:
    """Returns the table ``text`` of a schema file: what differs from the default."""
    default = asdict(TextFormat(line_ends=False))
    return {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in asdict(form).items()
        if value != default[key]
    }


def _field(kind: pa.DataType) -> Any:
    """Returns how a column is read; None if it is left out."""
    if pa.types.is_temporal(kind) or _holds_objects(kind):
        return None
    if is_list(kind):
        return {"kind": "categorical", "tokens": "all"}
    return "numeric" if pa.types.is_floating(kind) or pa.types.is_decimal(kind) else "categorical"


def _holds_objects(kind: pa.DataType) -> bool:
    """Returns whether values are objects or lists of them, or lists of lists."""
    return pa.types.is_nested(kind) and (not is_list(kind) or pa.types.is_nested(kind.value_type))


def _numbers(
    file: InputFile, types: pa.Schema, fields: Mapping[str, Any], others: set[str | None]
) -> dict[str, Any]:
    """Returns the dense fields of numbers, and what becomes of the fields that they replace.

    Args:
        types: the types of the columns.
        fields: the fields so far.
        others: columns whose role the user has named.
    """
    floats = [name for name, field in fields.items() if field == "numeric" and name not in others]
    integers = [
        each.name
        for each in types
        if pa.types.is_integer(each.type)
        and fields.get(each.name) == "categorical"
        and each.name not in others
        and not ID_NAME.search(each.name)
    ]
    rows = _sample(file, integers) if integers else None
    many = [name for name in integers if rows and pc.count_distinct(rows[name]).as_py() > FEW]
    if all(field is None or name in floats for name, field in fields.items()):
        many += floats  # a model needs a field of embeddings
        floats = []
    found: dict[str, Any] = dict.fromkeys(floats, PIECEWISE)
    for name in many:
        dense = f"{name}_number"
        while dense in types.names:
            dense += "_"
        found[dense] = {"column": name} | PIECEWISE
    return found


def _ids(rows: pa.Table, form: TextFormat, columns: list[str]) -> dict[str, str]:
    """Returns the columns that the file's types make numbers but whose first rows hold ids, with
    the reasons.

    They hold whole numbers only, and either one beyond 2^53, which no float64 tells from its
    neighbours, or their name is that of an id. 64-bit hashes in text are such a column, since they
    exceed int64, and so are ids with missing values that another program has made floats.
    """
    found = {}
    for name in columns if rows.num_rows else []:
        values = rows[name]
        if holds_text(values.type):
            values = plain_numbers(without_words(values, form), form)
        values = values.drop_null()
        if (
            pa.types.is_string(values.type)
            and not pc.all(pc.match_substring_regex(values, WHOLE)).as_py()
        ):
            continue
        values = values.cast(pa.float64()).to_numpy()
        values = values[np.isfinite(values)]  # an infinity is no id
        if not len(values) or not np.array_equal(values, np.trunc(values)):
            continue
        largest = np.abs(values).max()
        if largest >= LARGEST_EXACT:
            is_float = pa.types.is_floating(rows[name].type)
            lost = (
                "; floats have lost digits of them already: pass integers or text"
                if is_float
                else ""
            )
            found[name] = f"whole numbers up to {largest:.3g}, beyond 2^53{lost}"
        elif ID_NAME.search(name):
            found[name] = "whole numbers under the name of an id"
    return found


def _lists(
    file: InputFile, rows: pa.Table, texts: Sequence[str], multi: Mapping[str, str]
) -> dict[str, Any]:
    """Returns the fields of text that holds lists: those of ``multi``, and those of ``texts`` whose
    first rows show it.

    Args:
        rows: the first rows of all fields.
    """
    path = file.path
    fields: dict[str, Any] = {}
    for name in dict.fromkeys([*texts, *multi]):
        separator = multi.get(name)
        if name in multi and not isinstance(separator, str):
            raise DataError(
                f"multi: {name}: expected a separator, or '' for one value, got {separator!r}"
            )
        try:
            values = rows[name].cast(pa.string())
        except pa.ArrowException as error:
            expected = f"expected a column of text, got {rows[name].type}"
            raise DataError(f"{shown(path)}: multi: {name}: {expected}") from error
        warning = ""
        if separator is None:
            separator = find_separator(values)
            how = f"--multi {name}= (in Python multi={{{name!r}: ''}}) reads it as one value"
            if separator:
                warning = f"{name}: read as lists separated by {separator!r}; {how}"
        elif separator and not pc.any(pc.match_substring(values, separator)).as_py():
            if separator == file.delimiter:
                raise DataError(
                    f"{shown(path)}: multi: {name}: {separator!r} separates the columns, and no value "
                    "holds it"
                )
            warning = f"multi: {name}: none of the first values holds {separator!r}"
        if warning:
            warnings.warn(f"{shown(path)}: {warning}", stacklevel=3)
        if separator:
            fields[name] = {"kind": "categorical", "tokens": "all", "separator": separator}
    return fields


def _warn_of_copies(file: InputFile, types: pa.Schema) -> None:
    """Warns if first rows are copies: rows that have a time are rarely equal in every column."""
    if any(pa.types.is_nested(each.type) for each in types):  # which Arrow does not compare
        return
    rows = _sample(file, types.names)
    copies = rows.num_rows - rows.group_by(types.names).aggregate([]).num_rows
    if copies:
        warnings.warn(
            f"{shown(file.path)}: {copies:,} of the first {rows.num_rows:,} rows are copies of another "
            "one in every column; each is read as a row",
            stacklevel=3,
        )


def _warn_of_objects(
    file: InputFile, rows: pa.Table, types: pa.Schema, texts: Sequence[str]
) -> None:
    """Warns of columns of objects, and of ``texts`` whose first values are JSON objects or arrays."""
    if nested := [each.name for each in types if _holds_objects(each.type)]:
        warnings.warn(
            f"{shown(file.path)}: {', '.join(nested)}: left out, since values hold objects or lists "
            "of lists; make a column of each key",
            stacklevel=3,
        )
    found = []
    for name in texts:
        values = without_empty(without_words(one_array(rows[name]), file.form)).drop_null()
        if len(values) and all(map(_is_json, values.unique().to_pylist())):
            found.append(name)
    if found:
        how = (
            f"--ignore {' '.join(found)} (in Python ignore={found}) leaves them out; make a column "
            "of each key, or lists that a separator divides"
        )
        named = f"{', '.join(found)}: read as one value each, though they hold JSON"
        warnings.warn(f"{shown(file.path)}: {named}; {how}", stacklevel=3)


def _is_json(text: str) -> bool:
    """Returns whether a text is an object or an array of JSON."""
    try:
        return text[:1] in "{[" and isinstance(json.loads(text), dict | list)
    except (ValueError, RecursionError):
        return False


def _by_hash(group: str | None) -> dict[str, Any]:
    column = {"column": group} if group else {}
    bounds = {"train": (0.0, TRAIN), "validation": (TRAIN, VALIDATION), "test": (VALIDATION, 1.0)}
    return {
        split: {"hash": column | {"start": start, "stop": stop}}
        for split, (start, stop) in bounds.items()
    }


def _by_time(time: str) -> dict[str, Any]:
    return {
        "train": {"time": {"column": time, "stop": TRAIN}},
        "validation": {"time": {"column": time, "start": TRAIN, "stop": VALIDATION}},
        "test": {"time": {"column": time, "start": VALIDATION}},
    }


def find_separator(values: pa.ChunkedArray) -> str | None:
    """Returns the separator of a column of lists, with the spaces around it; None if it does not
    hold lists.

    A wrong guess costs more than a missed one, so titles, addresses, names, paths and numbers must
    not pass.

    Args:
        values: the first values of a column, text.
    """
    values = values.drop_null()
    values = values.filter(pc.not_equal(values, ""))  # no tokens, as a missing value
    for mark in MARKS:
        share = pc.mean(pc.match_substring(values, mark)).as_py()  # None without values
        if share is not None and share >= SHARE:
            texts = pc.unique(values)
            count = pc.count_substring(texts, mark)
            separator = next(
                each
                for each in (f" {mark} ", f"{mark} ", mark)
                if pc.count_substring(texts, each).equals(count)
            )
            if _are_lists(texts.to_pylist(), separator):
                return separator
    return None


def _are_lists(texts: list[str], separator: str) -> bool:
    if any(text[:1] in BRACKETS for text in texts) or all(map(THOUSANDS.fullmatch, texts)):
        return False
    lists = [text.split(separator) for text in texts]
    lengths = [len(tokens) for tokens in lists]
    # columns in one, such as a city and its state
    if max(lengths) < 3 or min(lengths) == max(lengths):
        return False
    distinct = {token for tokens in lists for token in tokens}
    if any(token != token.strip() or not token for token in distinct):
        return False
    backwards = [tokens[::-1] for tokens in lists]
    return (
        len(lists) >= max(FEWEST_LISTS, REUSE * len(distinct))
        and _are_mixed(lists)
        and _are_mixed(backwards)
    )


def _are_mixed(lists: list[list[str]]) -> bool:
    """Returns whether most tokens that follow others also begin a list."""
    first = {tokens[0] for tokens in lists}
    later = [token for tokens in lists for token in tokens[1:]]
    return sum(token in first for token in later) >= MIXED * len(later)
