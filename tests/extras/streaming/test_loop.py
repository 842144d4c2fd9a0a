"""A stream measures each chunk before it trains on it, exports, and forgets what it no longer
needs.
"""

import math
import shutil
import signal
from functools import partial
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.parquet as pq
import pytest

from adaftr_fast.data.schema.parse import parse_schema
from adaftr_fast.errors import ConfigError, DataError
from adaftr_fast.extras.streaming import loop
from adaftr_fast.extras.streaming.folder import FolderSource
from adaftr_fast.extras.streaming.loop import RECORDS, Journal
from adaftr_fast.extras.streaming.source import Chunk
from adaftr_fast.runs.daily import train_daily
from adaftr_fast.runs.output import Output
from adaftr_fast.serving.scorer import load_scorer, read_about
from adaftr_fast.training.trained import load_trained
from tests.extras.streaming import conftest
from tests.extras.streaming.conftest import LONG_AGO, arrive, config
from tests.logs import read_records
from tests.runs.conftest import SOURCE, keep_few_conversions
from tests.tolerances import assert_same_bits

# An export takes longer than a chunk: there is one after the first chunk, and one at the end.
stream = partial(conftest.stream, export_minutes=1e6)


def folders(out):
    return sorted(path.name for path in out.glob("chunk-*"))


def test_chunks_are_measured_before_training_as_days_are(chunks, tmp_path):
    out = tmp_path / "out"
    records = stream(chunks, out, keep=3)
    assert read_records(out / RECORDS) == records
    days = list(
        train_daily(
            parse_schema(SOURCE), sorted(chunks.glob("*.parquet")), config(), tmp_path / "daily"
        )
    )
    for chunk, day in zip(records, days, strict=True):
        assert {key: chunk[key] for key in day if key != "day"} == {
            key: day[key] for key in day if key != "day"
        }
    ours = load_trained(out / "chunk-000003/run").model.state_dict()
    theirs = load_trained(tmp_path / "daily/day-0003/run").model.state_dict()
    assert_same_bits(ours, theirs)
    assert {"auc", "gauc", "logloss", "calibration"} <= set(records[1]["before_training"]["click"])


def test_records_have_lag_and_speed(chunks, tmp_path, monkeypatch):
    times = iter(LONG_AGO + 10.0 * n for n in range(1000))
    monkeypatch.setattr(
        loop, "time", SimpleNamespace(time=lambda: next(times), monotonic=loop.time.monotonic)
    )
    record = stream(chunks, tmp_path / "out")[0]
    assert (record["arrived"], record["lag"], record["seconds"], record["rows_per_s"]) == (
        LONG_AGO,
        10,
        10,
        80,
    )


def test_the_chunk_in_progress_is_found_on_another_machine(tmp_path):
    """A topic's chunk lies in the folder of the stream."""
    here, there = (Output(tmp_path / name, "s3://bucket/out") for name in ("here", "there"))
    here.local.mkdir()
    (here.local / "chunk.parquet").touch()
    Journal(here.local, output=here).begin(Chunk("a", here.local / "chunk.parquet", 0.0))
    here.local.rename(there.local)
    found = Chunk.of(Journal(there.local, output=there).current(), there)
    assert found.file == there.local / "chunk.parquet"


def test_an_interruption_names_the_folder_as_the_user_does(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "_sleep", lambda _, stop: stop.request(signal.SIGINT))
    nothing = SimpleNamespace(next=lambda done: None)
    output = Output(tmp_path, "s3://bucket/out")
    with pytest.raises(KeyboardInterrupt, match="continue from s3://bucket/out"):
        list(
            loop.train_stream(
                parse_schema(SOURCE),
                nothing,
                config(),
                tmp_path,
                loop.StreamOptions(),
                output=output,
            )
        )


