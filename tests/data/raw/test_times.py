import datetime

import pandas as pd
import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.parquet as pq
import pytest

from adaftr_fast.api.prepare import prepare
from adaftr_fast.data.prepare.run import prepare as run
from adaftr_fast.data.raw import inputs, times
from adaftr_fast.data.raw.infer import infer_schema
from adaftr_fast.data.raw.times import with_times
from adaftr_fast.data.schema.parse import parse_schema
from adaftr_fast.errors import DataError

ROWS = 100
SOURCE = {"name": "x", "labels": {"click": "click"}, "fields": {"user": "categorical"}}
SHARES = {"train": 80, "validation": 10, "test": 10}


def day(number):
    return datetime.datetime(2026, 1, 1) + datetime.timedelta(days=number)


def log(first, form="%Y-%m-%d", other=None):
    """A log of a hundred days from ``first``, every other of which may have another form."""
    times = [day(first + n).strftime(other if other and n % 2 else form) for n in range(ROWS)]
    columns = {
        "at": times,
        "user": [f"u{n % 7}" for n in range(ROWS)],
        "click": [n % 2 for n in range(ROWS)],
    }
    return pa.table(columns)


def rows(prepared):
    return {split: info.rows for split, info in prepared.manifest.splits.items()}


@pytest.mark.parametrize("other", [None, "%d/%m/%Y %H:%M"])
def test_a_schema_serves_the_log_of_the_next_month(tmp_path, other):
    for first in (0, 100):
        csv.write_csv(log(first, other=other), tmp_path / f"{first}.csv")
    schema = tmp_path / "mine.toml"
    options = {"group": "user", "time": "at", "progress": False}
    now = prepare(
        tmp_path / "0.csv", tmp_path / "now", labels="click", write_schema=schema, **options
    )
    then = prepare(
        tmp_path / "100.csv",
        tmp_path / "then",
        dataset=schema,
        grow=tmp_path / "now",
        progress=False,
    )
    assert rows(now) == rows(then) == SHARES
    assert f"test: at >= {day(190):%Y-%m-%d}" in str(then)
    assert now.manifest.fingerprint == then.manifest.fingerprint


def test_a_run_that_resumes_knows_its_times(tmp_path, monkeypatch):
    csv.write_csv(log(0), tmp_path / "log.csv")
    schema = parse_schema(infer_schema([tmp_path / "log.csv"], ["click"], time="at"))
    expected = run(schema, [tmp_path / "log.csv"], tmp_path / "expected")

    def fail(folder):
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        run(schema, [tmp_path / "log.csv"], tmp_path / "out", finish=fail)
    monkeypatch.setattr(times, "_quantiles", None)  # reads all times
    assert run(schema, [tmp_path / "log.csv"], tmp_path / "out") == expected


def test_a_file_of_a_header_alone_tells_no_type(tmp_path):
    """Text would sort 9 after 10."""
    (tmp_path / "a.csv").write_text("at,user,click\n")
    (tmp_path / "b.csv").write_text(
        "at,user,click\n" + "".join(f"{n},u{n % 7},{n % 2}\n" for n in range(ROWS))
    )
    files = [tmp_path / "a.csv", tmp_path / "b.csv"]
    data = prepare(files, tmp_path / "out", labels="click", time="at", progress=False)
    assert rows(data) == SHARES
    assert data.manifest.bounds["test"] == "at >= 90"


def write(path, times):
    """Writes a log with these times."""
    lines = (f"{time},u{n % 7},{n % 2}\n" for n, time in enumerate(times))
    path.write_text("at,user,click\n" + "".join(lines))
    return path


def by_time(**text):
    """A schema whose splits are the shares of time."""
    bounds = zip(SHARES, (0.0, 0.8, 0.9), (0.8, 0.9, 1.0))
    split = {
        name: {"time": {"column": "at", "start": start, "stop": stop}}
        for name, start, stop in bounds
    }
    return parse_schema(SOURCE | {"split": split, "text": text})


