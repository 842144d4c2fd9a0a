"""Schemas are read from TOML, every key is checked, and what is written reads as it was."""

import datetime
import tomllib

import pytest

from adaftr_fast.data.schema.parse import load_schema, parse_schema, shipped_schemas, write_schema
from adaftr_fast.errors import DataError

ODD = {
    "name": 'a "log" of\tJürgen\\\x7f\n',
    "labels": {"click": "click", "a.b": [["a.b", "in", [1, -2.5, True, "x"]]]},
    "split": {
        "train": {"where": [["at", "<", datetime.datetime(2020, 1, 2, 3, 4, 5, 678)]]},
        "validation": {"where": [["on", "==", datetime.date(2020, 1, 2)]]},
        "test": {
            "where": [[["at", ">=", datetime.time(3, 4)]], [["n", "<", 1e300]]],
            "hash": {"start": 0.1 + 0.2},
        },
    },
    "fields": {
        "": "numeric",
        "user id": {"kind": "categorical", "tokens": "all", "separator": "|"},
    },
}
SPLIT = {name: {} for name in ("train", "validation", "test")}


@pytest.mark.parametrize("name", shipped_schemas())
def test_shipped_schemas_read_as_they_are_written(name, tmp_path):
    schema = load_schema(name)
    assert schema.name == name
    assert schema.attribution or schema.generate
    write_schema(tmp_path / "copy.toml", schema.source, name)
    assert load_schema(str(tmp_path / "copy.toml")) == schema


def test_every_value_of_toml_reads_as_it_was(tmp_path):
    path = tmp_path / "odd.toml"
    for _ in range(2):  # as an interrupted command is repeated
        write_schema(path, ODD, "Inferred from 'log.csv'.")
    text = path.read_text()
    assert text.startswith("# Inferred from 'log.csv'.\n")
    assert tomllib.loads(text) == ODD
    assert parse_schema(tomllib.loads(text)) == parse_schema(ODD)
    path.write_text("# edited\n" + text)
    with pytest.raises(
        DataError, match=r"write_schema: .*odd\.toml exists with another content; name another file"
    ):
        write_schema(path, ODD, "odd")
    with pytest.raises(
        DataError, match=r"write_schema: expected a file name that ends in \.toml, got .*odd'"
    ):
        write_schema(tmp_path / "odd", ODD, "odd")
    assert [each.name for each in tmp_path.iterdir()] == ["odd.toml"]


def test_shipped_schemas():
    flights = load_schema("flights")
    census = load_schema("census")
    aliccp = load_schema("aliccp")
    assert [label.name for label in flights.labels] == ["click", "conversion"]
    assert flights.group == "tailnum"
    assert census.files == ("train", "test")
    assert not {"income_50k", "marital_stat", "instance_weight"} & {
        field.name for field in census.fields
    }
    assert "CC BY" in census.attribution
    assert aliccp.labels[1].condition == [[("click", "==", 1), ("conversion", "==", 1)]]
    for name, rating in (("insteval", "y"), ("movielens", "rating")):
        schema = load_schema(name)
        conditions = [label.condition for label in schema.labels]
        assert conditions == [[[(rating, ">=", 4)]], [[(rating, "==", 5)]]]
        assert schema.funnel == tuple(label.name for label in schema.labels)
        read = {column for field in schema.features for column in field.columns}
        assert not {rating, "timestamp"} & read


def test_load_schema_from_path_names_the_path_in_errors(tmp_path):
    path = tmp_path / "mine.toml"
    for content, message in (
        (b'name = "mine"\n[labels]\nclick = "clicked"\n', "the file: missing key 'split'"),
        (b"name = \n", "Invalid value"),
        (b'name = "caf\xe9"\n', "'utf-8' codec"),
        (b"name = " + b"[" * 100_000 + b"]" * 100_000, "nested too deeply$"),
    ):
        path.write_bytes(content)
        with pytest.raises(DataError, match=rf"schema .*mine\.toml: {message}"):
            load_schema(str(path))
    with pytest.raises(DataError, match="no file"):
        load_schema(str(tmp_path / "absent.toml"))
    with pytest.raises(
        DataError, match=r"expected one of aliccp, .*flights, flights3, .*synthetic"
    ):
        load_schema("fligths")


