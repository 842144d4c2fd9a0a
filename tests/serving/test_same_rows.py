"""The same rows have the same ids and scores, whatever types carry them and whatever program wrote
them.
"""

import dataclasses
import datetime
import decimal
import json
import warnings

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as csv
import pyarrow.parquet as pq
import pytest

import adaftr_fast
from adaftr_fast.config import ModelConfig
from adaftr_fast.data.dataset.loader import PreparedData
from adaftr_fast.data.encode.encoders import Vocabulary, encode_features
from adaftr_fast.data.raw.infer import infer_schema
from adaftr_fast.data.schema.parse import parse_schema, write_schema
from adaftr_fast.errors import DataError
from adaftr_fast.extras.streaming.messages import RowReader
from adaftr_fast.serving.export import export_run
from adaftr_fast.serving.predict import predict
from adaftr_fast.serving.rows import read_rows
from adaftr_fast.serving.scorer import load_scorer
from tests.logs import by_hash

from .conftest import SIZES, make_log, save_run

ROWS = 240
SOURCE = {
    "name": "worn",
    "labels": {"click": "click", "conversion": "conversion"},
    "group": "user",
    "split": by_hash(0.7, 0.85, column="user"),
    "fields": {
        "user": "categorical",
        "city": "categorical",
        "member": "categorical",
        "item": {"kind": "categorical", "hashed": 50},
        "user_member": {"cross": ["user", "member"]},
        "price": {"kind": "numeric", "buckets": 5},
        "weight": {"kind": "dense"},
    },
}
COMPUTED = SOURCE | {
    "columns": {
        "hour": 'hour("when")',
        "dear": "price * 2 > 4.5 AND member",
        "letters": "length(city)",
        "week": '"user" % 7',
        "liked": "stars >= 3",
        "night": 'hour("when") = 3',
    },
    "types": {
        "when": "time",
        "price": "number",
        "member": "boolean",
        "user": "integer",
        "stars": "integer",
    },
    "labels": {"click": "liked", "conversion": "conversion"},
    "drop": [["night", "==", True]],
    "fields": SOURCE["fields"]
    | {
        "hour": "categorical",
        "dear": "categorical",
        "letters": {"kind": "numeric", "buckets": 3},
        "week_member": {"cross": ["week", "member"]},
    },
}
FEATURES = ["user", "city", "member", "item", "price", "weight"]


def make_rows() -> pa.Table:
    """Returns impressions whose users are ids beyond 1e10, of whom some are missing, as are some
    cities.
    """
    random = np.random.default_rng(0)
    user = random.integers(0, 60, ROWS)
    click = random.random(ROWS) < 0.5
    hours = random.integers(0, 24, ROWS).tolist()
    return pa.table(
        {
            "user": pa.array(20_000_000_000 + 4 * user, mask=user == 7),
            "city": [("007", "Köln", "Nice", "x", None)[i] for i in random.integers(0, 5, ROWS)],
            "member": random.random(ROWS) < 0.3,
            "item": random.integers(0, 90, ROWS),
            "price": random.integers(0, 500, ROWS) / 100,
            "weight": random.integers(-50, 50, ROWS) / 8,
            "click": click.astype(np.int8),
            "conversion": (click & (random.random(ROWS) < 0.5)).astype(np.int8),
            "when": [
                f"2026-05-{1 + hour:02d} {hour:02d}:30:00" if hour else None for hour in hours
            ],
            "stars": random.integers(1, 6, ROWS),
        }
    )


def with_column(table, name, values):
    return table.set_column(table.column_names.index(name), name, values)


def cast(table, **kinds):
    for name, kind in kinds.items():
        table = with_column(table, name, table[name].cast(kind))
    return table


def as_words(table, true, false):
    return with_column(table, "member", pc.if_else(table["member"], true, false))


def parquet(table, folder, *_):
    pq.write_table(table, folder / "log.parquet")
    return folder / "log.parquet"


def parquet_of(change):
    return lambda table, folder, *_: parquet(change(table), folder)


def parquet_folder(table, folder, *_):
    """Two files: the second has floats for ids, and its columns in another order."""
    (folder / "log").mkdir()
    pq.write_table(table.slice(0, 100), folder / "log/a.parquet")
    second = cast(table.slice(100), item=pa.int16())
    second = with_column(
        second, "user", pc.coalesce(second["user"].cast(pa.float64()), float("nan"))
    )
    pq.write_table(second.select(second.column_names[::-1]), folder / "log/b.parquet")
    return folder / "log"


