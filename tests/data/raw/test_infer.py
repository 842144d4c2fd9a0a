import datetime
import decimal
import threading
import warnings

import numpy as np
import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.parquet as pq
import pytest

from adaftr_fast.data.prepare.run import prepare
from adaftr_fast.data.raw.infer import infer_schema
from adaftr_fast.data.raw.inputs import SAMPLE, open_input
from adaftr_fast.data.raw.times import unsorted_times
from adaftr_fast.data.schema.parse import parse_schema
from adaftr_fast.data.schema.types import PLAIN_TEXT
from adaftr_fast.errors import DataError


@pytest.fixture
def write(tmp_path):
    """Writes columns as parquet, or as text by the name of the file; returns the path."""

    def write(columns, name="log.parquet"):
        path = tmp_path / name
        (pq.write_table if path.suffix == ".parquet" else csv.write_csv)(pa.table(columns), path)
        return path

    return write


@pytest.fixture
def prepared(tmp_path):
    """Prepares files with a schema as it is inferred; returns the manifest."""

    def prepared(source, path, name="out", **options):
        return prepare(parse_schema(source), [path], tmp_path / name, **options)

    return prepared


PIECEWISE = {"kind": "dense", "encoding": "piecewise"}
START = datetime.datetime(2020, 1, 1)
LOG = {
    "at": [START + datetime.timedelta(hours=n // 2) for n in range(100)],
    "user": [f"u{n % 30}" for n in range(100)],
    "item": [n % 7 for n in range(100)],
    "price": [0.5 * n for n in range(100)],
    "cost": [0.25 * n for n in range(100)],
    "new": [n % 3 == 0 for n in range(100)],
    "click": [n % 2 for n in range(100)],
    "buy": [int(n % 4 == 1) for n in range(100)],
    "w": [1.0 + n % 2 for n in range(100)],
    "note": ["x"] * 100,
}


@pytest.mark.parametrize("name", ["log.parquet", "log.csv"])
def test_fields_and_a_split_by_time(write, prepared, name):
    roles = {"group": "user", "time": "at", "weight": "w", "ignore": ["note"]}
    kinds = {"dense": ["cost"], "hash": {"item": 1000}, "min_count": 2}
    path = write(LOG, name)
    source = infer_schema([path], ["click", "buy"], **roles, **kinds)
    assert source["name"] == "log"
    assert source["fields"] == {
        "user": "categorical",
        "item": {"kind": "categorical", "hashed": 1000},
        "price": PIECEWISE,
        "cost": "dense",
        "new": "categorical",
    }
    assert (source["ignore"], source["defaults"]) == (["note"], {"min_count": 2})
    manifest = prepared(source, path)
    rows = {split: info.rows for split, info in manifest.splits.items()}
    assert rows == {"train": 80, "validation": 10, "test": 10}
    assert (manifest.tasks, manifest.group, manifest.weight) == (["click", "buy"], "user", "w")
    source = infer_schema([path], ["click"], group="user")
    assert "at" not in source["fields"]
    assert "user" not in source["fields"]
    assert source["ignore"] == ["at", "user"]
    assert "user" in infer_schema([path], ["click"], group="user", keep_group=True)["fields"]
    assert source["split"]["validation"] == {"hash": {"column": "user", "start": 0.8, "stop": 0.9}}
    assert infer_schema([path], ["click"])["split"]["train"] == {
        "hash": {"start": 0.0, "stop": 0.8}
    }


def test_text_of_a_table_is_read_as_that_of_a_text_file(tmp_path, prepared):
    """Integers, such as codes of places, are categorical fields; empty text is no value."""
    columns = {
        "price": ["1.325,50", "", "12", "NA"],
        "rate": ["1,5", "0,25", "", "2"],
        "zip": ["06100", "75001", "", "06200"],
        "age": ["30", "41", "NA", ""],
        "token": ["12345678901234567890", "12345678901234567891", "3", "NA"],
        "day": ["2026-05-01", "2026-05-02", "", "2026-05-01"],
        "member": ["true", "", "false", "true"],
        "word": ["NA", "a", "b", "1"],
        "at": ["7.5.2026 10:00", "13.5.2026 11:30", "14.5.2026 1:00", "13.5.2026 12:00"],
        "y": ["no", "yes", "yes", "no"],
    }
    table = pa.table({name: values * 20 for name, values in columns.items()})
    logs = [tmp_path / "log.csv", tmp_path / "log.parquet"]
    csv.write_csv(table, logs[0], csv.WriteOptions(delimiter=";"))
    kinds = dict.fromkeys(columns, pa.string())
    kinds |= {"rate": pa.dictionary(pa.int32(), pa.string()), "zip": pa.large_string()}
    pq.write_table(table.cast(pa.schema(list(kinds.items()))), logs[1])
    with pytest.warns(UserWarning, match="price|token") as warned:
        of_text, of_table = (infer_schema([log], ["y"], time="at") for log in logs)
    assert of_table == of_text
    messages = [str(each.message).split(": ", 1)[1] for each in warned]
    assert messages[:3] == messages[3:]
    assert messages[0].startswith("price: read as numbers with thousands '.'")
    assert messages[1].startswith(
        "read as ids, not as numbers: token (whole numbers up to 1.23e+19"
    )
    assert messages[2] == (
        "76 of the first 80 rows are copies of another one in every column; each is read as a row"
    )
    fields = dict.fromkeys(columns, "categorical") | {"price": PIECEWISE, "rate": PIECEWISE}
    assert of_table["fields"] == {
        name: fields[name] for name in columns if name not in ("day", "at", "y")
    }
    assert of_table["text"]["null"] == ["NA"]
    for log in logs:
        prepared(of_text, log, log.suffix)
    for split in ("train", "validation", "test"):
        found = [pq.read_table(tmp_path / log.suffix / f"{split}.parquet") for log in logs]
        assert found[0].schema.equals(found[1].schema)
        np.testing.assert_equal(found[0].to_pydict(), found[1].to_pydict())  # with NaN


def test_integers_of_many_values_are_numbers_too(write, prepared):
    """But not those of few values, under the name of an id, or whose role the user names."""
    numbers = np.random.default_rng(0).integers(0, 30, 600)
    names = ["age", "item_id", "zip", "user"]
    columns = dict.fromkeys(names, numbers) | {"hour": numbers % 20, "age_number": numbers % 3}
    path = write(columns | {"y": numbers % 2}, "log.csv")
    source = infer_schema([path], ["y"], group="user", hash={"zip": 9})
    assert source["fields"] == {
        "age": "categorical",
        "item_id": "categorical",
        "zip": {"kind": "categorical", "hashed": 9},
        "hour": "categorical",
        "age_number": "categorical",
        "age_number_": {"column": "age"} | PIECEWISE,
    }
    assert source["ignore"] == ["user"]
    manifest = prepared(source, path)
    assert [each.name for each in manifest.dense] == ["age_number_"]


def test_lists_are_read_by_all_tokens(tmp_path, write, prepared):
    values = [[1, 2], None, [2, 2]] * 20
    number = pa.int64()
    kinds = {"list": pa.list_(number), "large": pa.large_list(number), "pair": pa.list_(number, 2)}
    columns = {name: pa.array(values, kind) for name, kind in kinds.items()}
    path = write(columns | {"at": range(60), "y": [0, 1, 0] * 20})
    source = infer_schema([path], ["y"], time="at")
    assert source["fields"] == {name: {"kind": "categorical", "tokens": "all"} for name in kinds}
    prepared(source, path)
    train = pq.read_table(tmp_path / "out/train.parquet")
    for name in kinds:
        assert train[name].to_pylist()[:3] == [[2, 1], [], [1, 1]]


def test_too_few_times_are_named(write, prepared):
    path = write(LOG)
    source = infer_schema([path], ["click"], time="new")
    with pytest.raises(DataError, match="new: expected at least 3 different times, got 2"):
        prepared(source, path)


def test_handlers_of_bad_rows_run_in_no_thread_of_arrow(tmp_path, prepared, monkeypatch):
    """A thread of Arrow that still holds a Python object when the interpreter ends aborts the
    process.
    """
    threads = []
    options = csv.ParseOptions

    def spied(*, invalid_row_handler, **named):
        def handler(row):
            threads.append(threading.current_thread())
            return invalid_row_handler(row)

        return options(invalid_row_handler=handler, **named)

    monkeypatch.setattr(csv, "ParseOptions", spied)
    rows = [f"{number},{number % 2},{number}" for number in range(100)]
    path = tmp_path / "log.csv"
    path.write_text("\n".join(["id,y,at", "too,few", *rows]))
    manifest = prepared(infer_schema([path], ["y"], time="at", ignore=["at"]), path, bad_rows=0.1)
    assert manifest.bounds["test"] == "at >= 90"
    assert len(threads) > 1
    assert not any(isinstance(each, threading._DummyThread) for each in threads)


def test_hashes_of_64_bits_are_ids(write, prepared):
    """They exceed int64, so Arrow reads them as floats, of which twenty buckets would remain."""
    hashes = np.random.default_rng(0).integers(2**63, 2**64, 200, dtype=np.uint64)
    numbers = np.arange(2000)
    columns = {"viewer": hashes[numbers % 200], "price": numbers * 0.5, "click": numbers % 3 // 2}
    log = write(columns, "log.csv")
    with pytest.warns(
        UserWarning,
        match=r"log.csv: read as ids, not as numbers: viewer \(whole numbers .* beyond 2\^53",
    ):
        source = infer_schema([log], ["click"])
    assert source["fields"] == {"viewer": "categorical", "price": PIECEWISE}
    manifest = prepared(source, log)
    assert manifest.num_embeddings == [201]
    assert [each.name for each in manifest.dense] == ["price"]


def test_whole_floats_are_ids_by_name_or_size(write):
    large = [decimal.Decimal(2**62 + number) for number in range(3)]
    columns = {
        "user_id": [1.0, None, 3.0],  # as pandas writes integers with missing values
        "adId": [7.0, 8.0, None],
        "paid": [1.0, 2.0, 3.0],
        "gross_id": [0.5, 1.0, 2.0],
        "token": [1e18, 2e18, None],
        "mass": [1e30, 0.5, None],
        "share": [float("inf"), 1.0, float("-inf")],
        "empty_id": pa.array([None, float("nan"), None], pa.float64()),
        "card": pa.array(large, pa.decimal128(38, 0)),
    }
    path = write(columns | {"y": [0, 1, 1]})
    lost = (
        r"token \(.* beyond 2\^53; floats have lost digits of them already: .*\); card \(.* beyond "
        r"2\^53\)$"
    )
    with pytest.warns(UserWarning, match=rf"user_id .*name of an id.*adId.*{lost}"):
        fields = infer_schema([path], ["y"])["fields"]
    ids = {column for column, kind in fields.items() if kind == "categorical"}
    assert ids == {"user_id", "adId", "token", "card"}
    assert fields.keys() == columns.keys()


def test_text_of_times_sorts_in_one_form_of_iso_8601(write, prepared):
    numbers = np.random.default_rng(0).permutation(100)
    days = [START + datetime.timedelta(days=int(n)) for n in numbers]
    for form in ("%Y-%m-%dT%H:%M:%SZ", "%Y-%m-%d %H:%M:%S.%f", "%Y%m%d"):
        times = [day.strftime(form) for day in days]
        assert unsorted_times(pa.array(times)) == []
    path = write({"at": times, "user": numbers, "click": numbers % 2})
    manifest = prepared(infer_schema([path], ["click"], time="at"), path)
    assert manifest.bounds["test"] == f"at >= {sorted(times)[90]}"
    for wrong in (["2026-05-01 10,5+01:00", "2026-05-01 10,5Z"], ["2026-05-01", "20260501"]):
        assert unsorted_times(pa.array(wrong * 2)) == wrong
    expected = "expected numbers, timestamps, or text of one form of ISO 8601, which sorts by time"
    for name in ("log.csv", "log.parquet"):
        path = write(
            {"at": [f"{n}h" for n in numbers], "click": numbers % 2}, name
        )  # 10h before 9h
        with pytest.raises(
            DataError, match=f"{name}: time at: {expected}; got '{numbers[0]}h'; --dates"
        ):
            infer_schema([path], ["click"], time="at")


def test_columns_of_json_are_named(write):
    objects = [f'{{"os": "{"ab"[n % 2]}", "version": {n % 3}}}' for n in range(40)]
    arrays = [f'["{n % 3}", "x"]' for n in range(40)]
    path = write(
        {"about": objects, "tags": arrays, "set": ["[A]"] * 40, "y": np.arange(40) % 2}, "log.csv"
    )
    message = (
        "log.csv: about, tags: read as one value each, though they hold JSON; --ignore about tags "
    )
    with pytest.warns(UserWarning, match=message):
        infer_schema([path], ["y"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        infer_schema([path], ["y"], ignore=["about", "tags"])


def test_rows_that_differ_in_lists_alone_are_no_copies(write):
    lists = [[number] for number in range(40)]
    path = write({"at": np.ones(40, int), "tags": lists, "y": np.arange(40) % 2}, "log.parquet")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        infer_schema([path], ["y"], time="at")


def test_few_of_the_first_rows_are_read_where_rows_are_wide(write):
    row = pa.array([np.arange(1 << 15)])
    lists = row.take(pa.array(np.zeros(320, np.int64)))  # 84 MB
    path = write({"click": np.arange(320) % 2, "seen": lists})
    assert 0 < open_input(path, PLAIN_TEXT).first(["click", "seen"]).nbytes < 2 * SAMPLE.batch
    assert infer_schema([path], ["click"])["fields"]["seen"]["tokens"] == "all"


def test_commas_in_text_of_a_table_are_no_decimals_without_thousands(write):
    """They may be lists, of which the first rows have few tokens."""
    columns = {"seen": ["7", "12,3", "4,11", "5"] * 20, "y": ["0", "1"] * 40}
    with pytest.warns(UserWarning, match="seen .'12,3'.; --thousands and --decimal"):
        source = infer_schema([write(columns)], ["y"])
    assert source["fields"] == {"seen": "categorical"}
    assert "text" not in source


def test_columns_that_are_no_fields_are_not_read(tmp_path, write, prepared):
    """Such as text that is not UTF-8, which `ignore` names."""
    broken = pa.Array.from_buffers(
        pa.string(), 2, [None, *pa.array([b"\xff", b"\xfe"]).buffers()[1:]]
    )
    columns = {"old": pa.chunked_array([broken] * 20), "rate": ["1.5", " 2.5 "] * 20}
    path = write(columns | {"y": ["0", "1"] * 20})
    source = infer_schema([path], ["y"], ignore=["old"])
    assert source["fields"] == {
        "rate": "numeric",
        "rate_number": {"column": "rate"} | PIECEWISE,
    }
    prepared(source, path)
    values = pq.read_table(tmp_path / "out/train.parquet")["rate"]
    assert len(values.unique()) == 2
    assert values.null_count == 0
