"""Expressions of a schema: what they compute, and what they may not."""

import pyarrow as pa
import pytest

from adaftr_fast.data.schema.parse import parse_schema
from adaftr_fast.data.schema.sql import evaluate, parse_expression
from adaftr_fast.errors import DataError
from tests.logs import by_hash

ROWS = pa.record_batch(
    {
        "a": pa.array([1, 2, None]),
        "A": pa.array([10, 20, 30]),
        "select": pa.array(["x", None, "Zoë"]),
        "a.b": pa.array([0.5, 1.5, 2.5]),
    }
)


@pytest.mark.parametrize(
    ("sql", "values"),
    [
        ("a + 1", [2, 3, None]),
        ('"A" - "a"', [9, 18, None]),  # names are told apart by the case of their letters
        ('length("select")', [1, None, 3]),
        ('"a.b" * 2 > 2', [False, True, True]),
        ("CASE WHEN a IS NULL THEN 'none' ELSE 'some' END", ["some", "some", "none"]),
        ("coalesce(a, 7)::VARCHAR", ["1", "2", "7"]),
        ('"A" IN (10, 30) AND "A" BETWEEN 5 AND 20', [True, False, False]),
        ("\"select\" LIKE 'Z%' -- a comment", [False, None, True]),
    ],
)
def test_expressions_have_the_values_of_sql(sql, values):
    found = evaluate({"x": parse_expression("columns.x", sql)}, ROWS)["x"]
    assert found.to_pylist() == values
    none = evaluate({"x": parse_expression("columns.x", sql)}, ROWS.slice(0, 0))["x"]
    assert len(none) == 0
    assert none.type == found.type


def test_names_that_sql_computes_are_columns():
    assert parse_expression("columns.x", "current_date > a").columns == ("current_date", "a")


@pytest.mark.parametrize(
    "sql",
    [
        "1",
        "",
        "a; DROP TABLE a",
        "a FROM 'x.csv'",
        "a AS b",
        "a, a",
        "(SELECT a)",
        "a IN (SELECT 1)",
        "EXISTS (FROM read_csv('/etc/passwd'))",
        "sum(a)",
        "row_number() OVER (ORDER BY a)",
        "random() + a",
        "now() > a",
        "current_setting('threads') || a",
        "getenv('HOME') || a",
        "read_text('/etc/passwd') || a",
        "nextval('s') + a",
        "getvariable('x') + a",
        "a + $1",
        "a + ?",
        "COLUMNS('a')",
        "* EXCLUDE (a)",
        "list_transform([a], x -> x)",
        "s.a",
        "(" * 4000 + "a" + ")" * 4000,
        "a" + "||a" * 200,  # deeper than DuckDB writes a tree
        "replace(a, 'x', 'xxxxxxxxxx')",  # which nested makes text of any length
        "a = 'x\0y'",
        "a = '\ud800'",
        "a + " + "1 + " * 5000 + "1",
    ],
)
def test_what_is_no_expression_of_a_row_is_refused(sql):
    with pytest.raises(DataError, match=r"^columns\.x: "):
        parse_expression("columns.x", sql)


def test_the_database_reaches_nothing():
    from adaftr_fast.data.schema.sql import _cursor

    for statement in ("FROM read_text('/etc/hostname')", "SET threads = 2", "INSTALL httpfs"):
        with pytest.raises(Exception, match=r"disabled|locked"):
            _cursor().execute(statement)


SOURCE = {
    "name": "shop",
    "labels": {"click": "click"},
    "split": by_hash(0.7, 0.85),
    "columns": {"long": "length(title) > 40"},
    "fields": {"long": "categorical"},
}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"columns": {"long": "length(title"}}, r"columns\.long: .*syntax error"),
        ({"columns": {"long": 7}}, r"columns\.long: expected text, got 7"),
        ({"columns": {"long": "click + 1"}}, r"columns\.long: reads 'click', the column of label"),
        (
            {"columns": {"long": "length(title)", "other": "long + 1"}},
            r"columns\.other: expected columns of the input, got the computed 'long'",
        ),
        ({"columns": {"long": "hour(title)"}}, r"columns\.long: .*; the table types says .* title"),
        ({"columns": {"long": "title + INTERVAL 1 DAY"}}, r"columns\.long: "),
        ({"types": {"titel": "text"}}, r"types\.titel: expected a column that an expression"),
        ({"types": {"title": "day"}}, r"types\.title: expected"),
        ({"labels": {"click": "long"}}, "field long reads 'long', a source of label click"),
        (
            {"labels": {"click": "long"}, "fields": {"title": "categorical"}},
            "field title reads 'title', a source of label click",
        ),
        (
            {"drop": [["long", "==", 1]]},
            r"long: expected conditions .* values of its type, bool, got == 1",
        ),
        (
            {"drop": [["title", "in", [1, 2]]]},
            r"title: expected conditions .* values of its type, string, got in \[1, 2\]",
        ),
    ],
)
def test_a_schema_whose_expressions_do_not_fit_is_refused(changes, message):
    with pytest.raises(DataError, match=message):
        parse_schema(SOURCE | changes)
