"""JSON lines have the rows of the parquet of the same log, and damaged lines are bad rows."""

import json
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.parquet as pq
import pytest

from adaftr_fast import prepare
from adaftr_fast.data.bad_rows import BadRows
from adaftr_fast.data.dataset.split_file import read_split
from adaftr_fast.data.encode.canonical import canonical_text
from adaftr_fast.data.raw import json_lines, staging
from adaftr_fast.data.raw.infer import infer_schema
from adaftr_fast.data.raw.json_lines import LISTS, first_types, parse_lines
from adaftr_fast.data.raw.rows import raw_files
from adaftr_fast.data.schema.parse import parse_schema
from adaftr_fast.data.schema.types import SPLITS, TextFormat
from adaftr_fast.errors import DataError

ROWS = 3000
TYPES = {
    "s": pa.string(),
    "i": pa.int64(),
    "n": pa.float64(),
    "b": pa.bool_(),
    "l": pa.list_(pa.int64()),
    "t": pa.list_(pa.string()),
}


def row(draw, number):
    """A row with values of every type, some of which are missing."""
    return {
        "user": draw.randrange(10**18),
        "name": draw.choice(["a", "b ü", "007", "1.0", "", None]),
        "price": draw.choice([draw.random() * 100, float(draw.randrange(9)), None]),
        "age": draw.randrange(100),
        "member": draw.choice([True, False, None]),
        "tags": draw.choice([["x"], ["x", "y", None], [], None]),
        "codes": [draw.randrange(5) for _ in range(draw.randrange(3))],
        "shares": [1.5, -0.0, float(draw.randrange(3))],
        "time": 1000 + number,
        "day": f"2026-05-{number % 28 + 1:02d} 10:00:00",
        "rare": 4 if number == 10 else None,
        "click": draw.random() < 0.3,
    }


@pytest.fixture
def logs(tmp_path):
    """A log as parquet, as JSON lines that lack some keys of missing values, and compressed."""
    draw = random.Random(0)
    rows = [row(draw, number) for number in range(ROWS)]
    paths = [tmp_path / name for name in ("log.parquet", "log.jsonl", "log.json.gz")]
    pq.write_table(pa.Table.from_pylist(rows), paths[0])
    kept = [
        {key: value for key, value in each.items() if value is not None or draw.random() < 0.5}
        for each in rows
    ]
    for path in paths[1:]:
        with pa.output_stream(path) as file:
            file.write("".join(f"{json.dumps(each)}\n" for each in kept).encode())
    return paths


def read(data):
    """The rows of all splits, columns in one order, as text since NaN equals nothing."""
    return {
        split: repr(
            [
                sorted(each.items())
                for each in read_split(data.folder, data.manifest, split).to_pylist()
            ]
        )
        for split in SPLITS
    }


@pytest.mark.parametrize("options", [{}, {"time": "time"}, {"time": "day"}, {"group": "user"}])
def test_json_lines_are_prepared_as_parquet(logs, tmp_path, monkeypatch, options):
    monkeypatch.setattr(staging, "BLOCK_BYTES", 100_000)
    parquet, *texts = (
        prepare(log, tmp_path / log.suffix, labels="click", progress=False, **options)
        for log in logs
    )
    for text in texts:
        assert text.manifest.schema["fields"] == parquet.manifest.schema["fields"]
        assert text.manifest.bounds == parquet.manifest.bounds
        assert text.manifest.bad_rows == BadRows(ROWS, lines=ROWS)
        assert read(text) == read(parquet)


def test_json_lines_and_text_are_one_log(tmp_path):
    columns = {"place": ["a", "b", None, "7"] * 50, "price": [1.5, 2.0, None, 3.25] * 50}
    table = pa.table(columns | {"click": [n % 3 == 0 for n in range(200)]})
    csv.write_csv(table, tmp_path / "a.csv")
    lines = map(json.dumps, table.to_pylist())
    (tmp_path / "b.ndjson").write_text("\n".join(lines))
    both = prepare(tmp_path, tmp_path.with_name("both"), labels="click", progress=False)
    assert both.manifest.total.rows == 400
    ends = prepare([table, table], tmp_path.with_name("twice"), labels="click", progress=False)
    assert read(both) == read(ends)


