"""Logs as people have them: several files, words for missing values, marks of numbers, dates,
labels, line ends.
"""

import datetime
import re
import warnings

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
from adaftr_fast.data.schema.parse import parse_schema
from adaftr_fast.data.schema.types import PLAIN_TEXT, SPLITS, TextFormat
from adaftr_fast.errors import DataError
from adaftr_fast.extras.streaming.messages import RowReader
from tests.logs import by_hash

ROWS = 400


def test_words_that_may_mean_missing_are_named():
    columns = {"place": pa.array(["NA", "a", "b c"]), "os": pa.array(["x", "null", None])}
    message = "read as values, not as missing: place: 'NA'; os: 'null'; --null NA null "
    with pytest.warns(UserWarning, match=message):
        assert infer_format(columns, ",", PLAIN_TEXT).null == ()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        infer_format(columns, ",", TextFormat(null=("NA",)))
        infer_format(columns | {"n": pa.array(["NA", "null", "1"])}, ",", PLAIN_TEXT)


@pytest.fixture
def log():
    """A log with columns of plain values."""
    start = datetime.datetime(2024, 1, 1)
    step = datetime.timedelta(hours=6)
    return {
        "user": [f"u{n % 31}" for n in range(ROWS)],
        "price": [None if n % 10 == 0 else 1000.25 * (n % 7 + 1) for n in range(ROWS)],
        "title": [f"line {n % 3}" for n in range(ROWS)],
        "at": [start + n * step for n in range(ROWS)],
        "click": [n % 3 == 0 for n in range(ROWS)],
    }


def write(path, table, delimiter=","):
    """Writes a table as parquet or as text, compressed or not; returns the path."""
    if path.suffix == ".parquet":
        pq.write_table(table, path)
    else:
        with pa.output_stream(path) as file:
            csv.write_csv(table, file, csv.WriteOptions(delimiter=delimiter))
    return path


def encoded(prepared):
    """The rows of two splits, with None for NaN, which equals nothing."""
    return {
        name: [
            {key: None if value != value else value for key, value in row.items()}
            for row in read_split(prepared.folder, prepared.manifest, name).to_pylist()
        ]
        for name in ("train", "test")
    }


def test_a_messy_log_of_two_files_is_read_as_its_plain_values(log, tmp_path):
    log["title"] = [value.replace(" ", "\n") for value in log["title"]]
    log["at"] = [at if n % 2 else at.replace(hour=0) for n, at in enumerate(log["at"])]
    write(tmp_path / "plain.parquet", pa.table(log))
    messy = log | {
        "price": ["NA" if value is None else f"{value:,.2f}" for value in log["price"]],
        "at": [
            f"{at:%d/%m/%Y %H:%M}" if n % 2 else f"{at:%Y-%m-%d}" for n, at in enumerate(log["at"])
        ],
        "click": [("no", "Yes")[value] for value in log["click"]],
    }
    messy = pa.table(messy)
    parts = [messy[:150], messy[150:].select(messy.column_names[::-1])]
    files = [write(tmp_path / f"{n}.csv.gz", part) for n, part in enumerate(parts)]
    options = {"labels": "click", "group": "user", "time": "at", "progress": False}
    whole = prepare(tmp_path / "plain.parquet", tmp_path / "whole", **options)
    found = prepare(files, tmp_path / "found", **options)
    assert found.manifest.parsed.text == TextFormat(
        ("NA",), ",", ".", ("%d/%m/%Y %H:%M", "%Y-%m-%d"), True
    )
    account = f"{ROWS} lines below the header = {ROWS} rows kept + 0 left out"
    assert found.manifest.bad_rows.account() == account
    assert encoded(found) == encoded(whole)
    assert found.manifest.fields == whole.manifest.fields


