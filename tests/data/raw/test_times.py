import datetime

import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.parquet as pq
import pytest

from adaftr_fast.api.prepare import prepare
from adaftr_fast.data.prepare.run import prepare as run
from adaftr_fast.data.raw import inputs
from adaftr_fast.data.raw.text import Dialect, parse_block
from adaftr_fast.data.schema.parse import parse_schema
from adaftr_fast.data.schema.types import TextFormat
from adaftr_fast.errors import DataError

ROWS = 100
SOURCE = {"name": "x", "labels": {"click": "click"}, "fields": {"user": "categorical"}}
SHARES = {"train": 80, "validation": 10, "test": 10}
FORM = "%d/%m/%Y %H:%M"


def day(number):
    return datetime.datetime(2026, 1, 1) + datetime.timedelta(days=number)


def log(at):
    """A log with these times."""
    numbers = range(len(at))
    columns = {"at": at, "user": [f"u{n % 7}" for n in numbers], "click": [n % 2 for n in numbers]}
    return pa.table(columns)


def two_forms(first):
    """Times of a hundred days from ``first``, every other of which has another form."""
    return [day(first + n).strftime(FORM if n % 2 else "%Y-%m-%d") for n in range(ROWS)]


def rows(manifest):
    return {split: info.rows for split, info in manifest.splits.items()}


@pytest.fixture
def write(tmp_path):
    """Writes a log with these times as text; returns the path."""

    def write(at, name="log.csv"):
        csv.write_csv(log(at), tmp_path / name)
        return tmp_path / name

    return write


def test_a_schema_serves_the_log_of_the_next_month(write, tmp_path):
    first = write(two_forms(0), "0.csv")
    second = write(two_forms(100), "100.csv")
    schema = tmp_path / "mine.toml"
    grow = tmp_path / "now"
    roles = {"labels": "click", "group": "user", "time": "at", "write_schema": schema}
    now = prepare(first, grow, progress=False, **roles)
    then = prepare(second, tmp_path / "then", dataset=schema, grow=grow, progress=False)
    assert rows(now.manifest) == rows(then.manifest) == SHARES
    assert f"test: at >= {day(190):%Y-%m-%d}" in str(then)
    assert now.manifest.fingerprint == then.manifest.fingerprint


def test_a_file_of_a_header_alone_tells_no_type(write, tmp_path):
    """Text would sort 9 after 10."""
    files = [write(pa.array([], pa.int64()), "a.csv"), write(range(ROWS), "b.csv")]
    data = prepare(files, tmp_path / "out", labels="click", time="at", progress=False)
    assert rows(data.manifest) == SHARES
    assert data.manifest.bounds["test"] == "at >= 90"


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


NUMBERS = [1714550400 + n for n in range(ROWS)]


@pytest.mark.parametrize(
    ("at", "dates"),
    [
        ([*NUMBERS[:50], *(n + 0.25 for n in NUMBERS[50:])], ()),
        ([f"{day(n)}{'.250000' * (n >= 50)}" for n in range(ROWS)], ["%d.%m.%Y"]),
        ([1700000000000000101 + n for n in range(ROWS)], ["%d.%m.%Y"]),
    ],
)
def test_times_are_counted_as_they_are_staged(write, tmp_path, few_first_rows, at, dates):
    """Forms of the dates of another column leave them alone."""
    data = run(by_time(dates=dates), [write([str(each) for each in at])], tmp_path / "out")
    assert rows(data) == SHARES


def test_later_text_that_does_not_sort_is_an_error(write, tmp_path, few_first_rows):
    at = [f"{day(n):%Y%m%d %H}" for n in range(50)]  # text for Arrow
    one = write(at, "one.csv")
    other = write([f"{day(n):%d.%m.%Y}" for n in range(50)], "other.csv")
    with pytest.raises(
        DataError, match=r"one\.csv, .*other\.csv: time at: expected numbers, .*; got '[0-9.]+'"
    ):
        run(by_time(), [one, other], tmp_path / "out")


@pytest.mark.parametrize(
    "at",
    [
        pa.array(range(ROWS), pa.int8()),
        pa.array(range(ROWS), pa.uint64()),
        pa.array([*range(ROWS - 1), 10**15], pa.timestamp("s")),  # beyond Python's years
        pa.array(range(ROWS), pa.duration("s")),  # without a maximum
    ],
    ids=lambda at: str(at.type),
)
def test_a_parquet_log_is_split_by_times_of_any_type(tmp_path, at):
    pq.write_table(log(at), tmp_path / "log.parquet")
    assert rows(run(by_time(), [tmp_path / "log.parquet"], tmp_path / "out")) == SHARES