def tsv_compressed(table, folder, *_):
    with pa.output_stream(folder / "log.tsv.zst") as stream:
        csv.write_csv(table, stream, csv.WriteOptions(delimiter="\t"))
    return folder / "log.tsv.zst"


def csv_by_pandas(table, folder, *_):
    """Users are written as 20000000004.0, members as True."""
    table.to_pandas().to_csv(folder / "log.csv", index=False)
    return folder / "log.csv"


def csv_of_windows(table, folder, *_):
    """With a byte order mark."""
    csv.write_csv(table, folder / "plain.csv")
    text = (folder / "plain.csv").read_bytes().replace(b"\n", b"\r\n")
    (folder / "log.csv").write_bytes(b"\xef\xbb\xbf" + text)
    return folder / "log.csv"


def json_of_pandas(table, folder, *_):
    """JSON lines, users written as floats where one is missing."""
    table.to_pandas().to_json(folder / "log.jsonl", orient="records", lines=True)
    return folder / "log.jsonl"


def messages(table, _, source):
    """The rows as the messages of a topic, of which each is JSON text."""
    encoded = [json.dumps(row).encode() for row in table.to_pylist()]
    rows, reasons = RowReader(parse_schema(source)).read(encoded)
    assert not any(reasons)
    return rows


def record_batches(table, *_):
    """Batches of which each infers the types of its own values."""
    rows = table.to_pylist()
    batches = [pa.Table.from_pylist(rows[start : start + 60]) for start in range(0, ROWS, 60)]
    return pa.concat_tables(batches, promote_options="permissive")


def as_text(table):
    """Text, floats and small numbers, in another order, and a list that the schema lacks."""
    table = cast(table, user=pa.float64(), item=pa.uint8(), city=pa.large_string())
    table = cast(table, price=pa.string(), weight=pa.float32(), click=pa.bool_())
    table = cast(table, conversion=pa.float32()).append_column("note", pa.array([["x"]] * ROWS))
    return as_words(table, "True", "False").select(table.column_names[::-1])


def as_bytes(table):
    """Bytes, decimals, dictionaries, half floats and times with a zone; missing cities are empty."""
    table = with_column(table, "city", pc.fill_null(table["city"], "").cast(pa.binary()))
    numbers = [decimal.Decimal(str(value)) for value in table["price"].to_pylist()]
    table = with_column(table, "price", pa.array(numbers, pa.decimal128(12, 5)))
    table = with_column(table, "weight", table["weight"].dictionary_encode())
    times = pc.assume_timezone(table["when"].cast(pa.timestamp("ms")), "UTC")
    table = with_column(table, "when", times)
    table = cast(table, user=pa.decimal128(22, 2), item=pa.float16(), stars=pa.decimal128(22, 2))
    return as_words(table, "1", "0")


CLOTHES = {
    "parquet, a folder": parquet_folder,
    "text, floats, small numbers": parquet_of(as_text),
    "bytes, decimals, dictionaries": parquet_of(as_bytes),
    "tsv, compressed": tsv_compressed,
    "csv by pandas": csv_by_pandas,
    "csv of Windows": csv_of_windows,
    "JSON lines by pandas": json_of_pandas,
    "pandas, objects": lambda table, *_: pd.DataFrame(table.to_pylist()),
    "pandas, nullable": lambda table, *_: (
        table.to_pandas().convert_dtypes().set_index(np.arange(ROWS)[::-1] * 3)
    ),
    "Polars, categories": lambda table, *_: pl.from_arrow(table).with_columns(
        pl.col("city").cast(pl.Categorical)
    ),
    "views of text": lambda table, *_: as_words(
        cast(table, city=pa.string_view()), "TRUE", "FALSE"
    ),
    "views of bytes": lambda table, *_: cast(table, city=pa.binary_view()),
    "runs of values": lambda table, *_: with_column(
        table, "city", pc.run_end_encode(table["city"].combine_chunks())
    ),
    "dicts, in batches": record_batches,
    "messages of a topic": messages,
}