LINES = [
    (b'{"s": "a"}', None),
    (b"", None),
    (b" \t\r", None),
    (b'{"s": "a"', "the line is not JSON: Expecting ',' delimiter"),
    (b'["a"]', "the line is not an object"),
    (b'{"s": "a"} {"s": "b"}', "the line is not JSON: Extra data"),
    (b'{"s": "a", "s": "a"}', "s occurs 2 times"),
    (b'{"n": 1e999}', "n is beyond the range of float64"),
    (b'{"n": NaN}', "the line is not JSON: NaN is no number, and a missing value is null"),
    (b'{"s": "\xff"}', "the line is not UTF-8"),
    (b'{"s": "\\ud800"}', "the line has half of a surrogate pair"),
    (b'{"s": {"a": 1}}', "s holds an object"),
    (b'{"s": ["a"]}', "s is a list"),
    (b'{"l": 1}', "l is no list"),
    (b'{"l": [[1]]}', "l holds a list"),
    (b'{"other": ' + b"[" * 9999 + b"]" * 9999 + b"}", "the line is nested too deeply"),
    (b'{"s": 18446744073709551617, "n": 9007199254740993}', None),
]


def test_damaged_lines_are_bad_rows():
    block = parse_lines(b"\n".join(line for line, _ in LINES), TYPES)
    block.convert("s", pa.string())
    assert block.columns["s"].to_pylist() == ["a", "18446744073709551617"]
    assert block.columns["n"].to_pylist() == [None, 9007199254740993]
    assert (block.lines, block.blank, block.total) == (len(LINES), 2, len(LINES) - 2)
    found = {each.line: each.reason for each in block.bad}
    expected = {number: reason for number, (_, reason) in enumerate(LINES, 1) if reason}
    assert found == expected


def test_both_ways_of_reading_a_block_give_the_same_rows(monkeypatch):
    draw = random.Random(1)
    choices = {
        "s": ["x", "é", "\U0001f600", None, "2020-01-01"],
        "i": [1, -5, 2**62, None],
        "n": [1.5, 7, 2**53 + 1, 1e16, None, -0.0],
        "b": [True, False, None],
        "l": [[1, 2], [], None],
        "t": [["a"], [None], None],
        "other": [1, "x", {"a": 1}, [1]],
    }
    by_block = json_lines._read
    whole = 0
    for _ in range(300):
        lines = [
            json.dumps({name: draw.choice(values) for name, values in choices.items()})
            for _ in range(draw.randrange(1, 4))
        ]
        data = bytearray("\n".join(lines).encode())
        if draw.random() < 0.5:
            data[draw.randrange(len(data))] = draw.choice(b'"{}[],:\n0x')
        found = []
        for read_block in (by_block, lambda *_: None):
            monkeypatch.setattr(json_lines, "_read", read_block)
            block = parse_lines(bytes(data), TYPES)
            for name, kind in TYPES.items():
                block.convert(name, LISTS if pa.types.is_list(kind) else pa.string())
                if not pa.types.is_list(kind):
                    block.columns[name] = canonical_text(block.columns[name])
            found.append((block.table.to_pydict(), block.line.tolist(), block.report()))
        assert found[0] == found[1]
        parts = [line.strip() for line in bytes(data).split(b"\n")]
        whole += by_block(bytes(data), parts, TYPES) is not None
    assert 50 < whole < 300


def test_types_are_those_of_the_first_rows():
    rows = [
        {"a": 1, "b": 1, "c": [], "d": {}, "e": None, "g": [1]},
        {"a": 2.5, "b": "x", "c": None, "f": 2**64, "g": 1},
    ]
    data = b"\n".join(json.dumps(each).encode() for each in rows) + b"\n[1]\n"
    assert first_types(data) == {
        "a": pa.float64(),
        "b": pa.string(),
        "c": LISTS,
        "d": pa.struct([]),
        "e": pa.null(),
        "f": pa.string(),
        "g": pa.int64(),
    }


def test_bad_lines_are_counted_with_their_numbers(logs, tmp_path, monkeypatch):
    monkeypatch.setattr(staging, "BLOCK_BYTES", 100_000)
    lines = logs[1].read_text().splitlines()
    lines[2000:2000] = ["", "{", '{"click": 2}']
    logs[1].write_text("\n".join(lines))
    options = {"labels": "click", "progress": False}
    with pytest.raises(DataError, match=r"log.jsonl:2002: the line is not JSON: .*: '\{' \|"):
        prepare(logs[1], tmp_path / "out", **options)
    manifest = prepare(logs[1], tmp_path / "out", bad_rows=0.01, **options).manifest
    assert (manifest.bad_rows.bad, manifest.bad_rows.blank) == (2, 1)
    assert manifest.bad_rows.account() == (
        "3,003 lines below the header = 3,000 rows kept + 2 left out + 1 blank"
    )
    assert manifest.total.rows == ROWS