def test_a_folder_of_text_is_one_log(log, tmp_path):
    table = pa.table(log)
    folder = tmp_path / "log"
    folder.mkdir()
    for n in range(4):
        write(folder / f"{n}.csv", table[100 * n : 100 * n + 100])
    options = {"labels": "click", "progress": False}
    whole = prepare(write(tmp_path / "whole.csv", table), tmp_path / "whole", **options)
    assert encoded(prepare(folder, tmp_path / "found", **options)) == encoded(whole)
    write(folder / "4.parquet", table)
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


@pytest.mark.parametrize("kind", ["csv", "table"])
def test_labels_are_words_and_others_are_bad_rows(log, tmp_path, kind):
    words = ["1.0", "yes", "T", "True", "0", "f", "FALSE", "No "]
    log["click"] = [words[n % 8] for n in range(ROWS)]
    log["click"][3:6] = ["maybe", None, "maybe"]
    files = pa.table(log)
    if kind == "csv":
        files = write(tmp_path / "log.csv", files)
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
        (texts(a=["1,325", "2,000"]), ",", TextFormat(thousands=",")),
        (texts(a=["1,3", "2"]), ",", PLAIN_TEXT),  # may be a list
        (texts(a=["1,325e3", "1,325.45"]), ",", PLAIN_TEXT),
        (texts(a=["NA", "Asia"], b=["x", "\\N"]), ",", TextFormat(null=("\\N",))),
    ],
)
def test_what_text_means_is_inferred_where_it_is_plain(columns, delimiter, expected):
    assert infer_format(columns, delimiter, PLAIN_TEXT) == expected


def test_marks_of_several_meanings_stay_text():
    message = r"several meanings: a \('1.*'\); --thousands and --decimal .* say"
    for values, delimiter in ((["1,325", "2,000"], ";"), (["101,202,303", "101", "404,505"], "\t")):
        with pytest.warns(UserWarning, match=message):
            assert infer_format(texts(a=values), delimiter, PLAIN_TEXT) == PLAIN_TEXT
    given = TextFormat(decimal=",")
    assert infer_format(texts(a=["1,325", "2,000"]), ";", given) == given


def test_forms_of_dates():
    for values, form in (
        (["13/01/2024", "01/02/2024", None], "%d/%m/%Y"),
        (["13/01/98", "01/02/01"], "%d/%m/%y"),
        (["01/13/2024 1:05 PM", "01/02/2024 2:00 AM"], "%m/%d/%Y %I:%M %p"),
    ):
        assert infer_dates("at", pa.array(values)) == (form,)
    assert infer_dates("at", pa.array(["soon"])) == ()
    for values in (["01/02/2024", "03/04/2024"], ["13/01/2024", "01/13/2024"]):
        with pytest.raises(
            DataError, match=r"at: the form of times such as '.*' may be '%d/%m/%Y' or '%m/%d/%Y'"
        ):
            infer_dates("at", pa.array(values))


def test_stray_quotes_cost_their_lines_alone(tmp_path, monkeypatch):
    """Two of them must not make one value of all lines between, whether other values hold line ends
    or not.
    """
    path = tmp_path / "log.csv"
    lines = ["click,user,query", *(f"{n % 2},{n % 7},shoes" for n in range(900)), ""]
    lines[101], lines[701] = '1,3,"best shoes', '0,3,"cheap tv'
    account = "900 lines below the header = 898 rows kept + 2 left out"
    for value in ("two lines", "two\nlines"):
        lines[6] = f'1,3,"{value}"'
        path.write_text("\n".join(lines))
        found = prepare(path, tmp_path / "out", labels="click", progress=False, bad_rows=0.01)
        assert found.manifest.bad_rows.account() == account
        assert found.manifest.bad_rows.reasons == {"the line ends inside quotes": 2}
    assert found.manifest.parsed.text.line_ends
    monkeypatch.setattr(staging, "BLOCK_BYTES", 500)
    monkeypatch.setattr(text, "LONGEST_VALUE", 50)
    found = run.prepare(found.manifest.parsed, [path], tmp_path / "other", bad_rows=0.01)
    assert found.bad_rows.account() == account
    # a header and a line end before
    assert [each.split(":")[1] for each in found.bad_rows.examples] == ["103", "703"]


