"""Reads a schema from a TOML file, and writes one: fields, labels, group and splits.

``shipped/flights.toml`` is an example to copy. Every key is checked here, so a typo is reported
before any data is read. Every error names the key, the expected value and the value found.
"""

from __future__ import annotations

import datetime
from collections.abc import Collection
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, get_args

from adaftr_fast._files import AnyPath, check_name, replace_file
from adaftr_fast._json import from_json, loads_toml
from adaftr_fast._toml import to_toml
from adaftr_fast.data.schema.types import (
    SPLITS,
    Condition,
    Field,
    HashRange,
    Label,
    Schema,
    SplitRule,
    TextFormat,
    TimeRange,
)
from adaftr_fast.data.synthetic.log import LogConfig
from adaftr_fast.errors import DataError
from adaftr_fast.nn.dense import EncodingKind
from adaftr_fast.stores import as_path, open_file

REQUIRED = ("name", "labels", "split", "fields")
OPTIONAL = (
    "attribution",
    "files",
    "format",
    "shipped",
    "generate",
    "drop",
    "group",
    "weight",
    "truth",
    "ignore",
    "defaults",
    "funnel",
    "text",
)
# the funnel of a schema with labels of these names, as predict assumes it
FUNNEL = ("click", "conversion")
MOST_IDS, MOST_ROWS = 2**31 - 2, 2**63 - 1  # ids are int32 and start at 1; counts are int64
FIELD_KEYS = (
    "kind",
    "column",
    "cross",
    "min_count",
    "buckets",
    "tokens",
    "length",
    "separator",
    "hashed",
    "vocabulary",
    "encoding",
)
TEXT_KEYS = ("null", "thousands", "decimal", "dates", "line_ends")
MARKS = ",.' \u00a0\u202f_"  # of numbers
ENCODINGS = get_args(EncodingKind)
KINDS_OF = {  # the keys of a field that only some kinds have
    "min_count": ("categorical", "cross"),
    "hashed": ("categorical", "cross"),
    "buckets": ("numeric", "dense"),
    "vocabulary": ("categorical",),
}
# prefix of a role: the common features of that role's skeleton file (format aliccp)
COMMON = "common_"
# datetime.datetime is a subclass of date
SCALARS = (bool, int, float, str, datetime.date, datetime.time)
OPERATORS = ("==", "!=", "<", ">", "<=", ">=", "in", "not in")


def shipped_schemas() -> list[str]:
    """Returns the names of the schemas in this package."""
    folder = resources.files("adaftr_fast.data.schema.shipped")
    return sorted(
        entry.name.removesuffix(".toml")
        for entry in folder.iterdir()
        if entry.name.endswith(".toml")
    )


def load_schema(name: str) -> Schema:
    """Reads a schema from a ``.toml`` path or URL, or by name if it ships with the package.

    Raises:
        DataError: the schema does not exist, is not TOML, or has a missing, unknown or invalid key.
        StoreError: the URL is none of a store that can be read.
    """
    path: AnyPath | Traversable
    if as_path(name).suffix == ".toml":  # a URL may have options behind
        path = open_file(name)
        if not path.is_file():
            raise DataError(f"schema: no file {name}")
    elif name in shipped_schemas():
        path = resources.files("adaftr_fast.data.schema.shipped") / f"{name}.toml"
    else:
        known = ", ".join(shipped_schemas())
        raise DataError(
            f"schema: unknown data set {name!r}; expected one of {known}, or a path ending in .toml"
        )
    try:
        return parse_schema(loads_toml(path.read_text(encoding="utf-8")))
    except ValueError as error:  # not UTF-8, not TOML or not a schema
        raise DataError(f"schema {name}: {error}") from error


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


