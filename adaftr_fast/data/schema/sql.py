"""Expressions of a schema, which DuckDB evaluates on batches of rows.

A schema is data, and nothing of an expression runs but what is known to compute a value of a row:
DuckDB parses the text, its tree may hold the nodes and functions listed here alone, and what runs
is written anew from the tree, with names of columns that no keyword and no other case of letters
meets. The database behind it is empty, and has neither files nor settings.

Shapes: n rows.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from adaftr_fast.data.arrow import one_array
from adaftr_fast.data.schema.types import Expression
from adaftr_fast.errors import DataError, extras_needed, first_line
from adaftr_fast.files.whole import is_unicode

if TYPE_CHECKING:
    import duckdb

NODES = "BETWEEN CASE CAST COLUMN_REF COMPARISON CONJUNCTION CONSTANT FUNCTION OPERATOR TYPE"
# of one row, of the same value on every machine, and of no more memory than their arguments: a few
# nested calls of replace make text of any length
FUNCTIONS = """
+ - * / // % ^ ** & | << >> ~ || ~~ !~~ ~~* !~~* ^@ like_escape ilike_escape not_like_escape
not_ilike_escape if nullif greatest least
abs sign ceil ceiling floor round trunc even sqrt cbrt exp ln log log2 log10 pow power mod fmod
sin cos tan asin acos atan atan2 sinh cosh tanh pi degrees radians isnan isinf isfinite xor
add subtract multiply divide bit_count
length len char_length character_length strlen octet_length lower lcase upper ucase trim ltrim
rtrim substr substring left right reverse translate split_part position strpos instr
contains starts_with prefix ends_with suffix concat concat_ws ascii ord unicode md5 sha256
strip_accents nfc_normalize regexp_matches regexp_full_match regexp_extract
levenshtein jaccard jaro_similarity jaro_winkler_similarity hamming
date_part datepart date_trunc datetrunc date_diff datediff date_sub datesub date_add strftime
strptime try_strptime make_date make_timestamp to_timestamp epoch epoch_ms epoch_us timezone
era millennium century decade year isoyear quarter month week weekofyear yearweek day dayofmonth
dayofweek weekday isodow dayofyear hour minute second millisecond microsecond last_day dayname
monthname time_bucket julian to_years to_months to_weeks to_days to_hours to_minutes to_seconds
to_milliseconds to_microseconds
"""
SETTINGS = {
    "enable_external_access": "false",
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    "temp_directory": "",
    "memory_limit": "1GB",
    "threads": "1",  # so that rows keep their order, and values their bits
}
LONGEST = 10_000  # characters of an expression
_cursors = threading.local()


@lru_cache(1)
def _database() -> duckdb.DuckDBPyConnection:
    with extras_needed("expressions of a schema: "):
        import duckdb
    database = duckdb.connect(":memory:", config=SETTINGS)
    database.execute("SET TimeZone = 'UTC'")
    database.execute("SET python_enable_replacements = false")
    database.execute("SET lock_configuration = true")
    return database


def _cursor() -> duckdb.DuckDBPyConnection:
    """Returns the cursor of this thread: one of another thread would wait for it."""
    if not hasattr(_cursors, "own"):
        _cursors.own = _database().cursor()
    cursor: duckdb.DuckDBPyConnection = _cursors.own
    return cursor


def parse_expression(where: str, sql: str) -> Expression:
    """Returns an expression of columns of the input.

    Args:
        where: the key of the schema, for errors.

    Raises:
        DataError: ``sql`` is no expression of the columns of one row.
        MissingPackageError: DuckDB is not installed.
    """
    try:
        return _parsed(sql)
    except (ValueError, RecursionError) as error:
        problem = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise DataError(f"{where}: {problem}") from error


@lru_cache(1024)
def _parsed(sql: str) -> Expression:
    if "\0" in sql or not is_unicode(sql) or len(sql) > LONGEST:
        raise ValueError(f"expected at most {LONGEST:,} characters of Unicode without NUL")
    frame, _ = _statement("SELECT 1")
    rest, selected = _statement(f"SELECT {sql}")
    if rest != frame or len(selected) != 1 or selected[0].get("alias"):
        raise ValueError("expected one expression, without a clause, a name or a second statement")
    columns: dict[str, None] = {}
    nodes: list[Any] = [selected]
    while nodes:
        node = nodes.pop()
        if isinstance(node, dict):
            _check(node)
            if node.get("class") == "COLUMN_REF":
                name = ".".join(node["column_names"])
                if len(node["column_names"]) > 1:
                    raise ValueError(f'expected the name of a column; quote {name} as "{name}"')
                columns[name] = None
                node["column_names"] = [_identifier(name)]
            nodes += reversed(node.values())
        elif isinstance(node, list):
            nodes += reversed(node)
    if not columns:
        raise ValueError("expected an expression that reads a column")
    whole = rest | {"node": rest["node"] | {"select_list": selected}}
    tree = json.dumps({"error": False, "statements": [whole]})
    query = _text("json_deserialize_sql", tree)
    return Expression(sql, tuple(columns), query.removeprefix("SELECT "))


def _statement(sql: str) -> tuple[dict[str, Any], list[Any]]:
    """Returns the tree of a query without what it selects, and what it selects."""
    tree = json.loads(_text("json_serialize_sql", sql))
    if tree["error"]:
        raise ValueError(tree["error_message"])
    first, *others = tree["statements"]
    selected = first["node"].pop("select_list", [])
    return first | {"others": others} if others else first, selected


def _text(function: str, text: str) -> str:
    cursor = _cursor()
    try:
        ((found,),) = cursor.execute(f"SELECT {function}(?)", [text]).fetchall()
    except Exception as error:  # of duckdb, which is not imported here
        raise ValueError(first_line(error)) from error
    return str(found)


def _check(node: dict[str, Any]) -> None:
    """Raises ValueError if a node of a tree may do more than compute a value of a row."""
    kind = node.get("class", "TYPE")
    if kind not in NODES.split():
        raise ValueError(f"expected an expression of one row, got {kind.lower().replace('_', ' ')}")
    if kind == "FUNCTION" and node["function_name"] not in FUNCTIONS.split():
        raise ValueError(f"{node['function_name']} is not among the functions of expressions")


def _identifier(column: str) -> str:
    return f"c{column.encode().hex()}"


def evaluate(expressions: Mapping[str, Expression], rows: pa.RecordBatch) -> dict[str, pa.Array]:
    """Returns the values of expressions [n], by name.

    Args:
        rows: the columns that they read [n], in their types.

    Raises:
        pa.ArrowInvalid: an expression has no value in a row, or does not fit the types.
    """
    if not expressions:
        return {}
    columns = dict.fromkeys(column for each in expressions.values() for column in each.columns)
    table = pa.table({_identifier(column): rows[column] for column in columns})
    selected = [f"{each.query} AS e{place}" for place, each in enumerate(expressions.values())]
    try:
        found = _cursor().from_arrow(table).project(", ".join(selected)).to_arrow_table()
        return dict(zip(expressions, map(one_array, found.columns)))
    except Exception as error:  # of duckdb, which is not imported here
        if len(expressions) > 1:  # one of them, which is named
            return {name: evaluate({name: each}, rows)[name] for name, each in expressions.items()}
        (name,) = expressions
        raise pa.ArrowInvalid(f"columns.{name}: {first_line(error)}") from error