def test_text_of_numbers_is_read_once_from_files_and_from_memory(tmp_path):
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
        "split": by_hash(0.8, 0.9),
        "fields": {"p": "numeric", "q": {"kind": "dense", "column": "p"}, "k": "categorical"},
    }
    schema = parse_schema(source)
    found = []
    rows = []
    for name in ("log.csv", "log.parquet"):
        path = write(tmp_path / name, pa.table(columns), delimiter=";")
        found.append(run.prepare(schema, [path], tmp_path / path.suffix))
        rows.append(read_split(tmp_path / path.suffix, found[-1], "train"))
    (one, other) = found
    assert (one.fields, one.dense, one.unused) == (other.fields, other.dense, other.unused)
    assert str(rows[0].to_pylist()) == str(rows[1].to_pylist())  # nan is not equal to itself
    values = {round(each, 3) for each in rows[0]["q"].to_pylist() if each == each}
    assert values == {0.025, 1125.5, 299.5}
    read, reasons = RowReader(schema).read(
        [b'{"click": 1, "k": "a", "p": "1.125,5"}', b'{"click": "no", "k": "-", "p": "-"}']
    )
    assert reasons == [None, None]
    assert read.to_pylist() == [
        {"p": 1125.5, "k": "a", "click": 1},
        {"p": None, "k": None, "click": 0},
    ]


def test_ids_and_empty_columns_are_not_read_by_marks(tmp_path):
    columns = {
        "user_id": [f"{1000 + n:,}" for n in range(60)],
        "empty": pa.nulls(60, pa.string()),
        "click": [n % 2 for n in range(60)],
    }
    path = write(tmp_path / "log.csv", pa.table(columns))
    with pytest.warns(
        UserWarning, match="user_id: read as numbers with thousands ','|read as ids, .* user_id"
    ):
        source = infer_schema([path], ["click"])
    assert source["fields"] == {"user_id": "categorical", "empty": "categorical"}


def test_options_of_text_hold_for_tables_too(tmp_path):
    columns = {
        "k": ["-", "a"] * 50,
        "p": ["299,5", "3"] * 50,
        "click": [n % 3 % 2 for n in range(100)],
    }
    options = {"labels": "click", "null": "-", "decimal": ",", "progress": False}
    found = prepare(pa.table(columns), tmp_path / "out", **options)
    assert [row[1] for row in found.fields().rows if row[0] == "p"] == ["dense, piecewise"]
    assert found.manifest.schema["text"] == {"null": ["-"], "decimal": ","}
    assert found.manifest.values["k"].distinct == 1
    train = found.manifest.splits["train"]
    assert 0 < train.unknown["k"] < train.rows


def test_ids_grow_whatever_the_order_of_the_columns(log, tmp_path):
    table = pa.table(log)
    options = {"labels": "click", "ignore": "at", "progress": False}
    first = prepare(table, tmp_path / "first", **options)
    table = table.select(table.column_names[::-1])
    found = prepare(table, tmp_path / "next", grow=first.folder, **options).manifest
    names = [field.name for field in first.manifest.fields]
    assert [field.name for field in found.fields] == names
    assert found.num_embeddings == first.manifest.num_embeddings


def test_integers_of_text_have_the_ids_of_integers(tmp_path, monkeypatch):
    """Also where only some blocks of the text are integers, and of values that are as frequent."""
    monkeypatch.setattr(staging, "BLOCK_BYTES", 2_000)
    some = [n % 97 for n in range(2_000)]
    code = [*map(str, some[20:]), "007", "x", *["-5"] * 18]
    log = pa.table({"n": some, "code": code, "click": [n % 3 % 2 for n in some]})
    schema = {
        "name": "log",
        "labels": {"click": "click"},
        "split": by_hash(0.6, 0.8),
        "fields": dict.fromkeys(["n", "code"], "categorical"),
    }
    found = []
    for name in ("log.csv", "log.parquet"):
        write(tmp_path / name, log)
        manifest = run.prepare(parse_schema(schema), [tmp_path / name], tmp_path / name[3:])
        rows = [read_split(tmp_path / name[3:], manifest, split) for split in SPLITS]
        found.append((manifest.fingerprint, rows))
    assert found[0] == found[1]


