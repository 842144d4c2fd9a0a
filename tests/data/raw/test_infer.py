import datetime
import decimal
import threading

import numpy as np
import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.parquet as pq
import pytest

from adaftr_fast.data.prepare.run import prepare
from adaftr_fast.data.raw.infer import infer_schema
from adaftr_fast.data.raw.inputs import SAMPLE, open_input
from adaftr_fast.data.schema.parse import parse_schema
from adaftr_fast.data.schema.types import PLAIN_TEXT
from adaftr_fast.errors import DataError


@pytest.fixture
def log(tmp_path):
    rows = 100
    table = pa.table(
        {
            "at": [
                datetime.datetime(2020, 1, 1) + datetime.timedelta(hours=n // 2)
                for n in range(rows)
            ],
            "user": [f"u{n % 30}" for n in range(rows)],
            "item": [n % 7 for n in range(rows)],
            "price": [0.5 * n for n in range(rows)],
            "new": [n % 3 == 0 for n in range(rows)],
            "click": [n % 2 for n in range(rows)],
            "buy": [int(n % 4 == 1) for n in range(rows)],
            "w": [1.0 + n % 2 for n in range(rows)],
            "note": ["x"] * rows,
        }
    )
    pq.write_table(table, tmp_path / "log.parquet")
    csv.write_csv(table, tmp_path / "log.csv")
    return tmp_path


@pytest.mark.parametrize("name", ["log.parquet", "log.csv"])
def test_fields_and_a_split_by_time(log, name):
    source = infer_schema(
        [log / name], ["click", "buy"], group="user", time="at", weight="w", ignore=["note"]
    )
    assert source["name"] == "log"
    assert source["fields"] == {
        "user": "categorical",
        "item": "categorical",
        "price": "numeric",
        "new": "categorical",
    }
    assert source["ignore"] == ["note"]
    manifest = prepare(parse_schema(source), [log / name], log / "out")
    assert {split: info.rows for split, info in manifest.splits.items()} == {
        "train": 80,
        "validation": 10,
        "test": 10,
    }
    assert (manifest.tasks, manifest.group, manifest.weight) == (["click", "buy"], "user", "w")


def test_without_a_time_users_are_kept_together(log):
    source = infer_schema([log / "log.csv"], ["click"], group="user", ignore=["buy", "w", "note"])
    assert "at" not in source["fields"]
    assert source["split"]["validation"] == {"hash": {"column": "user", "start": 0.8, "stop": 0.9}}
    assert infer_schema([log / "log.csv"], ["click"])["split"]["train"] == {
        "hash": {"start": 0.0, "stop": 0.8}
    }


@pytest.mark.parametrize("marks", [(",", "."), (".", ",")])
def test_text_of_a_table_is_read_as_that_of_a_text_file(tmp_path, marks):
    """Integers, such as codes of places, are categorical fields; empty text is no value."""
    thousands, decimal = marks
    columns = {
        "price": [f"1{thousands}325{decimal}50", "", "12", "NA"],
        "rate": [f"1{decimal}5", f"0{decimal}25", "", "2"],
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
    with logs[0].open("wb") as file:
        csv.write_csv(table, file, csv.WriteOptions(delimiter=";"))
    kinds = {
        "rate": pa.dictionary(pa.int32(), pa.string()),
        "zip": pa.large_string(),
        "token": pa.large_string(),
    }
    pq.write_table(
        table.cast(pa.schema([(name, kinds.get(name, pa.string())) for name in columns])), logs[1]
    )
    with pytest.warns(UserWarning, match="price|token") as warned:
        of_text, of_table = (infer_schema([log], ["y"], time="at") for log in logs)
    assert of_table == of_text
    messages = [str(each.message).split(": ", 1)[1] for each in warned]
    assert messages[:2] == messages[2:]
    assert messages[0].startswith(f"price: read as numbers with thousands {thousands!r}")
    assert messages[1].startswith(
        "read as ids, not as numbers: token (whole numbers up to 1.23e+19"
    )
    fields = dict.fromkeys(columns, "categorical") | {"price": "numeric", "rate": "numeric"}
    assert of_table["fields"] == {
        name: fields[name] for name in columns if name not in ("day", "at", "y")
    }
    assert of_table["text"]["null"] == ["NA"]
    for log in logs:
        prepare(parse_schema(of_text), [log], tmp_path / log.suffix)
    for split in ("train", "validation", "test"):
        of_text, of_table = (
            pq.read_table(tmp_path / log.suffix / f"{split}.parquet") for log in logs
        )
        assert of_table.equals(of_text)


@pytest.mark.parametrize(
    "kind", [pa.list_(pa.int64()), pa.large_list(pa.int64()), pa.list_(pa.int64(), 2)]
)
def test_lists_are_read_by_all_tokens(tmp_path, kind):
    seen = pa.array([[1, 2], None, [2, 2]] * 20, kind)
    pq.write_table(
        pa.table({"seen": seen, "at": range(60), "y": [0, 1, 0] * 20}), tmp_path / "log.parquet"
    )
    source = infer_schema([tmp_path / "log.parquet"], ["y"], time="at")
    assert source["fields"] == {"seen": {"kind": "categorical", "tokens": "all"}}
    prepare(parse_schema(source), [tmp_path / "log.parquet"], tmp_path / "out")
    assert pq.read_table(tmp_path / "out/train.parquet")["seen"].to_pylist()[:3] == [
        [2, 1],
        [],
        [1, 1],
    ]


def test_invalid_values_are_named(log):
    with pytest.raises(DataError, match=r"log\.csv: no column 'clik'; the file has at, user"):
        infer_schema([log / "log.csv"], ["clik"])
    with pytest.raises(DataError, match="no such file"):
        infer_schema([log / "absent.csv"], ["click"])
    schema = parse_schema(infer_schema([log / "log.parquet"], ["click"], time="new"))
    with pytest.raises(DataError, match="new: expected at least 3 different times, got 2"):
        prepare(schema, [log / "log.parquet"], log / "out")


def test_handlers_of_bad_rows_run_in_no_thread_of_arrow(tmp_path, monkeypatch):
    """A thread of Arrow that still holds a Python object when the interpreter ends aborts the
    process.
    """
    threads, options = [], csv.ParseOptions

    def spied(*, invalid_row_handler, **named):
        def handler(row):
            threads.append(threading.current_thread())
            return invalid_row_handler(row)

        return options(invalid_row_handler=handler, **named)

    monkeypatch.setattr(csv, "ParseOptions", spied)
    rows = [f"{number},{number % 2},{number}" for number in range(100)]
    (tmp_path / "log.csv").write_text("\n".join(["id,y,at", "too,few", *rows]))
    schema = parse_schema(infer_schema([tmp_path / "log.csv"], ["y"], time="at"))
    manifest = prepare(schema, [tmp_path / "log.csv"], tmp_path / "out", bad_rows=0.1)
    assert manifest.bounds["test"] == "at >= 90"
    assert len(threads) > 1
    assert not any(isinstance(each, threading._DummyThread) for each in threads)


def test_hashes_of_64_bits_are_ids(tmp_path):
    """They exceed int64, so Arrow reads them as floats, of which twenty buckets would remain."""
    hashes = np.random.default_rng(0).integers(2**63, 2**64, 200, dtype=np.uint64)
    rows = [f"{hashes[n % 200]},{n * 0.5},{n % 3 // 2}" for n in range(2000)]
    log = tmp_path / "log.csv"
    log.write_text("\n".join(["viewer,price,click", *rows]) + "\n")
    with pytest.warns(
        UserWarning,
        match=r"log.csv: read as ids, not as numbers: viewer \(whole numbers .* beyond 2\^53",
    ):
        source = infer_schema([log], ["click"])
    assert source["fields"] == {"viewer": "categorical", "price": "numeric"}
    assert prepare(parse_schema(source), [log], tmp_path / "out").num_embeddings == [201, 21]


def test_whole_floats_are_ids_by_name_or_size(tmp_path):
    columns = {
        "user_id": [1.0, None, 3.0],  # as pandas writes integers with missing values
        "Item": [7.0, 8.0, 9.0],
        "adId": [7.0, 8.0, None],
        "age": [30.0, None, 41.0],
        "paid": [1.0, 2.0, 3.0],
        "gross_id": [0.5, 1.0, 2.0],
        "token": [1e18, 2e18, None],
        "mass": [1e30, 0.5, None],
        "empty_id": pa.array([None, float("nan"), None], pa.float64()),
        "card": pa.array(
            [decimal.Decimal(2**62 + number) for number in range(3)], pa.decimal128(38, 0)
        ),
        "price": pa.array(
            [decimal.Decimal(number).scaleb(-2) for number in range(3)], pa.decimal128(9, 2)
        ),
    }
    pq.write_table(pa.table(columns | {"y": [0, 1, 1]}), tmp_path / "log.parquet")
    lost = (
        r"token \(.* beyond 2\^53; floats have lost digits of them already: .*\); card \(.* beyond "
        r"2\^53\)$"
    )
    with pytest.warns(UserWarning, match=rf"user_id .*name of an id.*Item.*adId.*{lost}"):
        fields = infer_schema([tmp_path / "log.parquet"], ["y"])["fields"]
    ids = {column for column, kind in fields.items() if kind == "categorical"}
    assert ids == {"user_id", "Item", "adId", "token", "card"}
    assert fields.keys() == columns.keys()


@pytest.mark.parametrize(
    ("name", "times", "got"),
    [
        ("log.csv", [f"{1 + n % 28:02d}~05~2026 10:00" for n in range(60)], "'01~05~2026 10:00'"),
        ("log.parquet", [f"{n}h" for n in range(60)], "'0h'"),  # 10h before 9h
        (
            "log.csv",
            ["2026-05-01T10,5", "2026-05-01 11,5"] * 30,
            "'2026-05-01T10,5' and '2026-05-01 11,5'",
        ),
        (
            "log.parquet",
            ["2026-05-01 10,5+01:00", "2026-05-01 10,5Z"] * 30,
            "'2026-05-01 10,5[+]01:00' and '2026-05-01 10,5Z'",
        ),
    ],
)
def test_times_that_do_not_sort_as_text_are_refused(tmp_path, name, times, got):
    table = pa.table(
        {"at": times, "user": [f"u{n % 7}" for n in range(60)], "click": [n % 2 for n in range(60)]}
    )
    (csv.write_csv if name.endswith("csv") else pq.write_table)(table, tmp_path / name)
    expected = "expected numbers, timestamps, or text of one form of ISO 8601, which sorts by time"
    with pytest.raises(DataError, match=f"{name}: time at: {expected}; got {got}$"):
        infer_schema([tmp_path / name], ["click"], time="at")


@pytest.mark.parametrize("form", ["%Y-%m-%dT%H:%M:%SZ", "%Y-%m-%d %H:%M:%S.%f", "%Y%m%d"])
def test_text_of_iso_8601_is_ordered(tmp_path, form):
    log = pq_log(tmp_path, form)
    manifest = prepare(
        parse_schema(infer_schema([log], ["click"], time="at")), [log], tmp_path / "out"
    )
    assert manifest.bounds["test"] == f"at >= {day(90).strftime(form)}"


def day(number):
    return datetime.datetime(2026, 1, 1) + datetime.timedelta(days=number)


def pq_log(folder, form):
    """A log of a hundred days, not in order, whose times are text."""
    numbers = np.random.default_rng(0).permutation(100)
    columns = {
        "at": [day(int(n)).strftime(form) for n in numbers],
        "user": [f"u{n}" for n in numbers],
    }
    pq.write_table(pa.table(columns | {"click": numbers % 2}), folder / "log.parquet")
    return folder / "log.parquet"


def test_few_of_the_first_rows_are_read_where_rows_are_wide(tmp_path):
    row = pa.array([np.arange(1 << 15)])
    # 84 MB
    log = pa.table(
        {"click": np.arange(320) % 2, "seen": row.take(pa.array(np.zeros(320, np.int64)))}
    )
    pq.write_table(log, tmp_path / "log.parquet")
    rows = open_input(tmp_path / "log.parquet", PLAIN_TEXT).first(["click", "seen"])
    assert 0 < rows.nbytes < 2 * SAMPLE.batch
    assert infer_schema([tmp_path / "log.parquet"], ["click"])["fields"]["seen"]["tokens"] == "all"


def test_commas_in_text_of_a_table_are_no_decimals_without_thousands(tmp_path):
    """They may be lists, of which the first rows have few tokens."""
    columns = {"seen": ["7", "12,3", "4,11", "5"] * 20, "y": ["0", "1"] * 40}
    pq.write_table(pa.table(columns), tmp_path / "log.parquet")
    with pytest.warns(UserWarning, match="seen .'12,3'.; --thousands and --decimal"):
        source = infer_schema([tmp_path / "log.parquet"], ["y"])
    assert source["fields"] == {"seen": "categorical"}
    assert "text" not in source
    columns["price"] = ["1.325,50", "2,5"] * 40
    pq.write_table(pa.table(columns), tmp_path / "log.parquet")
    with pytest.warns(UserWarning, match="read as numbers with thousands '.'"):
        source = infer_schema([tmp_path / "log.parquet"], ["y"], ignore=["seen"])
    assert source["fields"] == {"price": "numeric"}


def test_columns_that_are_no_fields_are_not_read(tmp_path):
    """Such as text that is not UTF-8, which `ignore` names."""
    broken = pa.Array.from_buffers(
        pa.string(), 2, [None, *pa.array([b"\xff", b"\xfe"]).buffers()[1:]]
    )
    table = pa.table(
        {
            "old": pa.chunked_array([broken] * 20),
            "rate": ["1.5", " 2.5 "] * 20,
            "y": ["0", "1"] * 20,
        }
    )
    pq.write_table(table, tmp_path / "log.parquet")
    source = infer_schema([tmp_path / "log.parquet"], ["y"], ignore=["old"])
    assert source["fields"] == {"rate": "numeric"}
    prepare(parse_schema(source), [tmp_path / "log.parquet"], tmp_path / "out")
    values = pq.read_table(tmp_path / "out/train.parquet")["rate"]
    assert len(values.unique()) == 2
    assert values.null_count == 0
