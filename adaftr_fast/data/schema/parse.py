"""Reads a schema from a TOML file, and writes one: fields, labels, group and splits.

``shipped/flights.toml`` is an example to copy. Every key is checked here, so a typo is reported
before any data is read. Every error names the key, the expected value and the value found.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from adaftr_fast.data.schema.columns import check_conditions
from adaftr_fast.data.schema.sql import parse_expression
from adaftr_fast.data.schema.types import (
    SPLITS,
    ColumnType,
    Condition,
    Field,
    HashRange,
    Label,
    Schema,
    SplitRule,
    TextFormat,
    TimeRange,
)
from adaftr_fast.errors import DataError
from adaftr_fast.files.json import from_json
from adaftr_fast.files.toml import loads_toml, to_toml
from adaftr_fast.files.whole import check_name, replace_file
from adaftr_fast.nn.encoding import EncodingKind

Reader = Callable[[str, Any], Any]
"""Checks and converts the value of a key, given the name of the key in errors."""

if TYPE_CHECKING:
    from adaftr_fast.data.synthetic.log import LogConfig

SHIPPED = resources.files("adaftr_fast.data.schema.shipped")
# the funnel of a schema with labels of these names, as predict assumes it
FUNNEL = ("click", "conversion")
MOST_IDS, MOST_ROWS = 2**31 - 2, 2**63 - 1  # ids are int32 and start at 1; counts are int64
MARKS = ",.' \u00a0\u202f_"  # of numbers
# prefix of a role: the common features of that role's skeleton file (format aliccp)
COMMON = "common_"
# datetime.datetime is a subclass of date
SCALARS = (bool, int, float, str, datetime.date, datetime.time)
OPERATORS = ("==", "!=", "<", ">", "<=", ">=", "in", "not in")
KINDS_OF = {  # the keys of a field that only some kinds have
    "min_count": ("categorical", "cross"),
    "hashed": ("categorical", "cross"),
    "buckets": ("numeric", "dense"),
    "encoding": ("dense",),
    "tokens": ("categorical",),
    "length": ("categorical",),
    "separator": ("categorical",),
    "vocabulary": ("categorical",),
}
# pairs of keys of a field, of which the second one replaces the first
REPLACED = (("min_count", "hashed"), ("min_count", "vocabulary"), ("hashed", "vocabulary"))


def shipped_schemas() -> list[str]:
    """Returns the names of the schemas in this package."""
    names = [entry.name for entry in SHIPPED.iterdir()]
    return sorted(name.removesuffix(".toml") for name in names if name.endswith(".toml"))


def load_schema(name: str) -> Schema:
    """Reads a schema from a ``.toml`` path, or by name if it ships with the package.

    Raises:
        DataError: the schema does not exist, is not TOML, or has a missing, unknown or invalid key.
    """
    path: Path | Traversable
    if name.endswith(".toml"):
        path = Path(name)
        if not path.is_file():
            raise DataError(f"schema: no file {name}")
    elif name in shipped_schemas():
        path = SHIPPED / f"{name}.toml"
    else:
        known = ", ".join(shipped_schemas())
        raise DataError(
            f"schema: unknown data set {name!r}; expected one of {known}, or a path ending in .toml"
        )
    try:
        return parse_schema(loads_toml(path.read_text(encoding="utf-8")))
    except ValueError as error:  # not UTF-8, not TOML or not a schema
        raise DataError(f"schema {name}: {error}") from error


def parse_schema(source: dict[str, Any]) -> Schema:
    """Converts the content of a schema file to a ``Schema``. Raises DataError, which names the
    invalid key.
    """
    source = _merge_base(source)
    read = read_table("", source, SCHEMA_KEYS, required=("name", "labels", "split", "fields"))
    files = read.setdefault("files", ("data",))
    for role in files if "format" in read else ():
        if not role.startswith(COMMON) and COMMON + role not in files:
            raise DataError(
                f"files: format aliccp reads {role!r} together with {COMMON + role!r}, which is "
                "missing"
            )
    read["labels"] = tuple(Label(name, **each) for name, each in read["labels"].items())
    defaults = {"min_count": 1, "buckets": 20} | read.pop("defaults", {})
    fields = [
        _field(f"fields.{name}", name, each, defaults) for name, each in read["fields"].items()
    ]
    read["fields"] = tuple(field for field in fields if field.kind != "dense")
    read["dense"] = tuple(field for field in fields if field.kind == "dense")
    split = dict.fromkeys(SPLITS, partial(_split, files=files))
    rules = read_table("split", read["split"], split, required=SPLITS)
    read["split"] = {name: rules[name] for name in SPLITS}
    read["funnel"] = funnel_stages(read.get("funnel"), source["labels"])
    read["expressions"] = read.pop("columns", {})
    schema = Schema(**read, source=source)
    _check_expressions(schema)
    _check_columns(schema)
    _check_names(schema)
    used = {*schema.named_columns()}
    computed = {name: each for name, each in schema.expressions.items() if name in used}
    return replace(schema, expressions=computed)


def write_schema(path: Path, source: dict[str, Any], comment: str) -> None:
    """Writes the content of a schema file; a file that holds just that stays as it is.

    Args:
        path: the file, whose name ends in ``.toml``.
        source: the content of the schema, as ``parse_schema`` reads it.
        comment: the first line.

    Raises:
        DataError: the file has another name or exists with another content, which may have been
            edited.
        OSError: the file cannot be written.
    """
    if path.suffix != ".toml":
        raise DataError(f"write_schema: expected a file name that ends in .toml, got {str(path)!r}")
    content = f"# {comment}\n{to_toml(source)}".encode()
    if path.exists():
        if path.read_bytes() != content:
            raise DataError(f"write_schema: {path} exists with another content; name another file")
        return
    replace_file(path, content)


def _merge_base(source: dict[str, Any]) -> dict[str, Any]:
    """Merges a schema into its ``base``, a shipped schema: tables are merged by key, other values
    are replaced.

    New labels and fields follow those of the base. A field set to ``false`` is removed.
    """
    if "base" not in source:
        return source
    name = text("base", source["base"])
    if name not in shipped_schemas():
        raise DataError(
            f"base: unknown data set {name!r}; expected one of {', '.join(shipped_schemas())}"
        )
    merged = dict(load_schema(name).source)
    for key, value in source.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merged[key] | value if both else value
    del merged["base"]
    if isinstance(merged["fields"], dict):
        merged["fields"] = {
            field: value for field, value in merged["fields"].items() if value is not False
        }
    return merged


def funnel_stages(value: Any, labels: Collection[str]) -> tuple[str, ...]:
    """Returns the stages of the funnel.

    Args:
        value: the key ``funnel`` of a schema, or None for click and conversion if there are such
            labels.
        labels: the names of the labels.

    Raises:
        DataError: ``value`` names one stage, an unknown label, or a label twice.
    """
    if value is None:
        return FUNNEL if set(labels) >= set(FUNNEL) else ()
    if value == []:
        return ()
    stages = strings("funnel", value)
    if len(stages) < 2 or len(set(stages)) < len(stages) or not set(stages) <= set(labels):
        raise DataError(
            f"funnel: expected two or more of the labels {', '.join(labels)}, or none, got "
            f"{value!r}"
        )
    return stages


def _check_expressions(schema: Schema) -> None:
    """Raises DataError if an expression reads a column that it may not read or that has another
    type, or a type is that of no such column.
    """
    labels = {label.column: label.name for label in schema.labels}
    reads = {column for each in schema.expressions.values() for column in each.columns}
    for name, each in schema.expressions.items():
        for column in each.columns:
            if column in schema.expressions:
                raise DataError(
                    f"columns.{name}: expected columns of the input, got the computed {column!r}"
                )
            if column in labels:
                raise DataError(
                    f"columns.{name}: reads {column!r}, the column of label {labels[column]}; make "
                    "the label an expression or a condition of it"
                )
    for column, kind in schema.types.items():
        if column not in reads:
            raise DataError(
                f"types.{column}: expected a column that an expression of columns reads"
            )
        if column in schema.numbers() and kind not in ("number", "integer"):
            raise DataError(
                f"types.{column}: expected number or integer, as a numeric field, the weight or a "
                f"truth reads it, got {kind}"
            )
    for name, rule in schema.split.items():
        if rule.time and rule.time.column in schema.expressions:
            raise DataError(
                f"split.{name}.time: expected a column of the input, got the computed "
                f"{rule.time.column!r}"
            )
    check_conditions(schema)


def _check_columns(schema: Schema) -> None:
    """Raises DataError if there are no fields or labels, or a field reads a column that no field
    may read.
    """
    if not schema.labels or not schema.fields:
        counts = f"{len(schema.labels)} label(s) and {len(schema.fields)} field(s)"
        counts += f" besides {len(schema.dense)} dense one(s)" if schema.dense else ""
        raise DataError(f"expected at least one label and one field, got {counts}")
    times = {rule.time.column for rule in schema.split.values() if rule.time}
    if times and schema.format:
        raise DataError(f"split: expected where or hash with format {schema.format}, got time")
    leaks: dict[str | None, str] = {
        column: f"a source of label {label.name}"
        for label in reversed(schema.labels)  # so that the first one is named
        for column in (*label.columns(), *schema.inputs(label.columns()))
    }
    known = [*schema.truth.values(), *([schema.weight] if schema.weight else [])]
    leaks |= dict.fromkeys([*known, *schema.inputs(known)], "a truth or weight column")
    for field in schema.features:
        for column in (*field.columns, *schema.inputs(field.columns)):
            if column in leaks:
                raise DataError(f"field {field.name} reads {column!r}, {leaks[column]}")
            if column in schema.ignore:
                raise DataError(
                    f"ignore: expected columns that no field reads, but field {field.name} reads "
                    f"{column!r}"
                )
            if column in {*field.columns} & times and field.kind not in ("numeric", "dense"):
                expected = "a numeric or dense field of a column that splits by time"
                raise DataError(f"field {field.name}: expected {expected}, got a {field.kind} one")


def _check_names(schema: Schema) -> None:
    """Raises DataError if a name is that of another column of a prepared folder, or ``vocabulary``
    names no field with ids of its own.
    """
    fields, labels = ([each.name for each in group] for group in (schema.features, schema.labels))
    added = {"group:id" if schema.group else None, "weight:value" if schema.weight else None}
    added |= {f"truth:{name}" for name in schema.truth}
    for name in fields + labels:
        if name in added:
            raise DataError(
                f"field or label {name!r}: the name of a column that prepare adds; ignore or "
                "rename it"
            )
    for name in labels:
        if name in fields:
            raise DataError(f"{name!r} names both a field and a label")
    owners = [
        field.name
        for field in schema.fields
        if field.kind == "categorical" and field.vocabulary is None
    ]
    for field in schema.fields:
        if field.vocabulary is not None and field.vocabulary not in owners:
            expected = (
                f"a categorical field with ids of its own, one of {', '.join(owners) or 'none'}"
            )
            raise DataError(
                f"fields.{field.name}.vocabulary: expected {expected}, got {field.vocabulary!r}"
            )


def _field(where: str, name: str, value: Any, defaults: dict[str, int]) -> Field:
    if not isinstance(value, str | dict):
        expected = '"categorical", "numeric", "dense" or a table'
        raise DataError(f"{where}: expected {expected}, got {value!r}")
    spec = {"kind": value} if isinstance(value, str) else value
    read = read_table(where, spec, FIELD_KEYS, required=() if "cross" in spec else ("kind",))
    if "cross" in read:
        if len(read["cross"]) < 2 or "kind" in read or "column" in read:
            raise DataError(
                f"{where}: expected a cross of two or more columns, without kind or column, got "
                f"{spec!r}"
            )
        read |= {"kind": "cross", "columns": read.pop("cross")}
    else:
        read["columns"] = (read.pop("column", name),)
    kind = read["kind"]
    for key, kinds in KINDS_OF.items():
        if key in read and kind not in kinds:
            raise DataError(
                f"{where}.{key}: expected a {' or '.join(kinds)} field, got a {kind} one"
            )
    for key, other in REPLACED:
        if key in read and other in read:
            beside = "vocabulary, whose field sets it" if other == "vocabulary" else other
            raise DataError(f"{where}.{key}: expected no key beside {beside}, got {read[key]!r}")
    if kind == "dense":
        encoding = read.setdefault("encoding", "standard")
        if "buckets" in read and encoding != "piecewise":
            raise DataError(
                f'{where}.buckets: expected a dense field with encoding "piecewise", got '
                f"{encoding!r}"
            )
    tokens = read.get("tokens")
    if "separator" in read and tokens is None:
        raise DataError(
            f"{where}.separator: expected text on a field with tokens, got {read['separator']!r}"
        )
    if "length" in read and tokens != "all":
        raise DataError(
            f'{where}.length: expected a field with tokens "all", got tokens {tokens!r}'
        )
    return Field(name, **(defaults | read))


def _split(where: str, value: Any, files: tuple[str, ...]) -> SplitRule:
    rule = SplitRule(**({"file": files[0]} | read_table(where, value, SPLIT_KEYS)))
    if rule.file not in files:
        raise DataError(f"{where}.file: expected one of {', '.join(files)}, got {rule.file!r}")
    if rule.hash and rule.rows != "all":
        raise DataError(f"{where}: expected rows or hash, got both")
    if rule.time and rule.where:
        raise DataError(f"{where}: expected where or time, got both")
    return rule


def _of_type(kind: type, expected: str) -> Reader:
    """Returns a reader of values of one type."""

    def read(where: str, value: Any) -> Any:
        if not isinstance(value, kind):
            raise DataError(f"{where}: expected {expected}, got {value!r}")
        return value

    return read


def _one_of(*choices: str) -> Reader:
    """Returns a reader of these choices."""

    def read(where: str, value: Any) -> Any:
        if value not in choices:
            raise DataError(f"{where}: expected one of {', '.join(choices)}, got {value!r}")
        return value

    return read


text = _of_type(str, "text")
table = _of_type(dict, "a table")


def _each(read: Reader) -> Reader:
    """Returns a reader of tables whose values are all read alike."""
    return lambda where, value: {
        key: read(f"{where}.{key}", each) for key, each in table(where, value).items()
    }


def _shares(where: str, value: Any, required: Sequence[str] = ()) -> dict[str, Any]:
    keys = {"column": text, "start": number, "stop": number}
    read = {"start": 0.0, "stop": 1.0} | read_table(where, value, keys, required)
    if not 0.0 <= read["start"] < read["stop"] <= 1.0:
        raise DataError(
            f"{where}: expected 0 <= start < stop <= 1, got {read['start']:g} and {read['stop']:g}"
        )
    return read


def text_format(where: str, value: Any) -> TextFormat:
    """Returns the content of the table ``text``."""
    read = read_table(where, value, TEXT_KEYS)
    # an empty mark is that of the default
    found = TextFormat(**{key: each for key, each in read.items() if each != ""})
    if found.thousands == found.decimal:
        raise DataError(
            f"{where}: expected different marks of thousands and decimals, got {found.decimal!r} "
            "for both"
        )
    return found


def _words(where: str, value: Any) -> tuple[str, ...]:
    return strings(where, value) if value else ()


def _dates(where: str, value: Any) -> tuple[str, ...]:
    forms = _words(where, value)
    for form in forms:
        if "%" not in form:
            raise DataError(f"{where}: expected a form such as '%d/%m/%Y', got {form!r}")
    return forms


def _mark(where: str, value: Any) -> Any:
    mark = text(where, value)
    if len(mark) > 1 or mark not in MARKS:
        raise DataError(f"{where}: expected one of the characters {MARKS!r}, got {mark!r}")
    return mark


def _roles(where: str, value: Any) -> tuple[str, ...]:
    roles = strings(where, value)
    if len(set(roles)) < len(roles):
        raise DataError(f"{where}: expected different names, got {', '.join(roles)}")
    return roles


def _format(where: str, value: Any) -> Any:
    if value != "aliccp":
        raise DataError(
            f'{where}: expected "aliccp", or nothing for parquet and text, got {value!r}'
        )
    return value


def _shipped(where: str, value: Any) -> Any:
    try:
        check_name(text(where, value), where)
    except ValueError as error:
        raise DataError(str(error)) from error
    return value


def _label(where: str, value: Any) -> dict[str, Any]:
    is_column = isinstance(value, str)
    return {"column": value} if is_column else {"condition": condition(where, value)}


def _column(where: str, value: Any) -> str | None:
    return text(where, value) or None  # "" takes away the one of a base


def condition(where: str, value: Any) -> Condition:
    """Reads a condition: a list of [column, op, value], or a list of such lists."""
    first = value[0] if isinstance(value, list) and value else None
    is_nested = isinstance(first, list) and first and isinstance(first[0], list)
    return [_conjunction(where, each) for each in (value if is_nested else [value])]


def _conjunction(where: str, value: Any) -> list[tuple[str, str, Any]]:
    if not isinstance(value, list) or not value:
        raise DataError(f'{where}: expected a list of ["column", "op", value], got {value!r}')
    for triple in value:
        if not isinstance(triple, list) or len(triple) != 3 or not isinstance(triple[0], str):
            raise DataError(f'{where}: expected ["column", "op", value], got {triple!r}')
        _check_comparison(where, *triple)
    return [(column, op, operand) for column, op, operand in value]


def _check_comparison(where: str, column: str, operator: Any, operand: Any) -> None:
    if operator not in OPERATORS:
        raise DataError(
            f"{where}: {column}: expected one of the operators {', '.join(OPERATORS)}, got "
            f"{operator!r}"
        )
    takes_list = operator in ("in", "not in")
    is_list = isinstance(operand, list)
    values = operand if is_list else [operand]
    if takes_list != is_list or not values or not all(isinstance(each, SCALARS) for each in values):
        expected = "a list of values" if takes_list else "one value"
        raise DataError(f"{where}: {column} {operator}: expected {expected}, got {operand!r}")
    for value in values:
        if type(value) is int and not -(2**63) <= value < 2**63:
            raise DataError(
                f"{where}: {column} {operator}: expected an integer of 64 bits, got {value}"
            )


def _separator(where: str, value: Any) -> Any:
    if not text(where, value):
        raise DataError(f"{where}: expected text on a field with tokens, got {value!r}")
    return value


def number(where: str, value: Any) -> float:
    """Returns ``value`` as a float if it is an int or a float, not a bool."""
    if type(value) not in (int, float):
        raise DataError(f"{where}: expected a number, got {value!r}")
    try:
        return float(value)
    except OverflowError as error:
        raise DataError(
            f"{where}: expected a number within float64, got {len(str(value))} digits"
        ) from error


def count(where: str, value: Any, largest: int = MOST_ROWS) -> int:
    """Returns ``value`` if it is a positive int, not a bool."""
    if type(value) is not int or value < 1:
        raise DataError(f"{where}: expected an integer >= 1, got {value!r}")
    if value > largest:
        raise DataError(f"{where}: expected at most {largest}, got {value}")
    return value


def strings(where: str, value: Any) -> tuple[str, ...]:
    """Returns ``value`` as a tuple if it is a non-empty list of strings."""
    if not isinstance(value, list) or not value or not all(isinstance(item, str) for item in value):
        raise DataError(f"{where}: expected a list of names, got {value!r}")
    return tuple(value)


def read_table(
    where: str, value: Any, readers: Mapping[str, Reader], required: Sequence[str] = ()
) -> dict[str, Any]:
    """Returns the values of a TOML table, each as the reader of its key returns it.

    Raises:
        DataError: a key is required and missing, or has no reader.
    """
    place = where or "the file"
    for key in table(place, value):
        if key not in readers:
            raise DataError(f"{place}: unknown key {key!r}; expected one of {', '.join(readers)}")
    for key in required:
        if key not in value:
            raise DataError(f"{place}: missing key {key!r}")
    prefix = f"{where}." if where else ""
    return {key: readers[key](prefix + key, each) for key, each in value.items()}


SPLIT_KEYS: dict[str, Reader] = {
    "file": text,
    "where": condition,
    "rows": _one_of("all", "even", "odd"),
    "hash": lambda where, value: HashRange(**_shares(where, value)),
    "time": lambda where, value: TimeRange(**_shares(where, value, ("column",))),
}
FIELD_KEYS: dict[str, Reader] = {
    "kind": _one_of("categorical", "numeric", "dense"),
    "column": text,
    "cross": strings,
    "min_count": count,
    "buckets": count,
    "tokens": _one_of("last", "all"),
    "length": partial(count, largest=MOST_IDS),
    "separator": _separator,
    "hashed": partial(count, largest=MOST_IDS),
    "vocabulary": text,
    "encoding": _one_of(*get_args(EncodingKind)),
}
TEXT_KEYS: dict[str, Reader] = {
    "null": _words,
    "thousands": _mark,
    "decimal": _mark,
    "dates": _dates,
    "line_ends": _of_type(bool, "true or false"),
}


def _generate(where: str, value: Any) -> LogConfig:
    from adaftr_fast.data.synthetic.log import LogConfig  # which few schemas name

    return from_json(LogConfig, value, where)


SCHEMA_KEYS: dict[str, Reader] = {
    "name": text,
    "attribution": text,
    "files": _roles,
    "format": _format,
    "shipped": _shipped,
    "generate": _generate,
    "drop": condition,
    "group": _column,
    "weight": _column,
    "columns": _each(lambda where, value: parse_expression(where, text(where, value))),
    "types": _each(_one_of(*get_args(ColumnType))),
    "labels": _each(_label),
    "truth": _each(text),
    "ignore": strings,
    "split": table,
    "defaults": partial(read_table, readers={"min_count": count, "buckets": count}),
    "fields": table,
    "preset": _one_of("paper", "fitted"),
    "funnel": lambda _, value: value,  # which ``funnel_stages`` checks
    "text": text_format,
}
