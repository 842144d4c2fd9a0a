"""Logs as people have them: several files, words for missing values, marks of numbers, dates,
labels, line ends.
"""

import csv as writer
import datetime
import gzip
import io

import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.parquet as pq
import pytest

from adaftr_fast import prepare
from adaftr_fast.data.dataset.split_file import read_split
from adaftr_fast.data.prepare import run
from adaftr_fast.data.raw import staging, text
from adaftr_fast.data.raw.formats import infer_dates, infer_format
from adaftr_fast.data.raw.infer import infer_schema
from adaftr_fast.data.raw.text import parse_block
from adaftr_fast.data.schema.parse import parse_schema
from adaftr_fast.data.schema.types import PLAIN_TEXT, TextFormat
from adaftr_fast.errors import DataError
from adaftr_fast.streaming.messages import RowReader

ROWS = 400
SHARES = {"train": (0.0, 0.8), "validation": (0.8, 0.9), "test": (0.9, 1.0)}


def table(rows=ROWS):
    """Returns a log with columns of plain values."""
    return {
        "user": [f"u{n % 31}" for n in range(rows)],
        "price": [None if n % 10 == 0 else 1000.25 * (n % 7 + 1) for n in range(rows)],
        "title": [f"line {n % 3}" for n in range(rows)],
        "at": [
            datetime.datetime(2024, 1, 1) + datetime.timedelta(hours=6 * n) for n in range(rows)
        ],
        "click": [n % 3 == 0 for n in range(rows)],
    }


def as_text(columns, order=None, delimiter=","):
    """Returns columns as delimited text; None is empty."""
    text = io.StringIO()
    rows = writer.writer(text, delimiter=delimiter)
    order = order or list(columns)
    rows.writerow(order)
    rows.writerows(zip(*(columns[name] for name in order)))
    return text.getvalue().encode()


def messy(columns):
    """Returns the same values as people write them."""
    return {
        "user": columns["user"],
        "price": ["NA" if value is None else f"{value:,.2f}" for value in columns["price"]],
        "title": [value.replace(" ", "\n") for value in columns["title"]],
        "at": [
            f"{at:%d/%m/%Y %H:%M}" if n % 2 else f"{at:%Y-%m-%d}"
            for n, at in enumerate(columns["at"])
        ],
        "click": [("no", "Yes")[value] for value in columns["click"]],
    }


def part(columns, start, stop):
    return {name: values[start:stop] for name, values in columns.items()}


def encoded(prepared):
    return {
        name: read_split(prepared.folder, prepared.manifest, name).to_pylist()
        for name in ("train", "test")
    }


def test_a_messy_log_of_two_files_is_read_as_its_plain_values(tmp_path):
    plain = table()
    plain["title"] = [value.replace(" ", "\n") for value in plain["title"]]
    plain["at"] = [at if n % 2 else at.replace(hour=0) for n, at in enumerate(plain["at"])]
    pq.write_table(pa.table(plain), tmp_path / "plain.parquet")
    rough = messy(plain)
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(as_text(part(rough, 0, 150))))
    (tmp_path / "b.csv.gz").write_bytes(
        gzip.compress(as_text(part(rough, 150, ROWS), [*rough][::-1]))
    )
    options = {"labels": "click", "group": "user", "time": "at", "progress": False}
    whole = prepare(tmp_path / "plain.parquet", tmp_path / "whole", **options)
    found = prepare([tmp_path / "a.csv.gz", tmp_path / "b.csv.gz"], tmp_path / "found", **options)
    assert found.manifest.parsed.text == TextFormat(
        ("NA",), ",", ".", ("%d/%m/%Y %H:%M", "%Y-%m-%d"), True
    )
    assert (
        found.manifest.bad_rows.account()
        == f"{ROWS} lines below the header = {ROWS} rows kept + 0 left out"
    )
    assert encoded(found) == encoded(whole)
    assert found.manifest.fields == whole.manifest.fields


