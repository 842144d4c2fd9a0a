"""A topic of the client's mock cluster: each row is in one chunk, also if the stream is killed."""

import importlib
import json
import math
import signal
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from adaftr_fast.cli import main
from adaftr_fast.data.schema.parse import parse_schema
from adaftr_fast.errors import ConfigError, DataError
from adaftr_fast.extras.streaming import messages
from adaftr_fast.extras.streaming.loop import RECORDS
from tests.extras.streaming.conftest import stream
from tests.extras.streaming.test_kills import KILLED, LOOP, SCHEMA
from tests.forks import Script
from tests.logs import read_records
from tests.runs.conftest import SOURCE, write_day

kafka = pytest.importorskip("confluent_kafka", reason="the extra kafka installs it")
module = importlib.import_module("adaftr_fast.extras.streaming.kafka")
TOPIC = "shop"
LABELS = {"click": 1, "buy": 0, "money": 1.5, "weight": 1}
FIELDS = dict.fromkeys(("n", "of", "a", "b", "c", "age"), "categorical")
LISTS = {"seen": {"kind": "categorical", "tokens": "all"}}
READ = parse_schema(
    SOURCE
    | {"labels": SOURCE["labels"] | {"paid": [["money", ">", 0.0]]}, "weight": "weight"}
    | {"drop": [["age", "<", 0]], "fields": SOURCE["fields"] | FIELDS | LISTS}
)


@pytest.fixture
def producer():
    """A producer whose process is the broker; ``servers`` is its address."""
    made = kafka.Producer({"test.mock.num.brokers": 1, "bootstrap.servers": "none"})
    (broker,) = made.list_topics(TOPIC, timeout=10).brokers.values()
    yield made, f"{broker.host}:{broker.port}"
    made.flush(10)


@pytest.fixture
def source(producer, tmp_path):
    """Returns a function that makes a source."""
    made = []

    def make(**options):
        options = {"seconds": 0.0} | options
        made.append(module.KafkaSource(TOPIC, producer[1], tmp_path / "incoming", READ, **options))
        return made[-1]

    yield make
    for each in made:
        each.close()


def send(producer, *rows, partition=0, timestamp=0):
    """Sends dictionaries as rows with labels, and anything else as it is."""
    for row in rows:
        value = row if row is None or isinstance(row, bytes) else json.dumps(LABELS | row).encode()
        producer[0].produce(TOPIC, value=value, partition=partition, timestamp=timestamp)
    assert producer[0].flush(10) == 0


def read(source, done=None, looks=100):
    """The next chunk, which may take the client some calls to fetch."""
    for _ in range(looks):
        if (chunk := source.next(done or {})) is not None:
            return chunk
    return None


def rows(chunk):
    return pq.read_table(chunk.file).drop_columns([*LABELS]).to_pylist()


def test_wrong_arguments(source):
    with pytest.raises(ConfigError, match="rows: expected at least 1 row in a chunk, got 0"):
        source(rows=0)
    with pytest.raises(ConfigError, match="seconds: expected a finite number of at least 0"):
        source(seconds=math.nan)
    with pytest.raises(
        ConfigError, match=r"settings: expected none of .*, got auto\.offset\.reset"
    ):
        source(settings={"auto.offset.reset": "latest"})
    with pytest.raises(DataError, match=r"chunk a\.csv: is of another source than the topic"):
        source().next({"a.csv": {}})


def test_a_chunk_ends_with_its_rows_or_after_its_seconds(producer, source, monkeypatch):
    send(producer, *({"n": n} for n in range(5)))
    topic = source(rows=2, seconds=60)
    done = {}
    for expected in ([0, 1], [2, 3]):
        chunk = read(topic, done)
        assert [row["n"] for row in rows(chunk)] == expected
        done[chunk.name] = chunk.position
    assert read(topic, done, looks=10) is None
    topic.seconds = 0
    chunk = read(topic, done)
    assert rows(chunk) == [{"n": 4}]
    assert (chunk.name, chunk.position) == ("shop-000000000005", {"offsets": {"0": 5}})
    assert [path.name for path in chunk.file.parent.iterdir()] == ["shop-000000000005.parquet"]


def test_a_new_process_goes_on_after_the_last_chunk_and_commits_it(producer, source):
    for partition in (0, 2):
        send(producer, *({"n": n, "of": partition} for n in range(3)), partition=partition)
    first = read(source(rows=4, seconds=60))
    found = rows(first)
    rest = source(rows=2, seconds=60)
    found += rows(read(rest, {first.name: first.position}))
    assert sorted((row["n"], row["of"]) for row in found) == [
        (n, of) for n in range(3) for of in (0, 2)
    ]
    unfinished = read(source(rows=4, seconds=60))  # of a process that knows of no finished chunk
    assert sum(unfinished.position["offsets"].values()) == 4
    end = time.monotonic() + 60  # the commit is asynchronous
    while committed(rest) != first.position["offsets"] and time.monotonic() < end:
        time.sleep(0.1)
    assert committed(rest) == first.position["offsets"]