def parse_schema(source: dict[str, Any]) -> Schema:
    """Converts the content of a schema file to a ``Schema``. Raises DataError, which names the
    invalid key.
    """
    source = _merge_base(source)
    check_keys("the file", source, allowed=REQUIRED + OPTIONAL, required=REQUIRED)
    files = strings("files", source.get("files", ["data"]))
    check_keys("defaults", source.get("defaults", {}), allowed=("min_count", "buckets"))
    defaults = {"min_count": 1, "buckets": 20} | source.get("defaults", {})
    fields = [
        _field(name, value, defaults) for name, value in table("fields", source["fields"]).items()
    ]
    schema = Schema(
        name=text("name", source["name"]),
        attribution=text("attribution", source.get("attribution", "")),
        files=files,
        format=_format(source.get("format"), files),
        drop=condition("drop", source["drop"]) if "drop" in source else None,
        weight=text("weight", source["weight"]) if "weight" in source else None,
        shipped=_shipped(source["shipped"]) if "shipped" in source else None,
        generate=from_json(LogConfig, source["generate"], "generate")
        if "generate" in source
        else None,
        group=text("group", source["group"]) if "group" in source else None,
        labels=tuple(
            _label(name, value) for name, value in table("labels", source["labels"]).items()
        ),
        truth={
            name: text(f"truth.{name}", value)
            for name, value in table("truth", source.get("truth", {})).items()
        },
        split=_splits(source["split"], files),
        fields=tuple(field for field in fields if field.kind != "dense"),
        dense=tuple(field for field in fields if field.kind == "dense"),
        source=source,
        funnel=funnel_stages(source.get("funnel"), table("labels", source["labels"])),
        text=text_format(source.get("text", {})),
        ignore=strings("ignore", source["ignore"]) if "ignore" in source else (),
    )
    _check_leaks(schema)
    _check_times(schema)
    _check_reserved(schema)
    _check_vocabularies(schema)
    return schema


def text_format(value: Any) -> TextFormat:
    """Returns the content of the table ``text``. Raises DataError, which names the invalid key."""
    check_keys("text", value, allowed=TEXT_KEYS)
    read: dict[str, Any] = {
        key: strings(f"text.{key}", value[key]) for key in ("null", "dates") if value.get(key)
    }
    for form in read.get("dates", ()):
        if "%" not in form:
            raise DataError(f"text.dates: expected a form such as '%d/%m/%Y', got {form!r}")
    for key in ("thousands", "decimal"):
        mark = text(f"text.{key}", value.get(key, ""))
        if len(mark) > 1 or mark not in MARKS:
            raise DataError(f"text.{key}: expected one of the characters {MARKS!r}, got {mark!r}")
        read |= {key: mark} if mark else {}
    found = TextFormat(**read, line_ends=value.get("line_ends"))
    if found.line_ends not in (None, True, False):
        raise DataError(f"text.line_ends: expected true or false, got {found.line_ends!r}")
    if found.thousands == found.decimal:
        raise DataError(
            f"text: expected different marks of thousands and decimals, got {found.decimal!r} "
            "for both"
        )
    return found


def _shipped(value: Any) -> str:
    try:
        check_name(text("shipped", value), "shipped")
    except ValueError as error:
        raise DataError(str(error)) from error
    return value


def _format(value: Any, files: tuple[str, ...]) -> Any:
    if value not in (None, "aliccp"):
        raise DataError(
            f'format: expected "aliccp", or nothing for parquet and text, got {value!r}'
        )
    for role in files if value else ():
        if not role.startswith(COMMON) and COMMON + role not in files:
            raise DataError(
                f"files: format aliccp reads {role!r} together with {COMMON + role!r}, which is "
                "missing"
            )
    return value


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


def _check_leaks(schema: Schema) -> None:
    if not schema.labels or not schema.fields:
        counts = f"{len(schema.labels)} label(s) and {len(schema.fields)} field(s)"
        counts += f" besides {len(schema.dense)} dense one(s)" if schema.dense else ""
        raise DataError(f"expected at least one label and one field, got {counts}")
    for field in schema.features:
        for column in set(field.columns) & {*schema.truth.values(), schema.weight}:
            raise DataError(f"field {field.name} reads {column!r}, a truth or weight column")
        for column in set(field.columns) & {*schema.ignore}:
            raise DataError(
                f"ignore: expected columns that no field reads, but field {field.name} reads "
                f"{column!r}"
            )
    for label in schema.labels:
        for field in schema.features:
            leaked = set(field.columns) & set(label.columns())
            if leaked:
                raise DataError(
                    f"field {field.name} reads {leaked.pop()!r}, a source of label {label.name}"
                )
            if field.name == label.name:
                raise DataError(f"{field.name!r} names both a field and a label")


def _check_times(schema: Schema) -> None:
    """Raises DataError if preparation could not find the shares of time, or a field would read
    times as it does.
    """
    times = {rule.time.column for rule in schema.split.values() if rule.time}
    if times and schema.format:
        raise DataError(f"split: expected where or hash with format {schema.format}, got time")
    for field in schema.fields:
        if field.kind != "numeric" and times & {*field.columns}:
            expected = "a numeric or dense field of a column that splits by time"
            raise DataError(f"field {field.name}: expected {expected}, got a {field.kind} one")