@pytest.mark.parametrize(("minutes", "exports"), [(0, [1, 2, 3]), (1e6, [1, 3])])
def test_exports_after_each_chunk_or_after_minutes_and_at_the_end(
    chunks, tmp_path, monkeypatch, minutes, exports
):
    done = []
    original = loop.export_run

    def counting(run, *arguments, **options):
        done.append(int(run.parent.name[-6:]))
        return original(run, *arguments, **options)

    monkeypatch.setattr(loop, "export_run", counting)
    out = tmp_path / "out"
    stream(chunks, out, export_minutes=minutes)
    assert folders(out) == ["chunk-000002", "chunk-000003"]
    assert stream(chunks, out, export_minutes=minutes) == []  # nothing is new
    assert done == exports
    trained = load_trained(out / "chunk-000003/run").about
    assert read_about(out / "serving").fingerprint == trained.fingerprint
    scorer = load_scorer(out / "serving")
    scores = scorer.probabilities(
        scorer.encode(pq.read_table(chunks / "002.parquet").to_batches()[0])
    )
    assert scores.shape == (800, 2)
    (chunks / "000.parquet").unlink()
    arrive(chunks, 3)
    (record,) = stream(chunks, out, keep=1)
    assert (record["chunk"], record["name"]) == (4, "003.parquet")
    assert record["before_training"]["click"]["auc"] > 0.5
    assert folders(out) == ["chunk-000004"]


def test_trackers_log_the_stream_as_one_run(chunks, tmp_path, tracker):
    out = tmp_path / "out"
    options = {"training": {"trackers": ["wandb"]}}
    records = stream(chunks, out, **options)
    arrive(chunks, 3)
    stream(chunks, out, **options)
    first, second = tracker.made
    assert (list(first.logged), list(second.logged)) == ([1, 2, 3], [4])
    assert (first.closed, second.opening.known, second.opening.folder) == (["finished"], "id", out)
    assert first.logged[2]["lag"] == records[1]["lag"]
    assert (
        first.logged[2]["before_training/click/auc"]
        == records[1]["before_training"]["click"]["auc"]
    )
    assert {"rows", "ids", "rows_per_s", "validation/conversion/calibration"} <= set(
        first.logged[1]
    )
    assert not any(name.startswith("before_training") for name in first.logged[1])


def without_clicks(chunks, name):
    table = pq.read_table(chunks / name)
    zeros = pa.array([0] * len(table), pa.int8())
    for column in ("click", "buy"):
        table = table.set_column(table.column_names.index(column), column, zeros)
    pq.write_table(table, chunks / name)


def test_a_chunk_that_cannot_be_trained_on_ends_the_stream_or_is_left_out(chunks, tmp_path):
    without_clicks(chunks, "001.parquet")
    out = tmp_path / "out"
    whole = tmp_path / "whole"
    with pytest.raises(DataError, match="label click: 0 of 724 training rows are positive"):
        stream(chunks, out)
    with pytest.warns(
        RuntimeWarning, match=r"001\.parquet: the whole chunk is left out: label click"
    ):
        records = stream(chunks, out, on_error="skip")
    assert "training rows are positive" in records[0]["error"]
    assert (records[1]["chunk"], folders(out)) == (3, ["chunk-000001", "chunk-000003"])
    with pq.ParquetWriter(chunks / "001.parquet", pq.read_schema(chunks / "000.parquet")):
        pass  # without row groups
    with pytest.warns(RuntimeWarning, match=r"001\.parquet: .* left out: split train has no rows"):
        skipped = stream(chunks, whole, on_error="skip")
    assert skipped[2]["before_training"] == records[1]["before_training"]


def test_a_chunk_whose_validation_rows_have_one_class_is_trained_on_and_exported(chunks, tmp_path):
    keep_few_conversions(chunks / "001.parquet")
    (chunks / "002.parquet").unlink()
    records = stream(chunks, tmp_path / "out")
    metrics = records[1]["validation"]["conversion"]
    undefined = {name for name in metrics if metrics[name] != metrics[name]}
    assert undefined == {"auc", "gauc", "cvr_auc", "calibration"}
    assert "error" not in records[1]
    assert math.isnan(read_about(tmp_path / "out/serving").metrics["conversion"]["auc"])
    arrive(chunks, 2)
    (record,) = stream(chunks, tmp_path / "out")
    assert record["before_training"]["conversion"]["auc"] > 0.5