def committed(topic):
    found = topic._consumer.committed(
        [kafka.TopicPartition(TOPIC, n) for n in range(4)], timeout=10
    )
    return {str(each.partition): each.offset for each in found if each.offset >= 0}


WRONG = {
    "a": {'"\\ud800"': r"valid Unicode text, got '\ud800'"},
    "seen": {
        '["x", "\\ud800"]': r"a list of valid Unicode text, got ['x', '\ud800']",
        '"x"': "a list of valid Unicode text, got 'x'",
    },
    "heat": {
        '"warm"': "a value of type double, got 'warm'",
        "{}": "a value of type double, got {}",
    },
    "click": {"2": "0 or 1, got 2", '"x"': "0 or 1, got 'x'"},
    "age": {
        "1.5": "a value of type int64, got 1.5",
        "9" * 19: "a value of type int64, got " + "9" * 19,
    },
    "weight": {"-1": "a finite number >= 0, got -1", "1e300": "a finite number >= 0, got 1e+300"},
}
POISON = {
    b"{": "expected a JSON object",
    b"[1]": "expected a JSON object",
    None: "expected a JSON object",
    b"[" * 100_000: "is nested too deeply",
    b'{"other": 1}': "click: is missing",
    b'{"click": 1, "buy": null, "weight": 1}': "buy: is missing",
    b'{"click": 1, "buy": 1, "weight": 1}': "label paid: is missing",
    b'{"click": 1, "buy": 0, "weight": 1, "a": '
    b'"\xed\xa0\x80"}': r"a: expected valid Unicode text, got '\ud800'",
    b'{"click": 1, "buy": 0, "weight": 1, "heat": %s}'
    % (b"9" * 400): "heat: expected a value of type double, got " + "9" * 50 + " ...",
}
for name, values in WRONG.items():
    for value, reason in values.items():
        row = ", ".join(f'"{key}": {value if key == name else 1}' for key in [*LABELS, name])
        POISON[f"{{{row}}}".encode()] = f"{name}: expected {reason}"


def test_messages_that_cannot_be_read_are_set_aside(producer, source):
    """The places of those before the first row are in the first chunk, and each is counted once."""
    size = len(POISON)
    topic = source(rows=size, seconds=60)
    send(producer, *POISON)
    with pytest.warns(
        RuntimeWarning, match=f"shop: {size} of {size} messages .* set aside, the first at offset 0"
    ):
        assert read(topic, looks=10) is None
    send(producer, {"a": 1}, b"{", *({"a": 2} for _ in range(size - 2)))
    with pytest.warns(
        RuntimeWarning,
        match=f"1 of {size} messages .*, the first at offset {size + 1} of partition 0",
    ):
        chunk = read(topic)
    assert [row["a"] for row in rows(chunk)] == [1] + [2] * (size - 2)
    assert chunk.position == {"offsets": {"0": 2 * size}}
    reasons = dict(enumerate(POISON.values())) | {size + 1: "expected a JSON object"}
    places = [
        {"topic": TOPIC, "partition": 0, "offset": offset, "reason": reasons[offset]}
        for offset in reasons
    ]
    assert chunk.set_aside == {"messages": size + 1, "first": places}
    send(producer, {"a": 3})
    topic.rows = 1
    assert read(topic, {chunk.name: chunk.position}).set_aside == {}


def test_values_nested_as_deeply_as_a_stack_allows_are_set_aside(producer, source):
    """Some of these depths can be read, and cannot be written as text."""
    depth = sys.getrecursionlimit()
    nested = ["[" * each + "]" * each for each in range(depth - 100, depth)]
    send(
        producer,
        *(
            f'{{"click": 1, "buy": 1, "money": 1, "weight": 1, "a": {each}}}'.encode()
            for each in nested
        ),
    )
    send(producer, {"a": "x"})
    with pytest.warns(RuntimeWarning, match="is nested too deeply"):
        chunk = read(source(rows=101, seconds=60))
    found = [row["a"] for row in rows(chunk)]
    assert found == [*nested[: len(found) - 1], "x"]


def test_columns_that_no_schema_reads_are_left_out(producer, source):
    row = {"a": 1, "meta": {}, "\ud800": 1, "deep": [[[{}]]], "seen": [], "": 1}
    send(producer, row, {"a": 2, "meta": {"\ud800": "\ud800"}, "many": [[]], "seen": [1, {}]})
    assert rows(read(source(rows=2, seconds=60))) == [
        {"a": 1, "seen": []},
        {"a": 2, "seen": ["1", "{}"]},
    ]


