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
    assert {"aliccp", "census", "census3", "flights", "flights3", "synthetic", "synthetic3"} <= set(shipped_schemas())
    flights, census = load_schema("flights"), load_schema("census")
    assert [label.name for label in flights.labels] == ["click", "conversion"]
    assert flights.group == "tailnum"
    assert not {"dep_delay", "arr_delay", "month"} & {c for field in flights.fields for c in field.columns}
    assert census.files == ("train", "test")
    assert not {"income_50k", "marital_stat", "instance_weight"} & {field.name for field in census.fields}
    assert "CC BY" in census.attribution
    assert "CC0" in flights.attribution


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
    assert [label.condition for label in schema.labels] == [[(rating, ">=", 4)], [(rating, "==", 5)]]
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
    with pytest.raises(DataError, match=r"expected one of aliccp, .*flights, flights3, .*synthetic"):
        load_schema("fligths")


def test_base_adds_a_third_task():
    flights, flights3 = load_schema("flights"), load_schema("flights3")
    assert [label.name for label in flights3.labels] == ["click", "conversion", "late"]
    assert (flights3.fields, flights3.split, flights3.group) == (flights.fields, flights.split, flights.group)
    census, census3 = load_schema("census"), load_schema("census3")
    assert [label.name for label in census3.labels] == ["income_50k", "marital_stat", "college"]
    assert {field.name for field in census.fields} - {field.name for field in census3.fields} == {"education"}
    assert "base" not in census3.source
    with pytest.raises(DataError, match=r"base: unknown data set 'fligths'; expected one of aliccp, .*flights3"):
        parse_schema({"base": "fligths"})
    with pytest.raises(DataError, match="field dep reads 'dep_delay', a source of label click"):
        parse_schema({"base": "flights", "fields": {"dep": {"kind": "numeric", "column": "dep_delay"}}})


def test_generate_truth_and_tokens_are_checked(source):
    synthetic = load_schema("synthetic3")
    assert list(synthetic.generate.rates) == ["click", "view", "conversion"]
    assert synthetic.truth["view"] == "p_view"
    with pytest.raises(DataError, match="field rain reads 'rain', a truth or weight column"):
        parse_schema(source | {"truth": {"click": "rain"}})
    with pytest.raises(ValueError, match=r"generate\.rows: expected int, got '3'"):
        parse_schema(source | {"generate": {"rows": "3"}})
    with pytest.raises(DataError, match="synthetic log: layout: expected one of aliccp, ecomm, got 'x'"):
        parse_schema(source | {"generate": {"rows": 3, "layout": "x"}})
    with pytest.raises(DataError, match=r'fields\.rain\.tokens: expected "last" or "all" on a categorical field'):
        parse_schema(source | {"fields": {"rain": {"kind": "numeric", "tokens": "last"}}})


def test_field_forms(source):
    source["fields"]["year"] = {"kind": "numeric", "column": "day", "buckets": 7}
    fields = {field.name: field for field in parse_schema(source).fields}
    assert (fields["year"].columns, fields["year"].buckets) == (("day",), 7)
    assert (fields["rain"].kind, fields["rain"].buckets, fields["rain"].min_count) == ("numeric", 2, 1)
    assert (fields["city_size"].kind, fields["city_size"].columns) == ("cross", ("city", "size"))


def test_dense_fields(source):
    source["fields"] |= {
        "rain": "dense",
        "depth": {"kind": "dense", "column": "day", "encoding": "piecewise", "buckets": 7},
    }
    schema = parse_schema(source)
    assert [field.name for field in schema.fields] == ["city", "size", "city_size"]
    assert [(field.columns, field.encoding, field.buckets) for field in schema.dense] == [
        (("rain",), "standard", 2),
        (("day",), "piecewise", 7),
    ]
    assert schema.features == schema.fields + schema.dense
    assert {"rain", "day"} < set(schema.columns())


def test_condition_with_alternatives(source):
    source["labels"]["late"] = [[["delay", ">=", 15]], [["wind", ">", 1.0], ["day", "in", [1, 2]]]]
    label = parse_schema(source).labels[1]
    assert label.condition == [[("delay", ">=", 15)], [("wind", ">", 1.0), ("day", "in", [1, 2])]]
    assert label.columns() == ["delay", "wind", "day"]