def scored(folder, source):
    """Returns a folder with a schema, the prepared folder ``data`` of the rows as parquet, an exported
    ``model``, and its scores ``scores.parquet``.
    """
    log = parquet(make_rows(), folder)
    write_schema(folder / "worn.toml", source, "Written by the tests.")
    adaftr_fast.prepare(log, folder / "data", dataset=folder / "worn.toml", progress=False)
    save_run(folder / "run", PreparedData(folder / "data"), ModelConfig(**SIZES))
    export_run(folder / "run", folder / "model")
    adaftr_fast.predict(folder / "model", log, folder / "scores.parquet", progress=False)
    return folder


@pytest.fixture(scope="module")
def worn(tmp_path_factory):
    return scored(tmp_path_factory.mktemp("worn"), SOURCE)


@pytest.fixture(scope="module")
def computed(tmp_path_factory):
    return scored(tmp_path_factory.mktemp("computed"), COMPUTED)


EITHER = pytest.mark.parametrize(
    ("fixture", "source"), [("worn", SOURCE), ("computed", COMPUTED)], ids=["read", "computed"]
)


@EITHER
@pytest.mark.parametrize("name", CLOTHES)
def test_the_same_rows_have_the_same_ids_and_scores(request, tmp_path, name, fixture, source):
    folder = request.getfixturevalue(fixture)
    log = CLOTHES[name](make_rows(), tmp_path, source)
    adaftr_fast.predict(folder / "model", log, tmp_path / "scores.parquet", progress=False)
    expected = pq.read_table(folder / "scores.parquet")
    assert pq.read_table(tmp_path / "scores.parquet").equals(expected)
    adaftr_fast.prepare(log, tmp_path / "data", dataset=folder / "worn.toml", progress=False)
    for file in ("train", "validation", "test", "vocabulary"):
        found, expected = (
            pq.read_table(each / f"data/{file}.parquet") for each in (tmp_path, folder)
        )
        assert found.equals(expected), file


def test_the_ids_of_computed_columns_are_those_of_their_values(computed):
    manifest = PreparedData(computed / "data").manifest
    log = make_rows()
    kept = log.filter(pc.fill_null(pc.invert(pc.starts_with(log["when"], "2026-05-04")), True))
    assert manifest.total.rows == len(kept) < ROWS
    liked = pc.sum(pc.greater_equal(kept["stars"], 3)).as_py()
    assert manifest.total.positives["click"] == liked
    hours = next(field for field in manifest.fields if field.name == "hour")
    assert hours.num_embeddings == 1 + len(pc.unique(kept["when"].drop_null()))


def test_a_column_of_the_log_with_the_name_of_a_computed_one_is_not_read(computed, tmp_path):
    log = make_rows().append_column("hour", pa.array([99] * ROWS))
    options = {"keep": ["hour"], "progress": False}
    adaftr_fast.predict(computed / "model", log, tmp_path / "scores.parquet", **options)
    found = pq.read_table(tmp_path / "scores.parquet")
    assert found["hour"].to_pylist() == [99] * ROWS
    assert found.drop_columns("hour").equals(pq.read_table(computed / "scores.parquet"))
    schema = computed / "worn.toml"
    data = adaftr_fast.prepare(log, tmp_path / "data", dataset=schema, progress=False)
    assert data.manifest.fingerprint == PreparedData(computed / "data").manifest.fingerprint


REQUESTS = {
    "batch": lambda table: table.combine_chunks().to_batches()[0],
    "pandas, floats": lambda table: pd.DataFrame(table.to_pylist()).astype(
        {"user": float, "item": float}
    ),
    "Polars": lambda table: pl.from_arrow(table).with_columns(pl.col("city").cast(pl.Categorical)),
    "dicts": lambda table: table.to_pylist(),
    "JSON": lambda table: json.loads(json.dumps(table.to_pylist())),
    "dicts of several types": lambda table: [
        row
        if number % 2
        else {name: value if value is None else str(value) for name, value in row.items()}
        for number, row in enumerate(table.to_pylist())
    ],
    "dicts of NumPy's types": lambda table: [
        {
            name: np.asarray(value)[()] if isinstance(value, int | float) else value
            for name, value in row.items()
        }
        for row in table.to_pylist()
    ],
}


def assert_same_scores(found, expected):
    """Equal up to the rounding of products, which on some CPUs depends on the number of rows."""
    assert found.schema == expected.schema
    for ours, theirs in zip(found.columns, expected.columns):
        np.testing.assert_allclose(ours.to_numpy(), theirs.to_numpy(), rtol=1e-5)