def test_rows_that_cannot_be_read_are_left_out_up_to_a_share(chunks, tmp_path):
    text = tmp_path / "text"
    text.mkdir()
    csv.write_csv(pq.read_table(chunks / "000.parquet"), text / "000.csv")
    with (text / "000.csv").open("a") as file:
        file.write("1,short\n")
    with pytest.warns(
        RuntimeWarning, match=r"the whole chunk is left out: 1 of 801 rows cannot be read"
    ):
        (skipped,) = stream(text, tmp_path / "none", on_error="skip", bad_rows=0.001)
    assert "rows" not in skipped
    (record,) = stream(text, tmp_path / "out", bad_rows=0.002)
    assert (record["rows"], record["bad_rows"]) == (800, 1)
    with pytest.raises(DataError, match=r"bad_rows: expected a share in \[0, 1\), got 1"):
        loop.StreamOptions(bad_rows=1)


@pytest.mark.parametrize("value", [math.nan, math.inf, -1])
def test_numbers_of_a_stream_are_finite_and_not_negative(tmp_path, value):
    for name in ("poll", "idle", "export_minutes", "keep"):
        with pytest.raises(ConfigError, match=f"{name}: expected a finite number of at least"):
            loop.StreamOptions(**{name: value})
    with pytest.raises(ConfigError, match="settle: expected a finite number of at least 0"):
        FolderSource(tmp_path, settle=value)


def test_a_chunk_in_which_every_value_of_a_column_is_missing(chunks, tmp_path):
    """Its file has the type null for the column, as those of other programs do."""
    schema = SOURCE | {
        "fields": SOURCE["fields"] | {"seen": {"kind": "categorical", "tokens": "all"}}
    }
    for number, name in enumerate(("000.parquet", "001.parquet")):
        table = pq.read_table(chunks / name)
        table = table.append_column(
            "seen", pa.array([[1, 2]] * len(table)) if number == 0 else pa.nulls(len(table))
        )
        if number == 1:
            table = table.set_column(table.column_names.index("user"), "user", pa.nulls(len(table)))
        pq.write_table(table, chunks / name)
    (chunks / "002.parquet").unlink()
    records = stream(chunks, tmp_path / "out", schema=schema)
    assert [record["rows"] for record in records] == [800, 800]
    assert records[1]["before_training"]["click"]["auc"] > 0.5


def test_the_chunk_in_progress_comes_before_one_that_came_late_unless_it_is_gone(
    chunks, tmp_path, monkeypatch
):
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_part", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            stream(chunks, out)
    shutil.copytree(out, tmp_path / "again")
    arrive(chunks, 3, "0000.parquet")
    assert [record["name"] for record in stream(chunks, out)[:2]] == ["000.parquet", "0000.parquet"]
    (chunks / "000.parquet").unlink()
    with pytest.warns(RuntimeWarning, match=r"000\.parquet: is gone and was not trained on"):
        assert stream(chunks, tmp_path / "again")[0]["name"] == "0000.parquet"


def test_a_record_that_was_not_written_whole_is_removed(tmp_path):
    """Names and errors may hold characters that end a line of text, but none of the records."""
    journal = Journal(tmp_path)
    journal.append(
        {"chunk": 1, "name": "a\u2028b.parquet", "position": {}, "error": "got 'c\x85d'"}
    )
    before = (tmp_path / RECORDS).read_bytes()
    (tmp_path / RECORDS).write_bytes(before + b'{"chunk": 4, "na')
    assert Journal(tmp_path).records == journal.records
    for line in (b"[1]\n", b'{"chunk": 1}\n'):
        (tmp_path / RECORDS).write_bytes(line)
        with pytest.raises(DataError, match=r"stream\.jsonl: damaged"):
            Journal(tmp_path)
    (tmp_path / "exported.json").write_text('{"chunk": 1}')
    with pytest.raises(DataError, match=r"exported\.json: damaged: missing key 'time'"):
        journal.exported()