def test_base_adds_a_third_task():
    flights = load_schema("flights")
    flights3 = load_schema("flights3")
    assert [label.name for label in flights3.labels] == ["click", "conversion", "late"]
    assert (flights3.fields, flights3.split, flights3.group) == (
        flights.fields,
        flights.split,
        flights.group,
    )
    census = load_schema("census")
    census3 = load_schema("census3")
    assert {field.name for field in census.fields} - {field.name for field in census3.fields} == {
        "education"
    }
    assert "base" not in census3.source
    with pytest.raises(
        DataError, match=r"base: unknown data set 'fligths'; expected one of aliccp, .*flights3"
    ):
        parse_schema({"base": "fligths"})
    with pytest.raises(DataError, match="field dep reads 'dep_delay', a source of label click"):
        parse_schema(
            {"base": "flights", "fields": {"dep": {"kind": "numeric", "column": "dep_delay"}}}
        )


def test_forms_of_fields_and_conditions(source):
    source["fields"] |= {
        "year": {"kind": "numeric", "column": "day", "buckets": 7},
        "depth": {"kind": "dense", "column": "day", "encoding": "piecewise", "buckets": 7},
        "snow": "dense",
    }
    source["labels"]["late"] = [[["delay", ">=", 15]], [["wind", ">", 1.0], ["hour", "in", [1, 2]]]]
    schema = parse_schema(source)
    forms = {
        each.name: (each.kind, each.columns, each.buckets, each.min_count)
        for each in schema.features
    }
    assert forms["year"] == ("numeric", ("day",), 7, 1)
    assert forms["rain"] == ("numeric", ("rain",), 2, 1)
    assert forms["city_size"][:2] == ("cross", ("city", "size"))
    assert [(each.columns, each.encoding, each.buckets) for each in schema.dense] == [
        (("day",), "piecewise", 7),
        (("snow",), "standard", 2),
    ]
    assert schema.features == schema.fields + schema.dense
    assert {"rain", "day", "snow"} < set(schema.columns())
    late = schema.labels[1]
    assert late.condition == [[("delay", ">=", 15)], [("wind", ">", 1.0), ("hour", "in", [1, 2])]]
    assert late.columns() == ["delay", "wind", "hour"]


def city(**keys):
    return {"city": {"kind": "categorical"} | keys}


def train(**rule):
    return SPLIT | {"train": rule}