@EITHER
@pytest.mark.parametrize("name", REQUESTS)
def test_requests_have_the_scores_of_the_file(request, name, fixture, source):
    """Whatever the number of rows, here 1, 5 and all; to the bit those of a table of as
    many rows.
    """
    folder = request.getfixturevalue(fixture)
    scorer = load_scorer(folder / "model")
    log = make_rows().select([*FEATURES, "when"] if source is COMPUTED else FEATURES)
    expected = pq.read_table(folder / "scores.parquet")
    for first, count in ((5, 1), (77, 5), (0, ROWS)):
        rows = log.slice(first, count)
        found = scorer.score(REQUESTS[name](rows))
        assert found.equals(scorer.score(rows))
        assert_same_scores(found, expected.slice(first, count))
    assert found.equals(expected)


def test_a_dict_is_one_row(worn):
    scorer = load_scorer(str(worn / "model"))
    rows = make_rows().select(FEATURES)
    row = rows.slice(5, 1).to_pylist()[0]
    expected = scorer.score(rows.slice(5, 1))
    assert_same_scores(expected, pq.read_table(worn / "scores.parquet").slice(5, 1))
    assert scorer.score(row).equals(expected)
    assert scorer.score({**row, "note": "x"}, extra="ignore").equals(expected)
    assert scorer.score([]).equals(expected.slice(0, 0))
    nothing = scorer.score(dict.fromkeys(FEATURES))  # every value is missing
    assert scorer.score(dict.fromkeys(FEATURES, float("nan"))).equals(nothing)


def test_rows_may_have_the_columns_that_an_inferred_schema_leaves_out(worn, tmp_path):
    """By name or, as times, by type."""
    log = make_rows().drop_columns(["when", "stars"])
    log = log.append_column("note", pa.array(["x"] * ROWS))
    log = log.append_column("day", pa.array([datetime.date(2026, 1, 1)] * ROWS))
    source = infer_schema(
        [parquet(log, tmp_path)], ["click", "conversion"], group="user", ignore=["note"]
    )
    assert source["ignore"] == ["note", "user", "day"]
    with pytest.raises(
        DataError,
        match="ignore: expected columns that no field reads, but field price reads 'price'",
    ):
        parse_schema(source | {"ignore": ["price"]})
    model = load_scorer(worn / "model")
    scorer = dataclasses.replace(model, schema=parse_schema(SOURCE | {"ignore": ["note", "day"]}))
    assert scorer.score(log).equals(model.score(log.drop_columns(["note", "day"])))
    with pytest.raises(DataError, match=r"^rows: column 'other' is not in the schema"):
        scorer.score(log.append_column("other", log["note"]))


def test_text_of_a_request_is_read_as_that_of_the_log(worn):
    """By the words and marks that the schema records, also where other rows hold numbers."""
    schema = parse_schema(SOURCE | {"text": {"null": ["NA"], "decimal": ",", "thousands": "."}})
    scorer = dataclasses.replace(load_scorer(worn / "model"), schema=schema)
    plain = [{**ROW, "price": price} for price in (1.25, 2.5, None, 1325.0)]
    expected = scorer.score(plain)
    written = [{**ROW, "price": price} for price in ("1,25", "2,5", "NA", "1.325,0")]
    assert scorer.score(written).equals(expected)
    assert scorer.score([plain[0], written[1], written[2], plain[3]]).equals(expected)


def test_floats_that_have_lost_digits_of_ids_are_warned_of(worn):
    scorer = load_scorer(worn / "model")
    table = pa.Table.from_pylist([{**ROW, "user": 2**60}, {**ROW, "user": None}])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scorer.score(table)
        scorer.score({**ROW, "user": 2.0**53 - 1})
        scorer.score([{**ROW, "price": 2.0**60, "weight": 2.0**60}])
    lost = {**ROW, "user": 2.0**60}
    narrow = with_column(table, "user", pa.array([2.0**60, 1.0], pa.float32()))
    for rows, where in (
        (table.to_pandas(), "rows"),
        (narrow, "rows"),
        ([{**ROW, "user": "u"}, lost], r"rows\[1\]"),
        (lost, "row"),
        ({**ROW, "user": np.float32(2.0**60)}, "row"),
    ):
        message = rf"^{where}: column 'user': the float 1\.15.*e\+18 may have lost digits"
        with pytest.warns(UserWarning, match=message):
            scorer.score(rows)
    schema, rows = tagged(["a", "b"], [2.0**53 - 1, -(2.0**53)])
    message = r"^rows.*: column 'tags': the float -9007199254740992\.0 may have lost"
    for listed in (rows, pa.Table.from_pylist(rows[1:])):
        with pytest.raises(DataError, match=message):
            read_rows(schema, [], listed, "error", exact=True)