@pytest.mark.parametrize(
    ("section", "value", "message"),
    [
        (
            "fields",
            {"city": {"kind": "categorical", "bukets": 3}},
            "fields.city: unknown key 'bukets'; expected",
        ),
        ("fields", {"city": "text"}, "fields.city: expected kind .* got 'text'"),
        ("fields", {"city": 3}, "fields.city: expected .* got 3"),
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
            "fields.rain.encoding: expected one of standard, log, piecewise on a dense field, got 'log10'",
        ),
        ("fields", {"rain": {"kind": "numeric", "encoding": "log"}}, "fields.rain.encoding: .* dense field, got 'log'"),
        ("fields", {"rain": {"kind": "dense", "hashed": 9}}, "fields.rain.hashed: .*, got a dense one"),
        ("fields", {"rain": {"kind": "dense", "tokens": "all"}}, "fields.rain.tokens: .* on a categorical field"),
        ("fields", {"city": "categorical", "delay": "dense"}, "field delay reads 'delay', a source of label late"),
        ("fields", {"rain": "dense"}, r"and 0 field\(s\) besides 1 dense one\(s\)"),
        ("fields", {"delay": "numeric"}, "field delay reads 'delay', a source of label late"),
        (
            "fields",
            {"x": {"cross": ["city", "clicked"]}},
            "field x reads 'clicked', a source of label click",
        ),
        ("fields", {"click": {"kind": "numeric", "column": "rain"}}, "names both a field and a label"),
        ("fields", {}, r"at least one label and one field, got 2 label\(s\) and 0 field\(s\)"),
        ("labels", {"late": []}, "labels.late: expected a list"),
        ("labels", {"late": [["delay", 15]]}, "labels.late: expected .*column"),
        ("split", {"train": {}, "test": {}}, "split: missing key 'validation'"),
        (
            "split",
            {"train": {"file": "b"}, "test": {}, "validation": {}},
            "split.train.file: expected one of data",
        ),
        ("split", {"train": {"rows": "some"}, "test": {}, "validation": {}}, "split.train.rows: expected"),
        ("defaults", {"min_cout": 3}, "defaults: unknown key 'min_cout'"),
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
            {"city": {"kind": "categorical", "tokens": "all", "length": True}},
            "fields.city.length: expected an integer >= 1, got True",
        ),
        (
            "fields",
            {"city": {"kind": "categorical", "tokens": "last", "length": 3}},
            "fields.city.length: expected a field with tokens \"all\", got tokens 'last'",
        ),
        (
            "fields",
            {"city": "categorical", "seen": {"kind": "categorical", "vocabulary": "town"}},
            "fields.seen.vocabulary: expected a categorical field with ids of its own, one of city, got 'town'",
        ),
        (
            "fields",
            {"city": {"kind": "categorical", "vocabulary": "city"}},
            "fields.city.vocabulary: expected a categorical field with ids of its own, one of none, got 'city'",
        ),
        (
            "fields",
            {"city": "categorical", "rain": {"kind": "numeric", "vocabulary": "city"}},
            "fields.rain.vocabulary: expected a categorical field, got a numeric one",
        ),
        (
            "fields",
            {"city": "categorical", "seen": {"kind": "categorical", "vocabulary": "city", "min_count": 2}},
            "fields.seen.min_count: expected no key beside vocabulary, whose field sets it, got 2",
        ),
        ("drop", [["day", ">", 2**65]], "drop: day >: expected an integer of 64 bits, got 36893488147419103232"),
        (
            "fields",
            {"group:id": {"kind": "categorical", "column": "city"}},
            "'group:id': the name of a column that prepare",
        ),
        ("fields", {"city": {"kind": "categorical", "column": "label:click"}}, "'label:click': prepare uses this name"),
        ("funnel", ["click"], r"funnel: expected two or more of the labels click, late, or none, got \['click'\]"),
        ("funnel", ["click", "buy"], "funnel: expected two or more of the labels click, late"),
        ("colour", "red", "the file: unknown key 'colour'"),
        ("labels", "click", "labels: expected a table, got 'click'"),
        ("fields", ["item"], r"fields: expected a table, got \['item'\]"),
        ("fields", {"city": {"kind": "numeric", "column": 3}}, "fields.city.column: expected text, got 3"),
        ("fields", {"city": {"kind": "categorical", "min_count": True}}, "fields.city.min_count: .* got True"),
        ("defaults", 3, "defaults: expected a table, got 3"),
        ("group", ["x"], r"group: expected text, got \['x'\]"),
        ("name", 3, "name: expected text, got 3"),
        ("labels", {"late": [[]]}, r"labels.late: expected .*column.*got \[\]"),
        ("labels", {"late": [["delay", "=", 15]]}, "labels.late: delay: expected one of the operators ==, .* got '='"),
        ("labels", {"late": [["delay", "in", 15]]}, "labels.late: delay in: expected a list of values, got 15"),
        ("labels", {"late": [["delay", "==", [15]]]}, r"labels.late: delay ==: expected one value, got \[15\]"),
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


@pytest.mark.parametrize("name", ["../schema/types.py", "/etc/passwd", "..", "a/b.parquet", ""])
def test_a_shipped_file_is_in_its_folder(name):
    with pytest.raises(DataError, match="shipped: expected the name of a file in the same folder, got"):
        parse_schema(load_schema("flights").source | {"shipped": name})