@pytest.mark.parametrize("kind", [pa.string(), pa.dictionary(pa.int32(), pa.string())])
def test_integers_of_text_are_text_beside_a_parquet_file_of_text(tmp_path, kind):
    click = [n % 3 % 2 for n in range(200)]
    integers = pa.table({"n": pa.array(["7", "8"] * 100), "click": click})
    texts = pa.table({"n": pa.array(["7", "x"] * 100).cast(kind), "click": click})
    for name, table in (("i.csv", integers), ("i.parquet", integers), ("t.parquet", texts)):
        write(tmp_path / name, table)
    source = {"name": "log", "labels": {"click": "click"}, "fields": {"n": "categorical"}}
    schema = parse_schema(source | {"split": by_hash(0.6, 0.8)})
    for files in (["i.csv", "t.parquet"], ["t.parquet", "i.csv"]):
        found = []
        for folder, suffix in (("mixed", ".csv"), ("parquet", ".parquet")):
            paths = [tmp_path / name.replace(".csv", suffix) for name in files]
            manifest = run.prepare(schema, paths, tmp_path / folder)
            rows = [read_split(tmp_path / folder, manifest, split) for split in SPLITS]
            found.append((manifest.fingerprint, rows))
        assert found[0] == found[1]


def test_forms_of_times_with_and_without_a_zone_name_the_option(tmp_path, log):
    times = [f"{at:%Y-%m-%d %H:%M:%S}" for at in log["at"]]
    times[1::2] = [f"{at:%Y-%m-%dT%H:%M:%SZ}" for at in log["at"][1::2]]
    path = write(tmp_path / "log.csv", pa.table(log | {"at": times}))
    with pytest.raises(DataError, match=r"; --dates .*'%Y-%m-%dT%H:%M:%SZ'$") as error:
        infer_schema([path], ["click"], time="at")
    forms = re.findall("'(%.*?)'", str(error.value))
    data = prepare(path, tmp_path / "out", labels="click", time="at", dates=forms, progress=False)
    assert sum(split.rows for split in data.manifest.splits.values()) == ROWS


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_labels_are_words_in_one_file_and_booleans_in_another(tmp_path, log, order):
    words = pa.table(log | {"click": [("no", "yes")[click] for click in log["click"]]})
    files = [write(tmp_path / "a.csv", words), write(tmp_path / "b.parquet", pa.table(log))]
    data = prepare([files[n] for n in order], tmp_path / "out", labels="click", progress=False)
    assert data.manifest.total.positives == {"click": 2 * sum(log["click"])}


def test_a_column_of_another_type_names_the_text_file(tmp_path, log):
    words = pa.table(log | {"title": [["x"]] * ROWS})
    files = [write(tmp_path / "b.parquet", words), write(tmp_path / "a.csv", pa.table(log))]
    message = (
        r"^\S*a.csv: column 'title' is string, in \S*b.parquet it is list<.*>; the files of a log"
    )
    with pytest.raises(DataError, match=message):
        prepare(files, tmp_path / "out", labels="click", progress=False)


def test_files_of_the_same_content_are_named(tmp_path, log):
    files = [write(tmp_path / name, pa.table(log)) for name in ("a.csv", "b.csv")]
    with pytest.warns(UserWarning, match="b.csv: has the same content as .*a.csv, so each"):
        prepare(files, tmp_path / "out", labels="click", progress=False)
    for path in files[1:]:
        path.write_text(path.read_text().partition("\n")[0] + "\n")
    files.append(write(tmp_path / "c.csv", pa.table(log).slice(0, 0)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # none of files of a header alone
        prepare(files, tmp_path / "out", labels="click", progress=False)