def test_a_column_of_several_types_is_text(producer, source):
    """NaN is missing, and ids that a condition compares stay exact."""
    values = (
        {"a": 1, "b": 1, "c": [1], "n": {}, "heat": 1, "seen": [1], "age": 2**53 + 1},
        {"a": "x", "b": 0.5, "c": 2**70, "heat": "2.5", "age": "5"},
        {"a": float("nan"), "seen": ["x", float("nan"), None], "heat": True, "age": True},
    )
    send(producer, *values[:1], timestamp=1_700_000_001_500)
    send(producer, *values[1:], timestamp=1_700_000_000_000)
    chunk = read(source(rows=3, seconds=60))
    assert chunk.arrived == 1_700_000_001.5  # when its last row was written
    assert rows(chunk) == [
        {"a": "1", "b": 1.0, "c": "[1]", "n": "{}", "heat": 1.0, "seen": ["1"], "age": 2**53 + 1},
        {"a": "x", "b": 0.5, "c": str(2**70), "n": None, "heat": 2.5, "seen": None, "age": 5},
        {
            "a": None,
            "b": None,
            "c": None,
            "n": None,
            "heat": 1.0,
            "seen": ["x", None, None],
            "age": 1,
        },
    ]


def test_the_reason_is_the_first_label_that_is_missing():
    labels = {"click": "click", "paid": [["money", ">", 0.0]], "aged": [["age", ">", 3]]}
    reader = messages.RowReader(parse_schema(SOURCE | {"labels": labels}))
    found = [
        {"click": 1, "money": 1, "age": 5},
        {"click": 0, "age": 1},
        {"click": 1, "money": 0},
        {"click": 1},
    ]
    table, reasons = reader.read([json.dumps(each).encode() for each in found])
    assert table.to_pylist() == found[:1]
    assert reasons == [
        None,
        "label paid: is missing",
        "label aged: is missing",
        "label paid: is missing",
    ]
    # no row has the column
    for row, label in ((b'{"click": 1, "money": 1}', "aged"), (b'{"click": 1}', "paid")):
        table, reasons = reader.read([row])
        assert (len(table), reasons) == (0, [f"label {label}: is missing"])


def test_rows_that_the_broker_has_removed_raise(producer, source):
    send(producer, {"n": 1})
    with pytest.raises(DataError, match="topic shop, partition 0: "):
        read(source(), {"shop-000000000009": {"offsets": {"0": 9}}})


def test_servers_that_do_not_answer_raise(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "CONNECT_SECONDS", 0.5)
    with pytest.raises(DataError, match=r"topic shop of 127\.0\.0\.1:9: "):
        module.KafkaSource(TOPIC, "127.0.0.1:9", tmp_path, READ)
    with pytest.raises(DataError, match="topic shop of a: No such configuration property"):
        module.KafkaSource(TOPIC, "a", tmp_path, READ, settings={"no.such": 1})


def source_of(servers, folder):
    """The source of ``KILLED``."""
    return module.KafkaSource(
        TOPIC, servers, Path(folder), parse_schema(SOURCE), rows=800, seconds=60
    )


@pytest.mark.parametrize(
    "point",
    [
        ("adaftr_fast.extras.streaming.kafka", "", "publishing", 2),
        (LOOP, "Journal", "append", 2),
    ],
    ids=lambda point: point[2],
)
def test_a_killed_stream_trains_on_each_row_once(producer, source, tmp_path, point):
    days = [pq.read_table(write_day(tmp_path, day)).to_pylist() for day in range(3)]
    for day in days:
        send(producer, *day)
    Script(KILLED, *point, tmp_path / "out", producer[1], tmp_path / "incoming").end(
        -signal.SIGKILL
    )
    stream(source(rows=800, seconds=60), tmp_path / "out", idle=2)
    records = read_records(tmp_path / "out" / RECORDS)
    assert [record["position"]["offsets"]["0"] for record in records] == [800, 1600, 2400]
    assert [record["rows"] for record in records] == [800, 800, 800]
    assert records[2]["before_training"]["click"]["auc"] > 0.5


def test_the_command_reads_a_topic(producer, tmp_path, capsys):
    day = pq.read_table(write_day(tmp_path, 0)).to_pylist()
    send(producer, b'{"city": "\\ud800"}', *({"meta": {}} | row for row in day))
    (tmp_path / "shop.toml").write_text(SCHEMA)
    words = f"stream --dataset {tmp_path}/shop.toml --out {tmp_path}/out --idle 2".split()
    words += f"--kafka_topic {TOPIC} --kafka_servers {producer[1]} --chunk_rows 801".split()
    words += ["--training.batch_size", "64", "--training.progress", "false"]
    assert main([*words, "--kafka_settings", '{"client.id": "test"}']) == 0
    shown = capsys.readouterr()
    line, *others = shown.out.splitlines()
    assert line.startswith("chunk 1 (shop-000000000801, 1 set aside): 800 rows, ")
    warning = (
        "1 of 801 messages cannot be read and are set aside, the first at offset 0 of partition 0"
    )
    assert f"warning: topic shop: {warning}: click: is missing" in shown.err
    (record,) = map(json.loads, (tmp_path / "out" / RECORDS).read_text().splitlines())
    place = {"topic": TOPIC, "partition": 0, "offset": 0, "reason": "click: is missing"}
    assert record["set_aside"] == {"messages": 1, "first": [place]}
    assert record["doubts"]
    assert others[: others.index("")] == record["doubts"]