def test_a_folder_of_text_is_one_log(tmp_path):
    columns, folder = table(), tmp_path / "log"
    folder.mkdir()
    for n in range(4):
        csv.write_csv(pa.table(part(columns, 100 * n, 100 * n + 100)), folder / f"{n}.csv")
    csv.write_csv(pa.table(columns), tmp_path / "whole.csv")
    options = {"labels": "click", "progress": False}
    whole = prepare(tmp_path / "whole.csv", tmp_path / "whole", **options)
    assert encoded(prepare(folder, tmp_path / "found", **options)) == encoded(whole)
    pq.write_table(pa.table(columns), folder / "4.parquet")
    with pytest.raises(
        DataError,
        match=r"log: expected a folder of text or of parquet, got 0\.csv beside 4\.parquet",
    ):
        prepare(folder, tmp_path / "other", **options)
    (folder / "4.parquet").unlink()
    (folder / "4.csv").write_text("user,price\nu,1\n")
    with pytest.raises(
        DataError, match=r"4\.csv: no column 'title', 'click', which schema 0 reads"
    ):
        prepare(folder, tmp_path / "other", **options)


@pytest.mark.parametrize("kind", ["csv", "parquet", "table"])
def test_labels_are_words_and_others_are_bad_rows(tmp_path, kind):
    columns = table()
    words = ["1.0", "yes", "T", "True", "0", "f", "FALSE", "No "]
    columns["click"] = [words[n % 8] for n in range(ROWS)]
    columns["click"][3:6] = ["maybe", None, "maybe"]
    log = pa.table(columns)
    files = log if kind == "table" else tmp_path / f"log.{kind}"
    if kind != "table":
        (csv.write_csv if kind == "csv" else pq.write_table)(log, files)
    options = {"labels": "click", "ignore": "at", "progress": False}
    with pytest.raises(DataError, match="rows cannot be read"):
        prepare(files, tmp_path / "out", **options)
    found = prepare(files, tmp_path / "out", bad_rows=0.01, **options).manifest
    assert found.bad_rows.reasons == {
        "label click: expected 0 or 1, got 'maybe'": 2,
        "click is missing": 1,
    }
    assert (found.bad_rows.rows, found.bad_rows.bad) == (ROWS, 3)
    assert sum(split.rows for split in found.splits.values()) == ROWS - 3
    assert sum(split.positives["click"] for split in found.splits.values()) == ROWS // 2 - 1


def texts(**columns):
    return {name: pa.array(values, pa.string()) for name, values in columns.items()}


@pytest.mark.parametrize(
    ("columns", "delimiter", "expected"),
    [
        (texts(a=["1,325.45", "12", "NULL"]), ",", TextFormat(null=("NULL",), thousands=",")),
        (texts(a=["1.325,45", "12"]), ";", TextFormat(thousands=".", decimal=",")),
        (texts(a=["0,5", "12"], b=["7", "-"]), ";", TextFormat(null=("-",), decimal=",")),
        (texts(a=["1 325", "12"]), ",", TextFormat(thousands=" ")),
        (texts(a=["1,325", "2,000"]), ",", TextFormat(thousands=",")),
        (texts(a=["1,3", "2"]), ",", PLAIN_TEXT),  # may be a list
        (texts(a=["NA", "Asia"], b=["x", "\\N"]), ",", TextFormat(null=("\\N",))),
        (texts(a=["1.5", "2"], b=["3"]), ";", PLAIN_TEXT),
    ],
)
def test_what_text_means_is_inferred_where_it_is_plain(columns, delimiter, expected):
    assert infer_format(columns, delimiter, PLAIN_TEXT) == expected


def test_marks_of_several_meanings_stay_text(tmp_path):
    with pytest.warns(
        UserWarning, match=r"several meanings: a \('1,325'\); --thousands and --decimal .* say"
    ):
        assert infer_format(texts(a=["1,325", "2,000"]), ";", PLAIN_TEXT) == PLAIN_TEXT
    given = TextFormat(decimal=",")
    assert infer_format(texts(a=["1,325", "2,000"]), ";", given) == given