@pytest.mark.parametrize("text", [{}, {"thousands": ","}])
def test_empty_text_is_a_missing_number(worn, tmp_path, text):
    """In requests, tables, files and messages, in numeric and dense fields, whether the schema has
    marks or not.
    """
    schema = parse_schema(SOURCE | {"text": text})
    scorer = dataclasses.replace(load_scorer(worn / "model"), schema=schema)

    def rows(*pairs):
        return [{**ROW, "price": price, "weight": weight} for price, weight in pairs]

    written = rows(("1.5", ""), ("", "2"), ("3", "-1"))
    expected = scorer.score(rows((1.5, None), (None, 2.0), (3.0, -1.0)))
    table = pa.Table.from_pylist(written)
    dictionary = pa.dictionary(pa.int32(), pa.string())
    tables = [cast(table, price=kind, weight=kind) for kind in (pa.string_view(), dictionary)]
    messages = [json.dumps(row | {"click": 0, "conversion": 0}).encode() for row in written]
    read, reasons = RowReader(schema).read(messages)
    assert reasons == [None] * 3
    for each in (written, *tables, read):
        assert scorer.score(each).equals(expected)
    predict(scorer, [parquet(table, tmp_path)], tmp_path / "scores.parquet")
    assert pq.read_table(tmp_path / "scores.parquet").equals(expected)
    assert scorer.score(rows(("", 2.0))).equals(scorer.score(rows((None, 2.0))))


def test_a_text_that_is_no_number_is_named_not_its_neighbours(worn):
    schema = parse_schema(SOURCE | {"text": {"thousands": ","}})
    scorer = dataclasses.replace(load_scorer(worn / "model"), schema=schema)
    rows = pa.Table.from_pylist([{**ROW, "price": price} for price in ("3,660.48", "much")])
    with pytest.raises(DataError, match=r"^price: expected numbers, got 'much'"):
        scorer.score(rows)


ROW = {"user": 1, "city": "x", "member": True, "item": 3, "price": 1.5, "weight": 2.0}


@pytest.mark.parametrize(
    ("rows", "error", "message"),
    [
        (
            {},
            DataError,
            "row: no column 'user', 'city', .*, which the model reads; got no columns$",
        ),
        ([ROW, {**ROW, "usr": 1}], DataError, r"rows\[1\]: column 'usr' is not in the schema"),
        ([ROW, {"usr": 1}], DataError, r"rows\[1\]: no column 'user', .* reads; got 'usr'$"),
        (pd.DataFrame([ROW]).drop(columns="item"), DataError, "rows: no column 'item', which"),
        (
            {**ROW, "user": [1, 2]},
            DataError,
            r"row: column 'user': expected one value \(a dict is one row\), got list$",
        ),
        (
            [ROW, {**ROW, "price": "much"}],
            DataError,
            "rows: column 'price': expected numbers, got 'much'",
        ),
        ({**ROW, "city": {"name": "x"}}, DataError, "row: column 'city': expected one .* got dict"),
        ([ROW, 5], TypeError, "rows: expected a dict, a list .*, got a list with int$"),
        ("log.csv", TypeError, "rows: expected a dict, .*, got str$"),
        ("", TypeError, "rows: expected a dict, .*, got str$"),
    ],
)
def test_rows_that_are_none_are_named(worn, rows, error, message):
    with pytest.raises(error, match=f"^{message}"):
        load_scorer(worn / "model").score(rows)


def test_a_value_of_another_type_in_a_request_is_named(computed):
    with pytest.raises(DataError, match=r"when: expected type time, got 'noon'"):
        load_scorer(computed / "model").score({**ROW, "when": "noon"})


OTHERWISE = [
    (
        lambda table: table.drop_columns("city"),
        r"b\.parquet: no column 'city', which .*a\.parquet has",
    ),
    (
        lambda table: cast(table, user=pa.string()),
        r"b\.parquet: column 'user' is string, in .*a\.parquet it is int64",
    ),
    (
        lambda table: with_column(table, "user", pc.add(table["user"], 0.5)),
        r"column 'user': expected values of type int64, as in the first file, got double",
    ),
]


