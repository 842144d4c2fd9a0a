import pytest

from adaftr_fast.data.schema.parse import load_schema, parse_schema, shipped_schemas
from adaftr_fast.errors import DataError


@pytest.mark.parametrize("name", shipped_schemas())
def test_every_shipped_schema_loads(name):
    schema = load_schema(name)
    assert schema.name == name
    assert schema.labels
    assert schema.fields


def test_shipped_schemas():
    assert {"aliccp", "census", "census3", "flights", "flights3", "synthetic", "synthetic3"} <= set(
        shipped_schemas()
    )
    flights, census, aliccp = load_schema("flights"), load_schema("census"), load_schema("aliccp")
    assert [label.name for label in flights.labels] == ["click", "conversion"]
    assert flights.group == "tailnum"
    assert not {"dep_delay", "arr_delay", "month"} & {
        c for field in flights.fields for c in field.columns
    }
    assert census.files == ("train", "test")
    assert not {"income_50k", "marital_stat", "instance_weight"} & {
        field.name for field in census.fields
    }
    assert "CC BY" in census.attribution
    assert "CC0" in flights.attribution
    assert aliccp.labels[1].condition == [("click", "==", 1), ("conversion", "==", 1)]


@pytest.mark.parametrize(
    ("name", "labels", "group", "item", "rating"),
    [
        ("insteval", ("good", "very_good"), "s", "d", "y"),
        ("movielens", ("liked", "five_stars"), "user_id", "item_id", "rating"),
    ],
)
def test_schemas_of_ratings(name, labels, group, item, rating):
    schema = load_schema(name)
    assert schema.files == ("ratings",)
    assert schema.shipped is None
    assert tuple(label.name for label in schema.labels) == schema.funnel == labels
    assert [label.condition for label in schema.labels] == [
        [(rating, ">=", 4)],
        [(rating, "==", 5)],
    ]
    assert schema.group == group
    read = {column for field in schema.features for column in field.columns}
    assert {group, item} < read
    assert not {rating, "timestamp"} & read