def test_forms_of_dates():
    assert infer_dates("at", pa.array(["13/01/2024", "01/02/2024", None])) == ("%d/%m/%Y",)
    assert infer_dates("at", pa.array(["01/13/2024 1:05 PM", "01/02/2024 2:00 AM"])) == (
        "%m/%d/%Y %I:%M %p",
    )
    assert infer_dates("at", pa.array(["soon"])) == ()
    for values in (["01/02/2024", "03/04/2024"], ["13/01/2024", "01/13/2024"]):
        with pytest.raises(
            DataError, match=r"at: the form of times such as '.*' may be '%d/%m/%Y' or '%m/%d/%Y'"
        ):
            infer_dates("at", pa.array(values))


def test_options_of_fields(tmp_path):
    columns = table()
    pq.write_table(pa.table(columns), tmp_path / "log.parquet")
    source = infer_schema(
        [tmp_path / "log.parquet"],
        ["click"],
        dense=["price"],
        hash={"user": 1000},
        min_count=5,
        ignore=["at"],
    )
    assert source["fields"] == {
        "user": {"kind": "categorical", "hashed": 1000},
        "price": "dense",
        "title": "categorical",
    }
    assert source["defaults"] == {"min_count": 5}


def prepared_log(tmp_path, text, **options):
    (tmp_path / "log.csv").write_text(text)
    return prepare(
        tmp_path / "log.csv", tmp_path / "out", labels="click", progress=False, **options
    )


def test_stray_quotes_cost_their_lines_alone(tmp_path, monkeypatch):
    """Two of them must not make one value of all lines between, whether other values hold line ends
    or not.
    """
    lines = [f"{n % 2},{n % 7},shoes" for n in range(900)]
    lines[100], lines[700] = '1,3,"best shoes', '0,3,"cheap tv'
    found = prepared_log(
        tmp_path, "\n".join(["click,user,query", *lines, ""]), bad_rows=0.01
    ).manifest
    assert (found.bad_rows.account(), found.bad_rows.reasons) == (
        "900 lines below the header = 898 rows kept + 2 left out",
        {"the line ends inside quotes": 2},
    )
    lines[5] = '1,3,"two\nlines"'
    found = prepared_log(
        tmp_path, "\n".join(["click,user,query", *lines, ""]), bad_rows=0.01
    ).manifest
    assert found.parsed.text.line_ends
    assert found.bad_rows.account() == "900 lines below the header = 898 rows kept + 2 left out"
    source = found.schema
    monkeypatch.setattr(staging, "BLOCK_BYTES", 500)
    monkeypatch.setattr(text, "LONGEST_VALUE", 50)
    found = run.prepare(
        parse_schema(source), [tmp_path / "log.csv"], tmp_path / "other", bad_rows=0.01
    )
    assert found.bad_rows.account() == "900 lines below the header = 898 rows kept + 2 left out"
    # a header and a line end before
    assert [each.split(":")[1] for each in found.bad_rows.examples] == ["103", "703"]