@pytest.mark.parametrize(("change", "message"), OTHERWISE)
def test_a_file_of_a_folder_that_would_be_read_otherwise_is_an_error(
    worn, tmp_path, change, message
):
    (tmp_path / "log").mkdir()
    pq.write_table(make_rows(), tmp_path / "log/a.parquet")
    pq.write_table(change(make_rows()), tmp_path / "log/b.parquet")
    with pytest.raises(DataError, match=message):
        adaftr_fast.predict(worn / "model", tmp_path / "log", tmp_path / "scores.parquet")
    with pytest.raises(DataError, match=message):
        adaftr_fast.prepare(tmp_path / "log", tmp_path / "data", dataset=worn / "worn.toml")


def test_lists_of_tokens_are_read_as_their_text(exported):
    """In requests and tables, where the log had text and a separator."""
    scorer = load_scorer(exported[0])
    plain = (
        make_log(40, seed=3)
        .select(["weekday", "item", "place", "heat", "user", "tags"])
        .to_pylist()
    )
    plain[0]["tags"], plain[1]["tags"] = "", None
    lists = [
        {**row, "tags": (row["tags"] or "").split("|") if row["tags"] else []} for row in plain
    ]
    numbers = [{**row, "tags": list(map(int, row["tags"]))} for row in lists]
    expected = scorer.score(plain)
    for rows in (lists, numbers, [*lists[:20], *plain[20:]], pa.Table.from_pylist(lists)):
        assert scorer.score(rows).equals(expected)
    with pytest.raises(
        DataError,
        match=r"column 'tags': expected a list, or text whose tokens '\|' separates, got int",
    ):
        scorer.score({**plain[0], "tags": 7})


def tagged(*values, **text):
    """Rows of one column, and a schema one of whose fields reads its tokens."""
    fields = {"tags": {"kind": "categorical", "tokens": "all", "separator": "|"}}
    schema = parse_schema(SOURCE | {"fields": fields, "text": text})
    return schema, [{"tags": each} for each in values]


@pytest.mark.parametrize("order", [1, -1])
def test_fields_divide_one_column_by_separators_of_their_own(order):
    """Text alone: the tokens of a list would be those of one field."""
    schema, rows = tagged("a;b|c", "d")
    by_other = dataclasses.replace(schema.fields[0], name="other", separator=";")
    schema = dataclasses.replace(schema, fields=(*schema.fields, by_other)[::order])
    tokens = {"tags": ["a;b", "c", "d"], "other": ["a", "b|c", "d"]}
    encoders = {
        name: Vocabulary(pa.array(values), pa.array([1, 1, 1])) for name, values in tokens.items()
    }
    ids = encode_features(schema, encoders, read_rows(schema, [], rows, "error"))
    assert {name: ids[name].to_pylist() for name in tokens} == {
        name: [[1, 2], [3]] for name in tokens
    }
    with pytest.raises(
        DataError, match=r"^rows\[1\]: column 'tags': expected one value .*, got list"
    ):
        read_rows(schema, [], [*rows, {"tags": ["d"]}][1:], "error")
    lists = dataclasses.replace(schema.fields[0], name="lists", separator=None)
    of_lists = dataclasses.replace(schema, fields=(*schema.fields, lists)[::order])
    assert len(read_rows(of_lists, [], [{"tags": ["d"]}], "error")) == 1
    with pytest.raises(DataError, match=r"^rows\[0\]: column 'tags': expected a list, got str"):
        read_rows(of_lists, [], rows, "error")


@pytest.mark.parametrize("other", ["a|b", ["a", "b"]])
def test_a_word_for_missing_is_no_token_whatever_other_rows_hold(other):
    schema, rows = tagged("NA", other, null=["NA"])
    assert read_rows(schema, [], rows, "error")["tags"][0].as_py() is None


@pytest.mark.parametrize("order", [1, -1])
def test_lists_are_taken_only_where_every_field_reads_tokens(order):
    schema, rows = tagged("a|b", ["a", "b"])
    whole = dataclasses.replace(schema.fields[0], name="whole", tokens=None, separator=None)
    schema = dataclasses.replace(schema, fields=(*schema.fields, whole)[::order])
    assert len(read_rows(schema, [], rows[:1], "error")) == 1
    with pytest.raises(
        DataError, match=r"^rows\[1\]: column 'tags': expected one value .* got list"
    ):
        read_rows(schema, [], rows, "error")
