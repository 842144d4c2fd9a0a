"""What a data set is made of, read from a TOML file: fields, labels, group and split.

``schemas/flights.toml`` is the example to copy. Every key is checked here, so that a typing error is named
before any data is read.
"""

from __future__ import annotations

import datetime
import tomllib
from importlib import resources
from pathlib import Path
from typing import Any

from adaftr_fast._json import from_json
from adaftr_fast.data.errors import DataError
from adaftr_fast.data.schema_types import SPLITS, Condition, Field, Label, Schema, SplitRule
from adaftr_fast.data.synthetic.log import LogConfig

SCALARS = (bool, int, float, str, datetime.date, datetime.time)  # a datetime is a date
OPERATORS = ("==", "!=", "<", ">", "<=", ">=", "in", "not in")
REQUIRED = ("name", "labels", "split", "fields")
KEYS = (*REQUIRED, "attribution", "files", "shipped", "generate", "group", "truth", "defaults")


def shipped_schemas() -> list[str]:
    """Names of the schemas in this package."""
    folder = resources.files("adaftr_fast.data.schemas")
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


def load_schema(name: str) -> Schema:
    """Reads a schema shipped with the package by its name, or any other by its ``.toml`` path.

    Raises:
        DataError: no such schema, not TOML, or a key that is missing, unknown or of the wrong kind.
    """
    if name.endswith(".toml"):
        path = Path(name)
        if not path.is_file():
            raise DataError(f"schema: no file {name}")
    elif name in shipped_schemas():
        path = resources.files("adaftr_fast.data.schemas") / f"{name}.toml"
    else:
        known = ", ".join(shipped_schemas())
        raise DataError(f"schema: unknown data set {name!r}; expected one of {known}, or a path ending in .toml")
    try:
        return parse_schema(tomllib.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:  # not UTF-8, not TOML or not a schema
        raise DataError(f"schema {name}: {error}") from error


def _over_base(source: dict[str, Any]) -> dict[str, Any]:
    """A schema with a ``base``, the name of a shipped one, laid over it: tables key by key, other keys whole.

    New labels and fields come after the base's; a field that is ``false`` is left out.
    """
    if "base" not in source:
        return source
    name = _text("base", source["base"])
    if name not in shipped_schemas():
        raise DataError(f"base: unknown data set {name!r}; expected one of {', '.join(shipped_schemas())}")
    merged = dict(load_schema(name).source)
    for key, value in source.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merged[key] | value if both else value
    del merged["base"]
    if isinstance(merged["fields"], dict):
        merged["fields"] = {field: value for field, value in merged["fields"].items() if value is not False}
    return merged


def parse_schema(source: dict[str, Any]) -> Schema:
    """Checks and types the content of a schema file. Raises DataError, naming the key."""
    source = _over_base(source)
    _check_keys("the file", source, allowed=KEYS, required=REQUIRED)
    files = _strings("files", source.get("files", ["data"]))
    _check_keys("defaults", source.get("defaults", {}), allowed=("min_count", "buckets"))
    defaults = {"min_count": 1, "buckets": 20} | source.get("defaults", {})
    schema = Schema(
        name=_text("name", source["name"]),
        attribution=_text("attribution", source.get("attribution", "")),
        files=files,
        shipped=_text("shipped", source["shipped"]) if "shipped" in source else None,
        generate=from_json(LogConfig, source["generate"], "generate") if "generate" in source else None,
        group=_text("group", source["group"]) if "group" in source else None,
        labels=tuple(_label(name, value) for name, value in _table("labels", source["labels"]).items()),
        truth={name: _text(f"truth.{name}", value) for name, value in _table("truth", source.get("truth", {})).items()},
        split=_splits(source["split"], files),
        fields=tuple(_field(name, value, defaults) for name, value in _table("fields", source["fields"]).items()),
        source=source,
    )
    _check_leaks(schema)
    return schema


def _check_leaks(schema: Schema) -> None:
    if not schema.labels or not schema.fields:
        raise DataError("expected at least one label and one field")
    for field in schema.fields:
        for column in set(field.columns) & set(schema.truth.values()):
            raise DataError(f"field {field.name} reads {column!r}, a column of truth")
    for label in schema.labels:
        for field in schema.fields:
            leaked = set(field.columns) & set(label.columns())
            if leaked:
                raise DataError(f"field {field.name} reads {leaked.pop()!r}, of which label {label.name} is made")
            if field.name == label.name:
                raise DataError(f"{field.name!r} names both a field and a label")


def _field(name: str, value: Any, defaults: dict[str, int]) -> Field:
    where = f"fields.{name}"
    spec = {"kind": value} if isinstance(value, str) else value
    if not isinstance(spec, dict):
        raise DataError(f'{where}: expected "categorical", "numeric" or a table, got {value!r}')
    _check_keys(where, spec, allowed=("kind", "column", "cross", "min_count", "buckets", "tokens"))
    if "cross" in spec:
        kind, columns = "cross", _strings(f"{where}.cross", spec["cross"])
        if len(columns) < 2 or "kind" in spec or "column" in spec:
            raise DataError(f"{where}: a cross names two or more columns and neither kind nor column")
    else:
        kind, columns = spec.get("kind"), (_text(f"{where}.column", spec.get("column", name)),)
    if kind not in ("categorical", "numeric", "cross"):
        raise DataError(f'{where}: expected kind "categorical" or "numeric", got {kind!r}')
    numbers = {key: spec.get(key, defaults[key]) for key in ("min_count", "buckets")}
    for key, number in numbers.items():
        if type(number) is not int or number < 1:  # not a bool
            raise DataError(f"{where}.{key}: expected an integer >= 1, got {number!r}")
    tokens = spec.get("tokens")
    if tokens is not None and (tokens != "last" or kind != "categorical"):
        raise DataError(f'{where}.tokens: expected "last", of a categorical field, got {tokens!r}')
    return Field(name, kind, columns, **numbers, tokens=tokens)


def _label(name: str, value: Any) -> Label:
    if isinstance(value, str):
        return Label(name, column=value)
    return Label(name, condition=_condition(f"labels.{name}", value))


def _splits(value: dict[str, Any], files: tuple[str, ...]) -> dict[str, SplitRule]:
    _check_keys("split", value, allowed=SPLITS, required=SPLITS)
    return {name: _split(f"split.{name}", value[name], files) for name in SPLITS}


def _split(where: str, value: dict[str, Any], files: tuple[str, ...]) -> SplitRule:
    _check_keys(where, value, allowed=("file", "where", "rows"))
    rule = SplitRule(
        file=value.get("file", files[0]),
        where=_condition(f"{where}.where", value["where"]) if "where" in value else None,
        rows=value.get("rows", "all"),
    )
    if rule.file not in files:
        raise DataError(f"{where}.file: expected one of {', '.join(files)}, got {rule.file!r}")
    if rule.rows not in ("all", "even", "odd"):
        raise DataError(f'{where}.rows: expected "all", "even" or "odd", got {rule.rows!r}')
    return rule


def _condition(where: str, value: Any) -> Condition:
    first = value[0] if isinstance(value, list) and value else None
    if isinstance(first, list) and first and isinstance(first[0], list):
        return [_conjunction(where, part) for part in value]
    return _conjunction(where, value)


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
        raise DataError(f"{where}: {column}: expected an operator of {', '.join(OPERATORS)}, got {operator!r}")
    several = operator in ("in", "not in")
    values = operand if several and isinstance(operand, list) else [operand]
    if several != isinstance(operand, list) or not all(isinstance(value, SCALARS) for value in values):
        expected = "a list of values" if several else "one value"
        raise DataError(f"{where}: {column} {operator}: expected {expected}, got {operand!r}")


def _text(where: str, value: Any) -> str:
    if not isinstance(value, str):
        raise DataError(f"{where}: expected text, got {value!r}")
    return value


def _table(where: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DataError(f"{where}: expected a table, got {value!r}")
    return value


def _strings(where: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not value or not all(isinstance(item, str) for item in value):
        raise DataError(f"{where}: expected a list of names, got {value!r}")
    return tuple(value)


def _check_keys(where: str, table: Any, *, allowed: tuple[str, ...], required: tuple[str, ...] = ()) -> None:
    for key in _table(where, table):
        if key not in allowed:
            raise DataError(f"{where}: unknown key {key!r}; expected one of {', '.join(allowed)}")
    for key in required:
        if key not in table:
            raise DataError(f"{where}: missing key {key!r}")