@pytest.mark.parametrize(
    ("at", "expected"),
    [
        (pa.array([2**63 + n for n in range(ROWS)], pa.uint64()), "Integer value 9223372036854"),
        (pa.array(["a"] * ROWS, pa.string_view()), "no kernel .* .string_view"),
    ],
)
def test_times_that_arrow_does_not_compare_are_errors_of_the_file(tmp_path, at, expected):
    pq.write_table(log(at), tmp_path / "log.parquet")
    with pytest.raises(DataError, match=rf"log\.parquet: cannot read at: .*{expected}"):
        run(by_time(), [tmp_path / "log.parquet"], tmp_path / "out")


def test_text_beside_parquet_is_read_as_the_integers_of_its_type(write, tmp_path):
    """float64 would round them."""
    at = [*range(ROWS // 2), *(2**53 + 2 * n + 1 for n in range(ROWS // 2))]
    pq.write_table(log(at[: ROWS // 2]), tmp_path / "log.parquet")
    files = [tmp_path / "log.parquet", write(at[ROWS // 2 :])]
    assert run(by_time(), files, tmp_path / "out").bounds["test"] == f"at >= {at[90]}"


def test_nan_is_no_time(tmp_path):
    at = [*map(float, range(ROWS)), *[float("nan")] * ROWS]
    pq.write_table(log(at), tmp_path / "log.parquet")
    data = run(by_time(), [tmp_path / "log.parquet"], tmp_path / "out")
    assert data.bounds["test"] == "at >= 90"


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_shares_are_of_the_rows_that_are_used(tmp_path, suffix):
    """Late rows lack their label, early ones are dropped, and text is damaged."""
    numbers = [str(n) for n in range(2 * ROWS)]
    table = log(numbers).append_column("test", pa.array([n < ROWS // 2 for n in range(2 * ROWS)]))
    clicks = [None if n >= ROWS * 3 // 2 else n % 2 for n in range(2 * ROWS)]
    table = table.set_column(2, "click", pa.array(clicks, pa.int64()))
    path = tmp_path / f"log.{suffix}"
    if suffix == "csv":
        csv.write_csv(table, path)
    else:
        at = pa.array(range(2 * ROWS))
        pq.write_table(table.set_column(0, "at", at), path)
    schema = parse_schema(by_time().source | {"drop": [["test", "==", True]]})
    data = run(schema, [path], tmp_path / "out", bad_rows=0.5)
    assert rows(data) == SHARES
    assert data.bounds["test"] == "at >= 140"


def test_mixed_text_of_times_in_a_table_is_read_as_in_a_file(write, tmp_path):
    at = two_forms(0)
    options = {"labels": "click", "time": "at", "progress": False}
    of_file = prepare(write(at), tmp_path / "file", **options)
    of_table = prepare(log(at), tmp_path / "table", **options)
    assert of_file.manifest.bounds == of_table.manifest.bounds
    for split in SHARES:
        found = [pq.read_table(each.folder / f"{split}.parquet") for each in (of_file, of_table)]
        assert found[0].equals(found[1])
    with pytest.raises(DataError, match=r"at: none of the forms of dates, .*, fits 'soon'"):
        prepare(log([*at, "soon"]), tmp_path / "bad", dates=["%Y-%m-%d", FORM], **options)


def test_conditions_of_another_month_say_what_serves_each_log(write, tmp_path):
    bounds = zip(SHARES, ("<", "==", ">"))
    split = {name: {"where": [["at", op, day(80).date()]]} for name, op in bounds}
    expected = (
        "split train has no rows: none meets its condition, at < 2026-03-22; a split by shares of "
        "time, time ="
    )
    path = write([f"{day(100 + n):%Y-%m-%d}" for n in range(ROWS)])
    with pytest.raises(DataError, match=expected):
        run(parse_schema(SOURCE | {"split": split}), [path], tmp_path / "out")


def test_text_that_no_form_of_times_fits_names_the_option():
    block = parse_block(b"1.2.2026\nsoon\n\n", Dialect(["at"]), TextFormat(dates=("%d.%m.%Y",)))
    block.convert("at", pa.timestamp("us"))
    assert block.columns["at"].to_pylist() == [datetime.datetime(2026, 2, 1)]
    assert block.report().examples == [
        "2: at is not of type timestamp[us] in the forms that are read (--dates): 'soon'"
    ]