@pytest.fixture
def few_first_rows(monkeypatch):
    """Types are told by the first three lines or so."""
    monkeypatch.setattr(inputs, "SAMPLE_BYTES", 60)


@pytest.mark.parametrize(
    ("first", "later"),
    [
        ([1714550400 + n for n in range(50)], [f"{1714550450 + n}.25" for n in range(50)]),
        ([f"{day(n)}" for n in range(50)], [f"{day(50 + n)}.250000" for n in range(50)]),
        (
            [1700000000000000101 + n for n in range(50)],
            [1700000000000000151 + n for n in range(50)],
        ),
    ],
)
def test_times_are_counted_as_they_are_staged(tmp_path, few_first_rows, first, later):
    data = run(by_time(), [write(tmp_path / "log.csv", first + later)], tmp_path / "out")
    assert {split: info.rows for split, info in data.splits.items()} == SHARES


def test_later_text_that_does_not_sort_is_an_error(tmp_path, few_first_rows):
    times = [f"{day(n):%Y%m%d %H}" for n in range(ROWS)]  # text for Arrow
    one = write(tmp_path / "one.csv", times[:50])
    other = write(tmp_path / "other.csv", [f"{day(n):%d.%m.%Y}" for n in range(50, ROWS)])
    with pytest.raises(
        DataError, match=r"one\.csv, .*other\.csv: time at: expected numbers, .*; got '[0-9.]+'"
    ):
        run(by_time(), [one, other], tmp_path / "out")


@pytest.mark.parametrize("times", [range(ROWS), [f"{day(n)}" for n in range(ROWS)]])
def test_forms_of_dates_of_another_column_leave_times_alone(tmp_path, times):
    data = run(by_time(dates=["%d.%m.%Y"]), [write(tmp_path / "log.csv", times)], tmp_path / "out")
    assert {split: info.rows for split, info in data.splits.items()} == SHARES


def test_nan_is_no_time(tmp_path):
    at = pa.array([*map(float, range(ROWS)), *[float("nan")] * ROWS])
    pq.write_table(
        pa.table({"at": at, "user": ["u"] * 2 * ROWS, "click": [0, 1] * ROWS}),
        tmp_path / "log.parquet",
    )
    found = with_times(by_time(), {"data": [tmp_path / "log.parquet"]}, tmp_path)
    assert found.split["test"].where == [[("at", ">=", 90)]]


def test_mixed_text_of_times_in_a_table_is_read_as_in_a_file(tmp_path):
    table = log(0, other="%d/%m/%Y %H:%M")
    csv.write_csv(table, tmp_path / "log.csv")
    options = {"labels": "click", "time": "at", "progress": False}
    of_file = prepare(tmp_path / "log.csv", tmp_path / "file", **options)
    of_table = prepare(table.to_pandas(), tmp_path / "table", **options)
    assert of_file.manifest.bounds == of_table.manifest.bounds
    for split in SHARES:
        one, other = (
            pq.read_table(tmp_path / f"{name}/{split}.parquet") for name in ("file", "table")
        )
        assert one.equals(other)
    later = pd.DataFrame(log(0, other="%d/%m/%Y %H:%M").to_pandas())
    later.loc[3, "at"] = "soon"
    with pytest.raises(DataError, match=r"at: none of the forms of dates, .*, fits 'soon'"):
        prepare(later, tmp_path / "bad", dates=["%Y-%m-%d", "%d/%m/%Y %H:%M"], **options)


def test_conditions_of_another_month_say_what_serves_each_log(tmp_path):
    csv.write_csv(log(100), tmp_path / "log.csv")
    split = {
        name: {"where": [["at", op, day(80).date()]]} for name, op in zip(SHARES, ("<", "==", ">"))
    }
    schema = parse_schema(SOURCE | {"split": split})
    expected = (
        "split train has no rows: none meets its condition, at < 2026-03-22; a split by shares of "
        "time, time ="
    )
    with pytest.raises(DataError, match=expected):
        run(schema, [tmp_path / "log.csv"], tmp_path / "out")