def _check_reserved(schema: Schema) -> None:
    """Raises DataError if a name is also that of a column that ``prepare`` adds."""
    added = {*(["group:id"] if schema.group else []), *(["weight:value"] if schema.weight else [])}
    added |= {f"truth:{name}" for name in schema.truth}
    for name in [field.name for field in schema.features] + [label.name for label in schema.labels]:
        if name in added:
            raise DataError(
                f"field or label {name!r}: the name of a column that prepare adds; ignore or "
                "rename it"
            )
    for label in schema.labels:
        if f"label:{label.name}" in schema.columns():
            raise DataError(
                f"column 'label:{label.name}': prepare uses this name for a label; ignore or "
                "rename it"
            )


def _check_vocabularies(schema: Schema) -> None:
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


def _field(name: str, value: Any, defaults: dict[str, int]) -> Field:
    where = f"fields.{name}"
    spec = {"kind": value} if isinstance(value, str) else value
    if not isinstance(spec, dict):
        raise DataError(
            f'{where}: expected "categorical", "numeric", "dense" or a table, got {value!r}'
        )
    check_keys(where, spec, allowed=FIELD_KEYS)
    kind: Any  # checked below
    if "cross" in spec:
        kind, columns = "cross", strings(f"{where}.cross", spec["cross"])
        if len(columns) < 2 or "kind" in spec or "column" in spec:
            raise DataError(
                f"{where}: expected a cross of two or more columns, without kind or column, got "
                f"{spec!r}"
            )
    else:
        kind, columns = spec.get("kind"), (text(f"{where}.column", spec.get("column", name)),)
    if kind not in ("categorical", "numeric", "dense", "cross"):
        raise DataError(f'{where}: expected kind "categorical", "numeric" or "dense", got {kind!r}')
    for key, kinds in KINDS_OF.items():
        if key in spec and kind not in kinds:
            raise DataError(
                f"{where}.{key}: expected a {' or '.join(kinds)} field, got a {kind} one"
            )
    encoding = _encoding(where, kind, spec)
    if "buckets" in spec and encoding not in (None, "piecewise"):
        raise DataError(
            f'{where}.buckets: expected a dense field with encoding "piecewise", got {encoding!r}'
        )
    if "hashed" in spec and "min_count" in spec:
        raise DataError(
            f"{where}.min_count: expected no key beside hashed, got {spec['min_count']!r}"
        )
    numbers = {key: spec.get(key, defaults[key]) for key in ("min_count", "buckets")}
    numbers |= {key: spec[key] for key in ("hashed", "length") if key in spec}
    for key, value in numbers.items():
        if type(value) is not int or value < 1:  # not a bool
            raise DataError(f"{where}.{key}: expected an integer >= 1, got {value!r}")
        if value > (largest := MOST_IDS if key == "hashed" else MOST_ROWS):
            raise DataError(f"{where}.{key}: expected at most {largest}, got {value}")
    vocabulary = _vocabulary(where, spec)
    return Field(
        name,
        kind,
        columns,
        **numbers,
        **_tokens(where, kind, spec),
        vocabulary=vocabulary,
        encoding=encoding,
    )


def _tokens(where: str, kind: str, spec: dict[str, Any]) -> dict[str, Any]:
    tokens, separator = spec.get("tokens"), spec.get("separator")
    if tokens is not None and (tokens not in ("last", "all") or kind != "categorical"):
        raise DataError(
            f'{where}.tokens: expected "last" or "all" on a categorical field, got {tokens!r}'
        )
    if separator is not None and (tokens is None or not text(f"{where}.separator", separator)):
        raise DataError(
            f"{where}.separator: expected text on a field with tokens, got {separator!r}"
        )
    if "length" in spec and tokens != "all":
        raise DataError(
            f'{where}.length: expected a field with tokens "all", got tokens {tokens!r}'
        )
    return {"tokens": tokens, "separator": separator}


def _encoding(where: str, kind: str, spec: dict[str, Any]) -> Any:
    encoding = spec.get("encoding", "standard" if kind == "dense" else None)
    if encoding not in (ENCODINGS if kind == "dense" else (None,)):
        raise DataError(
            f"{where}.encoding: expected one of {', '.join(ENCODINGS)} on a dense field, got "
            f"{encoding!r}"
        )
    return encoding


def _vocabulary(where: str, spec: dict[str, Any]) -> str | None:
    if "vocabulary" not in spec:
        return None
    for key in ("min_count", "hashed"):
        if key in spec:
            raise DataError(
                f"{where}.{key}: expected no key beside vocabulary, whose field sets it, got "
                f"{spec[key]!r}"
            )
    return text(f"{where}.vocabulary", spec["vocabulary"])


def _label(name: str, value: Any) -> Label:
    if isinstance(value, str):
        return Label(name, column=value)
    return Label(name, condition=condition(f"labels.{name}", value))