@pytest.mark.parametrize("field", ["numeric", "dense"])
def test_text_of_numbers_is_read_once_from_files_and_from_memory(tmp_path, field):
    numbers = ["0,025", "1.125,5", "-", "299,5"]
    columns = {
        "p": [numbers[n % 4] for n in range(400)],
        "k": ["-", "a"] * 200,
        "click": [n % 3 % 2 for n in range(400)],
    }
    source = {
        "name": "log",
        "labels": {"click": "click"},
        "text": {"thousands": ".", "decimal": ",", "null": ["-"]},
        "drop": [["k", "==", "-"]],  # of which none is left
        "split": {split: {"hash": {"start": a, "stop": b}} for split, (a, b) in SHARES.items()},
        "fields": {"p": field, "k": "categorical"},
    }
    (tmp_path / "log.csv").write_bytes(as_text(columns, delimiter=";"))
    pq.write_table(pa.table(columns), tmp_path / "log.parquet")
    whole, found = (
        run.prepare(parse_schema(source), [tmp_path / f"log.{kind}"], tmp_path / kind)
        for kind in ("csv", "parquet")
    )
    assert (found.fields, found.dense, found.unused) == (whole.fields, whole.dense, whole.unused)
    rows = [
        read_split(tmp_path / each.name, manifest, "train")
        for each, manifest in ((tmp_path / "csv", whole), (tmp_path / "parquet", found))
    ]
    assert str(rows[0].to_pylist()) == str(rows[1].to_pylist())  # nan is not equal to itself
    if field == "dense":
        assert {round(each, 3) for each in rows[0]["p"].to_pylist() if each == each} == {
            0.025,
            1125.5,
            299.5,
        }
    reader = RowReader(parse_schema(source))
    rows, reasons = reader.read(
        [b'{"click": 1, "k": "a", "p": "1.125,5"}', b'{"click": "no", "k": "-", "p": "-"}']
    )
    assert reasons == [None, None]
    assert rows.to_pylist() == [
        {"p": 1125.5, "k": "a", "click": 1},
        {"p": None, "k": None, "click": 0},
    ]


def test_rows_of_words_for_missing_values_are_not_blank(tmp_path):
    block = parse_block(b"a,1\nNA,NA\n,\nb,2\n", ["s", "n"], ",", TextFormat(null=("NA",)))
    assert (block.total, block.blank, block.columns["n"].null_count) == (3, 1, 1)


def test_lists_of_numbers_of_three_digits_stay_lists(tmp_path):
    with pytest.warns(UserWarning, match="several meanings"):
        assert (
            infer_format(texts(a=["101,202,303", "101", "404,505"]), "\t", PLAIN_TEXT) == PLAIN_TEXT
        )
    assert infer_format(texts(a=["1,325e3", "1,325.45"]), ",", PLAIN_TEXT) == PLAIN_TEXT
    assert infer_dates("at", pa.array(["13/01/98", "01/02/01"])) == ("%d/%m/%y",)


def test_ids_and_empty_columns_are_not_read_by_marks(tmp_path):
    columns = {
        "user_id": [f"{1000 + n:,}" for n in range(60)],
        "empty": [None] * 60,
        "click": [n % 2 for n in range(60)],
    }
    (tmp_path / "log.csv").write_bytes(as_text(columns))
    with pytest.warns(
        UserWarning, match="user_id: read as numbers with thousands ','|read as ids, .* user_id"
    ):
        source = infer_schema([tmp_path / "log.csv"], ["click"])
    assert source["fields"] == {"user_id": "categorical", "empty": "categorical"}


def test_options_of_text_hold_for_tables_too(tmp_path):
    columns = {
        "k": ["-", "a"] * 50,
        "p": ["299,5", "3"] * 50,
        "click": [n % 3 % 2 for n in range(100)],
    }
    options = {"labels": "click", "null": "-", "decimal": ",", "dense": "p", "progress": False}
    found = prepare(pa.table(columns), tmp_path / "out", **options).manifest
    assert found.values["k"].distinct == 1
    assert 0 < found.splits["train"].unknown["k"] < found.splits["train"].rows
    assert found.dense[0].high == 299.5
    del options["dense"]
    inferred = prepare(pa.table(columns), tmp_path / "other", **options)
    assert [row[1] for row in inferred.fields().rows if row[0] == "p"] == ["numeric"]
    assert inferred.manifest.schema["text"] == {"null": ["-"], "decimal": ","}


def test_ids_grow_whatever_the_order_of_the_columns(tmp_path):
    columns = table()
    options = {"labels": "click", "ignore": "at", "progress": False}
    first = prepare(pa.table(columns), tmp_path / "first", **options)
    found = prepare(
        pa.table({name: columns[name] for name in [*columns][::-1]}),
        tmp_path / "next",
        grow=first.folder,
        **options,
    )
    assert [field.name for field in found.manifest.fields] == [
        field.name for field in first.manifest.fields
    ]
    assert found.manifest.num_embeddings == first.manifest.num_embeddings