def test_load_schema_from_path_names_the_path_in_errors(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('name = "mine"\n[labels]\nclick = "clicked"\n')
    with pytest.raises(DataError, match=r"mine\.toml: the file: missing key 'split'"):
        load_schema(str(path))
    path.write_text("name = \n")
    with pytest.raises(DataError, match=r"mine\.toml: Invalid value"):
        load_schema(str(path))
    path.write_bytes(b'name = "caf\xe9"\n')
    with pytest.raises(DataError, match=r"mine\.toml: 'utf-8' codec"):
        load_schema(str(path))
    with pytest.raises(DataError, match="no file"):
        load_schema(str(tmp_path / "absent.toml"))
    with pytest.raises(
        DataError, match=r"expected one of aliccp, .*flights, flights3, .*synthetic"
    ):
        load_schema("fligths")


def test_base_adds_a_third_task():
    flights, flights3 = load_schema("flights"), load_schema("flights3")
    assert [label.name for label in flights3.labels] == ["click", "conversion", "late"]
    assert (flights3.fields, flights3.split, flights3.group) == (
        flights.fields,
        flights.split,
        flights.group,
    )
    census, census3 = load_schema("census"), load_schema("census3")
    assert [label.name for label in census3.labels] == ["income_50k", "marital_stat", "college"]
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


def test_generate_truth_and_tokens_are_checked(source):
    synthetic = load_schema("synthetic3")
    assert list(synthetic.generate.rates) == ["click", "view", "conversion"]
    assert synthetic.truth["view"] == "p_view"
    with pytest.raises(DataError, match="field rain reads 'rain', a truth or weight column"):
        parse_schema(source | {"truth": {"click": "rain"}})
    with pytest.raises(ValueError, match=r"generate\.rows: expected int, got '3'"):
        parse_schema(source | {"generate": {"rows": "3"}})
    with pytest.raises(
        DataError, match="synthetic log: layout: expected one of aliccp, ecomm, got 'x'"
    ):
        parse_schema(source | {"generate": {"rows": 3, "layout": "x"}})
    with pytest.raises(
        DataError, match=r'fields\.rain\.tokens: expected "last" or "all" on a categorical field'
    ):
        parse_schema(source | {"fields": {"rain": {"kind": "numeric", "tokens": "last"}}})


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


SPLIT = {name: {} for name in ("train", "validation", "test")}


@pytest.mark.parametrize(
    ("section", "value", "message"),
    [
        (
            "fields",
            {"city": {"kind": "categorical", "bukets": 3}},
            "fields.city: unknown key 'bukets'; expected",
        ),
        ("fields", {"city": "text"}, "fields.city: expected kind .* got 'text'"),
        (
            "fields",
            {"city": {"kind": "numeric", "buckets": 0}},
            "fields.city.buckets: expected an integer >= 1, got 0",
        ),
        (
            "fields",
            {"both": {"cross": ["city"]}},
            "fields.both: expected a cross of two or more columns.*, got {'cross': ",
        ),
        (
            "fields",
            {"rain": {"kind": "dense", "encoding": "log10"}},
            "fields.rain.encoding: expected one of standard, log, piecewise on a dense field, got "
            "'log10'",
        ),
        (
            "fields",
            {"rain": {"kind": "dense", "hashed": 9}},
            "fields.rain.hashed: .*, got a dense one",
        ),
        (
            "fields",
            {"city": {"kind": "numeric", "min_count": 2}},
            "fields.city.min_count: expected a categorical or cross field, got a numeric one",
        ),
        (
            "fields",
            {"city": {"kind": "categorical", "buckets": 2}},
            "fields.city.buckets: expected a numeric or dense field, got a categorical one",
        ),
        (
            "fields",
            {"both": {"cross": ["city", "size"], "buckets": 2}},
            "fields.both.buckets: expected a numeric or dense field, got a cross one",
        ),
        (
            "fields",
            {"rain": {"kind": "dense", "buckets": 2}},
            "fields.rain.buckets: expected a dense field with encoding .piecewise., got .standard.",
        ),
        (
            "fields",
            {"city": {"kind": "categorical", "hashed": 9, "min_count": 2}},
            "fields.city.min_count: expected no key beside hashed, got 2",
        ),
        ("fields", {"rain": "dense"}, r"and 0 field\(s\) besides 1 dense one\(s\)"),
        (
            "fields",
            {"x": {"cross": ["city", "clicked"]}},
            "field x reads 'clicked', a source of label click",
        ),
        (
            "fields",
            {"click": {"kind": "numeric", "column": "rain"}},
            "names both a field and a label",
        ),
        ("fields", {"delay": "numeric"}, "field delay reads 'delay', a source of label late"),
        ("weight", "rain", "field rain reads 'rain', a truth or weight column"),
        ("split", SPLIT | {"train": {"hash": {"from": 1}}}, "unknown key 'from'"),
        (
            "split",
            SPLIT | {"train": {"hash": {"start": 0.5, "stop": 0.5}}},
            "expected 0 <= start < stop <= 1, got 0.5 and 0.5",
        ),
        (
            "split",
            {"train": {"rows": "some"}, "test": {}, "validation": {}},
            "split.train.rows: expected",
        ),
        ("labels", {"late": []}, "labels.late: expected a list"),
        ("labels", {"late": [["delay", 15]]}, "labels.late: expected .*column"),
        ("split", {"train": {}, "test": {}}, "split: missing key 'validation'"),
        (
            "split",
            {"train": {"file": "b"}, "test": {}, "validation": {}},
            "split.train.file: expected one of data",
        ),
        (
            "fields",
            {"city": {"kind": "numeric", "buckets": 2**65}},
            "fields.city.buckets: expected at most 9223372036854775807",
        ),
        (
            "fields",
            {"city": {"kind": "categorical", "hashed": 2**31}},
            "fields.city.hashed: expected at most 2147483646",
        ),
        (
            "fields",
            {"city": {"kind": "categorical", "tokens": "all", "length": 0}},
            "fields.city.length: expected an integer >= 1, got 0",
        ),
        (
            "fields",
            {"city": {"kind": "categorical", "tokens": "last", "length": 3}},
            "fields.city.length: expected a field with tokens \"all\", got tokens 'last'",
        ),
        (
            "fields",
            {"city": "categorical", "seen": {"kind": "categorical", "vocabulary": "town"}},
            "fields.seen.vocabulary: expected a categorical field with ids of its own, one of "
            "city, got 'town'",
        ),
        (
            "fields",
            {"city": "categorical", "rain": {"kind": "numeric", "vocabulary": "city"}},
            "fields.rain.vocabulary: expected a categorical field, got a numeric one",
        ),
        (
            "fields",
            {
                "city": "categorical",
                "seen": {"kind": "categorical", "vocabulary": "city", "min_count": 2},
            },
            "fields.seen.min_count: expected no key beside vocabulary, whose field sets it, got 2",
        ),
        (
            "drop",
            [["day", ">", 2**65]],
            "drop: day >: expected an integer of 64 bits, got 36893488147419103232",
        ),
        (
            "fields",
            {"group:id": {"kind": "categorical", "column": "city"}},
            "'group:id': the name of a column that prepare",
        ),
        (
            "funnel",
            ["click"],
            r"funnel: expected two or more of the labels click, late, or none, got \['click'\]",
        ),
        ("colour", "red", "the file: unknown key 'colour'"),
        ("labels", "click", "labels: expected a table, got 'click'"),
        (
            "fields",
            {"city": {"kind": "numeric", "column": 3}},
            "fields.city.column: expected text, got 3",
        ),
        (
            "fields",
            {"city": {"kind": "categorical", "min_count": True}},
            "fields.city.min_count: .* got True",
        ),
        ("group", ["x"], r"group: expected text, got \['x'\]"),
        (
            "labels",
            {"late": [["delay", "=", 15]]},
            "labels.late: delay: expected one of the operators ==, .* got '='",
        ),
        (
            "labels",
            {"late": [["delay", "in", 15]]},
            "labels.late: delay in: expected a list of values, got 15",
        ),
        (
            "labels",
            {"late": [["delay", "==", [15]]]},
            r"labels.late: delay ==: expected one value, got \[15\]",
        ),
        ("files", "a.parquet", "files: expected a list of names"),
    ],
)
def test_invalid_values_are_named(source, section, value, message):
    source[section] = value
    with pytest.raises(DataError, match=message):
        parse_schema(source)


def test_deep_nesting_is_an_error_in_one_line(tmp_path):
    path = tmp_path / "deep.toml"
    path.write_text(f"name = {'[' * 100_000}{']' * 100_000}")
    with pytest.raises(DataError, match=r"schema .*deep.toml: nested too deeply$"):
        load_schema(str(path))


@pytest.mark.parametrize("name", ["../schema/types.py", ""])
def test_a_shipped_file_is_in_its_folder(name):
    with pytest.raises(
        DataError, match="shipped: expected the name of a file in the same folder, got"
    ):
        parse_schema(load_schema("flights").source | {"shipped": name})