def _splits(value: dict[str, Any], files: tuple[str, ...]) -> dict[str, SplitRule]:
    check_keys("split", value, allowed=SPLITS, required=SPLITS)
    return {name: _split(f"split.{name}", value[name], files) for name in SPLITS}


def _split(where: str, value: dict[str, Any], files: tuple[str, ...]) -> SplitRule:
    check_keys(where, value, allowed=("file", "where", "rows", "hash", "time"))
    rule = SplitRule(
        file=value.get("file", files[0]),
        where=condition(f"{where}.where", value["where"]) if "where" in value else None,
        rows=value.get("rows", "all"),
        hash=_hash_range(f"{where}.hash", value["hash"]) if "hash" in value else None,
        time=_time_range(f"{where}.time", value["time"]) if "time" in value else None,
    )
    if rule.file not in files:
        raise DataError(f"{where}.file: expected one of {', '.join(files)}, got {rule.file!r}")
    if rule.hash and rule.rows != "all":
        raise DataError(f"{where}: expected rows or hash, got both")
    if rule.time and rule.where:
        raise DataError(f"{where}: expected where or time, got both")
    if rule.rows not in ("all", "even", "odd"):
        raise DataError(f'{where}.rows: expected "all", "even" or "odd", got {rule.rows!r}')
    return rule


def _hash_range(where: str, value: Any) -> HashRange:
    check_keys(where, value, allowed=("column", "start", "stop"))
    return HashRange(
        *_shares(where, value),
        text(f"{where}.column", value["column"]) if "column" in value else None,
    )


def _time_range(where: str, value: Any) -> TimeRange:
    check_keys(where, value, allowed=("column", "start", "stop"), required=("column",))
    return TimeRange(*_shares(where, value), text(f"{where}.column", value["column"]))


def _shares(where: str, value: dict[str, Any]) -> tuple[float, float]:
    start, stop = (
        number(f"{where}.{key}", value.get(key, default))
        for key, default in (("start", 0.0), ("stop", 1.0))
    )
    if not 0.0 <= start < stop <= 1.0:
        raise DataError(f"{where}: expected 0 <= start < stop <= 1, got {start:g} and {stop:g}")
    return start, stop


def condition(where: str, value: Any) -> Condition:
    """Parses a condition: a list of [column, op, value], or a list of such lists."""
    first = value[0] if isinstance(value, list) and value else None
    if isinstance(first, list) and first and isinstance(first[0], list):
        return [_conjunction(where, alternative) for alternative in value]
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
        raise DataError(
            f"{where}: {column}: expected one of the operators {', '.join(OPERATORS)}, got "
            f"{operator!r}"
        )
    takes_list = operator in ("in", "not in")
    values = operand if takes_list and isinstance(operand, list) else [operand]
    if takes_list != isinstance(operand, list) or not all(
        isinstance(value, SCALARS) for value in values
    ):
        expected = "a list of values" if takes_list else "one value"
        raise DataError(f"{where}: {column} {operator}: expected {expected}, got {operand!r}")
    for value in values:
        if type(value) is int and not -(2**63) <= value < 2**63:
            raise DataError(
                f"{where}: {column} {operator}: expected an integer of 64 bits, got {value}"
            )


def text(where: str, value: Any) -> str:
    """Returns ``value`` if it is a string."""
    if not isinstance(value, str):
        raise DataError(f"{where}: expected text, got {value!r}")
    return value


def number(where: str, value: Any) -> float:
    """Returns ``value`` as a float if it is an int or a float, not a bool."""
    if type(value) not in (int, float):
        raise DataError(f"{where}: expected a number, got {value!r}")
    return float(value)


def table(where: str, value: Any) -> dict[str, Any]:
    """Returns ``value`` if it is a TOML table."""
    if not isinstance(value, dict):
        raise DataError(f"{where}: expected a table, got {value!r}")
    return value


def strings(where: str, value: Any) -> tuple[str, ...]:
    """Returns ``value`` as a tuple if it is a non-empty list of strings."""
    if not isinstance(value, list) or not value or not all(isinstance(item, str) for item in value):
        raise DataError(f"{where}: expected a list of names, got {value!r}")
    return tuple(value)


def check_keys(
    where: str, value: Any, *, allowed: tuple[str, ...], required: tuple[str, ...] = ()
) -> None:
    """Raises DataError unless ``value`` is a table with all ``required`` keys and no keys outside
    ``allowed``.
    """
    for key in table(where, value):
        if key not in allowed:
            raise DataError(f"{where}: unknown key {key!r}; expected one of {', '.join(allowed)}")
    for key in required:
        if key not in value:
            raise DataError(f"{where}: missing key {key!r}")


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
