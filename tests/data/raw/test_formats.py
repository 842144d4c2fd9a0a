"""Logs as people have them: several files, words for missing values, marks of numbers, dates, labels, line ends."""

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
from adaftr_fast.data.raw.formats import infer_dates, infer_format
from adaftr_fast.data.raw.infer import infer_schema
from adaftr_fast.data.schema.types import PLAIN_TEXT, TextFormat
from adaftr_fast.errors import DataError

ROWS = 400


def table(rows=ROWS):
    """Returns a log with columns of plain values."""
    return {
        "user": [f"u{n % 31}" for n in range(rows)],
        "price": [None if n % 10 == 0 else 1000.25 * (n % 7 + 1) for n in range(rows)],
        "title": [f"line {n % 3}" for n in range(rows)],
        "at": [datetime.datetime(2024, 1, 1) + datetime.timedelta(hours=6 * n) for n in range(rows)],
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
        "at": [f"{at:%d/%m/%Y %H:%M}" if n % 2 else f"{at:%Y-%m-%d}" for n, at in enumerate(columns["at"])],
        "click": [("no", "Yes")[value] for value in columns["click"]],
    }


def part(columns, start, stop):
    return {name: values[start:stop] for name, values in columns.items()}


def encoded(prepared):
    return {name: read_split(prepared.folder, prepared.manifest, name).to_pylist() for name in ("train", "test")}


def test_a_messy_log_of_two_files_is_read_as_its_plain_values(tmp_path):
    plain = table()
    plain["title"] = [value.replace(" ", "\n") for value in plain["title"]]
    plain["at"] = [at if n % 2 else at.replace(hour=0) for n, at in enumerate(plain["at"])]
    pq.write_table(pa.table(plain), tmp_path / "plain.parquet")
    rough = messy(plain)
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(as_text(part(rough, 0, 150))))
    (tmp_path / "b.csv.gz").write_bytes(gzip.compress(as_text(part(rough, 150, ROWS), [*rough][::-1])))
    options = {"labels": "click", "group": "user", "time": "at", "progress": False}
    whole = prepare(tmp_path / "plain.parquet", tmp_path / "whole", **options)
    found = prepare([tmp_path / "a.csv.gz", tmp_path / "b.csv.gz"], tmp_path / "found", **options)
    assert found.manifest.parsed.text == TextFormat(("NA",), ",", ".", ("%d/%m/%Y %H:%M", "%Y-%m-%d"), True)
    assert found.manifest.bad_rows.account() == f"{ROWS} lines below the header = {ROWS} rows kept + 0 left out"
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
    with pytest.raises(DataError, match=r"log: expected a folder of text or of parquet, got 0\.csv beside 4\.parquet"):
        prepare(folder, tmp_path / "other", **options)
    (folder / "4.parquet").unlink()
    (folder / "4.csv").write_text("user,price\nu,1\n")
    with pytest.raises(DataError, match=r"4\.csv: no column 'title', 'click', which schema 0 reads"):
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
    assert found.bad_rows.reasons == {"label click: expected 0 or 1, got 'maybe'": 2, "click is missing": 1}
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
    with pytest.warns(UserWarning, match=r"several meanings: a \('1,325'\); --thousands and --decimal say"):
        assert infer_format(texts(a=["1,325", "2,000"]), ";", PLAIN_TEXT) == PLAIN_TEXT
    given = TextFormat(decimal=",")
    assert infer_format(texts(a=["1,325", "2,000"]), ";", given) == given


def test_forms_of_dates():
    assert infer_dates("at", pa.array(["13/01/2024", "01/02/2024", None])) == ("%d/%m/%Y",)
    assert infer_dates("at", pa.array(["01/13/2024 1:05 PM", "01/02/2024 2:00 AM"])) == ("%m/%d/%Y %I:%M %p",)
    assert infer_dates("at", pa.array(["soon"])) == ()
    for values in (["01/02/2024", "03/04/2024"], ["13/01/2024", "01/13/2024"]):
        with pytest.raises(DataError, match=r"at: the form of times such as '.*' may be '%d/%m/%Y' or '%m/%d/%Y'"):
            infer_dates("at", pa.array(values))


def test_options_of_fields(tmp_path):
    columns = table()
    pq.write_table(pa.table(columns), tmp_path / "log.parquet")
    source = infer_schema(
        [tmp_path / "log.parquet"], ["click"], dense=["price"], hash={"user": 1000}, min_count=5, ignore=["at"]
    )
    assert source["fields"] == {
        "user": {"kind": "categorical", "hashed": 1000},
        "price": "dense",
        "title": "categorical",
    }
    assert source["defaults"] == {"min_count": 5}