@pytest.mark.parametrize(
    ("section", "value", "message"),
    [
        ("colour", "red", "the file: unknown key 'colour'"),
        ("labels", "click", "labels: expected a table, got 'click'"),
        ("group", ["x"], r"group: expected text, got \['x'\]"),
        ("files", "a.parquet", "files: expected a list of names"),
        ("files", ["log", "log"], "files: expected different names, got log, log"),
        ("format", "csv", 'format: expected "aliccp", or nothing for parquet and text, got .csv.'),
        ("weight", "rain", "field rain reads 'rain', a truth or weight column"),
        (
            "shipped",
            "../schema/types.py",
            "shipped: expected the name of a file in the same folder",
        ),
        ("generate", {"rows": "3"}, "generate.rows: expected an integer, got '3'"),
        (
            "generate",
            {"rows": 3, "layout": "x"},
            "synthetic log: layout: expected one of aliccp, ecomm, got 'x'",
        ),
        (
            "funnel",
            ["click"],
            r"funnel: expected two or more of the labels click, late, or none, got \['click'\]",
        ),
        ("fields", city(bukets=3), "fields.city: unknown key 'bukets'; expected"),
        ("fields", {"city": "text"}, "fields.city.kind: expected one of cat.* got 'text'"),
        ("fields", {"city": 3}, 'fields.city: expected "cat.*", "dense" or a table, got 3'),
        ("fields", {"city": {"hashed": 3}}, "fields.city: missing key 'kind'"),
        ("fields", city(min_count=0), "fields.city.min_count: expected an integer >= 1, got 0"),
        ("fields", city(min_count=True), "fields.city.min_count: .* got True"),
        ("fields", city(hashed=2**31), "fields.city.hashed: expected at most 2147483646"),
        (
            "fields",
            city(min_count=2**65),
            "fields.city.min_count: expected at most 922337203685477",
        ),
        ("fields", city(buckets=2), "fields.city.buckets: .*numeric or dense.*got a categorical"),
        ("fields", city(hashed=9, min_count=2), "min_count: expected no key beside hashed, got 2"),
        (
            "fields",
            city(vocabulary="size", hashed=2),
            "hashed: .* beside vocabulary, whose field sets it, got 2",
        ),
        ("fields", city(tokens="last", length=3), "length: .*tokens \"all\", got tokens 'last'"),
        ("fields", city(tokens="all", length=2**31), "length: expected at most 2147483646"),
        ("fields", city(separator="|"), "separator: expected text on a field with tokens, got '|'"),
        (
            "fields",
            city(vocabulary="town"),
            "vocabulary: .* ids of its own, one of none, got 'town'",
        ),
        (
            "fields",
            {"both": {"cross": ["city"]}},
            "fields.both: expected a cross of two or more columns.*, got {'cross': ",
        ),
        (
            "fields",
            {"rain": {"kind": "dense", "buckets": 2}},
            "fields.rain.buckets: expected a dense field with encoding .piecewise., got .standard.",
        ),
        ("fields", {"rain": "dense"}, r"and 0 field\(s\) besides 1 dense one\(s\)"),
        (
            "fields",
            {"x": {"cross": ["city", "clicked"]}},
            "field x reads 'clicked', a source of label click",
        ),
        ("fields", {"delay": "numeric"}, "field delay reads 'delay', a source of label late"),
        (
            "fields",
            {"click": {"kind": "numeric", "column": "rain"}},
            "names both a field and a label",
        ),
        (
            "fields",
            {"group:id": {"kind": "categorical", "column": "city"}},
            "'group:id': the name of a column that prepare",
        ),
        ("split", {"train": {}, "test": {}}, "split: missing key 'validation'"),
        ("split", train(file="b"), "split.train.file: expected one of data"),
        ("split", train(time={"stop": 0.8}), "split.train.time: missing key 'column'"),
        (
            "split",
            train(hash={"start": 0.5, "stop": 0.5}),
            "split.train.hash: expected 0 <= start < stop <= 1, got 0.5 and 0.5",
        ),
        (
            "split",
            train(hash={"stop": 10**400}),
            "split.train.hash.stop: expected a number within float64, got 401 digits",
        ),
        ("split", train(hash={}, rows="odd"), "split.train: expected rows or hash, got both"),
        (
            "split",
            train(time={"column": "day"}, where=[["a", "==", 1]]),
            "split.train: expected where or time, got both",
        ),
        (
            "split",
            train(time={"column": "city"}),
            "field city: expected a numeric or dense field",
        ),
        ("drop", [], "drop: expected a list"),
        ("drop", [["delay", 15]], "drop: expected .*column"),
        ("drop", [["delay", "=", 15]], "drop: delay: expected one of the operators ==, .* got '='"),
        ("drop", [["delay", "in", []]], r"drop: delay in: expected a list of values, got \[\]"),
        ("drop", [["delay", "==", [15]]], r"drop: delay ==: expected one value, got \[15\]"),
        ("drop", [["day", ">", 2**65]], "drop: day >: expected an integer of 64 bits, got 3689"),
    ],
)
def test_invalid_values_are_named(source, section, value, message):
    source[section] = value
    with pytest.raises(ValueError, match=message):
        parse_schema(source)