def test_rows_for_scoring_keep_columns_as_they_are_written(logs):
    schema = parse_schema(infer_schema([logs[0]], ["click"]))
    tables = []
    for log in logs[:2]:
        (file,) = raw_files(schema, [log], ["name", "tags"])
        kept = [chunk.parse()[1] for chunk in file.chunks()]
        tables.append(pa.concat_tables(kept).combine_chunks())
        assert tables[-1].schema.types == [*file.types.values()]
    assert tables[0].to_pydict() == tables[1].to_pydict()


def test_what_is_no_json_lines_is_named(tmp_path):
    path = tmp_path / "log.json"
    path.write_text('[{"click": 1}]\n')
    with pytest.raises(
        DataError, match=r"log.json:1: expected JSON lines, an object in each, got '\["
    ):
        infer_schema([path], ["click"])
    path.write_text('{"click": 1, "about": {"os": "a"}, "x": "a"}\n{"click": 0}\n')
    with pytest.raises(
        DataError, match=r"log.json: no column 'buy'; the file has click, about, x$"
    ):
        infer_schema([path], ["buy"])
    with pytest.warns(UserWarning, match="log.json: about: left out, since values hold objects"):
        assert infer_schema([path], ["click"])["fields"] == {"x": "categorical"}


def test_marks_of_numbers_are_those_of_text_alone():
    form = TextFormat(thousands=".", decimal=",")
    for line, number in ((b'{"n": 1.5}', 1.5), (b'{"n": "1.000,25"}', 1000.25)):
        block = parse_lines(line, {"n": pa.float64()}, form)
        block.convert("n", pa.float64())
        assert block.columns["n"].to_pylist() == [number]


@pytest.mark.parametrize("time", [None, "at"])
def test_a_key_that_is_null_in_every_row_is_a_column(tmp_path, time):
    """As in parquet, beside a byte order mark."""
    rows = [{"user": n % 20, "note": None, "at": n, "click": n % 3 == 0} for n in range(300)]
    text = "".join(json.dumps(each) + "\n" for each in rows)
    (tmp_path / "log.jsonl").write_text("\ufeff" + text, encoding="utf-8")
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "log.parquet")
    found = [
        prepare(path, tmp_path / path.suffix, labels="click", time=time, progress=False)
        for path in (tmp_path / "log.jsonl", tmp_path / "log.parquet")
    ]
    assert found[0].manifest.splits == found[1].manifest.splits


def test_a_key_that_a_file_of_several_lacks_is_missing_there(tmp_path):
    """As absent, as null alone, and in a file that is scored beside one that has it."""
    rows = [
        {"click": number % 2, "item": "ab"[number % 3 == 0], "time": number} for number in range(60)
    ]
    for number in range(40, 60):
        rows[number]["coupon"] = number % 3
    cuts = {"absent.jsonl": rows[:20], "null.jsonl": rows[20:40], "given.jsonl": rows[40:]}
    files = []
    for name, part in cuts.items():
        filled = [{"coupon": None} | each if name == "null.jsonl" else each for each in part]
        files.append(tmp_path / name)
        files[-1].write_text("".join(json.dumps(each) + "\n" for each in filled))
    (tmp_path / "without.jsonl").write_text('{"click": 0}\n')
    times = prepare(
        [tmp_path / "without.jsonl", *files],
        tmp_path / "times",
        labels="click",
        time="time",
        bad_rows=0.1,
        progress=False,
    )
    assert sum(split.rows for split in times.manifest.splits.values()) == 60
    whole = tmp_path / "whole.jsonl"
    whole.write_text("".join(map(Path.read_text, files)))
    one, three = (
        prepare(each, tmp_path / str(len(each)), labels="click", time="time", progress=False)
        for each in ([whole], files)
    )
    assert "coupon" in one.manifest.schema["fields"]
    assert one.manifest.schema["fields"] == three.manifest.schema["fields"]
    assert read(one) == read(three)
    schema = parse_schema(three.manifest.schema)
    scored = [chunk.parse()[0] for file in raw_files(schema, files) for chunk in file.chunks()]
    assert pa.concat_tables(scored)["coupon"].null_count == 40
    with pytest.raises(DataError, match=r"absent.jsonl: no column 'coupon'"):
        raw_files(schema, files[:1])


def test_a_time_that_is_null_in_every_row_is_named(tmp_path):
    rows = [{"user": n % 20, "at": None, "click": n % 3 == 0} for n in range(300)]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
    with (
        pytest.warns(UserWarning, match="rows are copies"),
        pytest.raises(DataError, match="at: expected at least 3 different times, got 0"),
    ):
        prepare(tmp_path / "log.jsonl", tmp_path / "out", labels="click", time="at", progress=False)
