import dataclasses
import shutil
import threading

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from adaftr_fast._json import dumps
from adaftr_fast.data.schema.parse import load_schema
from adaftr_fast.data.synthetic import write
from adaftr_fast.data.synthetic.log import LAYOUTS, ImpressionLog, LogConfig
from adaftr_fast.errors import BusyError, DataError


def config(**changes):
    return LogConfig(**({"rows": 3_000, "rates": {"click": 0.2, "conversion": 0.08}} | changes))


@pytest.mark.parametrize("layout", ["aliccp", "ecomm"])
def test_rows_do_not_depend_on_chunks(layout):
    log = ImpressionLog(config(layout=layout))
    whole = log.batch(0, 3_000)
    chunks = [ImpressionLog(config(layout=layout)).batch(start, start + 750) for start in range(0, 3_000, 750)]
    assert pa.Table.from_batches(chunks).combine_chunks().equals(pa.Table.from_batches([whole]))
    other = ImpressionLog(config(layout=layout, seed=1)).batch(0, 3_000)
    assert not other.equals(whole)


def test_fields_match_the_layout():
    assert [len(LAYOUTS[name]().fields) for name in ("aliccp", "ecomm")] == [23, 108]
    log = ImpressionLog(config(rows=20_000))
    table = log.batch(0, 20_000)
    assert abs(table["509"].null_count / 20_000 - 0.78) < 0.02
    lengths = np.diff(table["110_14"].offsets.to_numpy())
    assert lengths.min() == 1
    assert abs(lengths.mean() - 25) < 3
    user = table["101"].to_numpy()
    profile = table["121"].to_numpy()
    first = {number: profile[row] for row, number in reversed(list(enumerate(user)))}
    assert all(first[number] == profile[row] for row, number in enumerate(user))  # a property of the user, so constant
    assert np.median(np.bincount(user)[1:]) > 10  # users have many impressions
    click, conversion = (table[stage].to_numpy() for stage in ("click", "conversion"))
    assert np.all(click >= conversion)
    assert abs(click.mean() - table["p_click"].to_numpy().mean()) < 0.01


def test_log_is_written_in_files_and_resumes(tmp_path, monkeypatch):
    monkeypatch.setattr(write, "FILE_ROWS", 1_000)
    monkeypatch.setattr(write, "BATCH_ROWS", 400)
    write.write_log(config(), tmp_path / "log")
    files = sorted((tmp_path / "log/log").iterdir())
    assert [file.name for file in files] == [f"part-0000{n}.parquet" for n in range(3)]
    expected = pa.Table.from_batches([ImpressionLog(config()).batch(0, 3_000)])
    assert pq.read_table(tmp_path / "log/log").combine_chunks().equals(expected)
    kept = files[0].stat().st_mtime_ns
    files[1].unlink()
    write.write_log(config(), tmp_path / "log")
    assert files[0].stat().st_mtime_ns == kept
    assert pq.read_table(tmp_path / "log/log").combine_chunks().equals(expected)
    with pytest.raises(DataError, match="another synthetic log"):
        write.write_log(config(seed=5), tmp_path / "log")
    with pytest.raises(DataError, match="exists and is not a synthetic log"):
        write.write_log(config(), tmp_path / "log/log")


def test_schema_of_a_log_loads(tmp_path):
    write.write_log(config(days=3), tmp_path / "log")
    schema = load_schema(str(tmp_path / "log/schema.toml"))
    assert (len(schema.fields), schema.group, schema.truth["click"]) == (23, "101", "p_click")
    assert schema.split["validation"].where == [("day", "==", 1)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": 0}, "rows: expected >= 1, got 0"),
        ({"days": 0}, "days: expected >= 1, got 0"),
        ({"layout": "x"}, "layout: expected one of aliccp, ecomm, got 'x'"),
        ({"rates": {"click": 0.1, "conversion": 0.2}}, r"rates: expected decreasing shares in \(0, 1\)"),
        ({"rates": {"click": 1.0}}, r"rates: expected decreasing shares in \(0, 1\)"),
        ({"relatedness_low": 0.9, "relatedness_high": 0.1}, "relatedness: expected low <= high"),
        ({"list_scale": float("nan")}, "list_scale: expected"),
        ({"spread": float("nan")}, "spread: expected >= 0"),
    ],
)
def test_invalid_values_are_named(changes, message):
    with pytest.raises(DataError, match=message):
        config(**changes)


@pytest.mark.parametrize("kind", [write.write_log, write.write_raw])
def test_one_process_writes_a_log(kind, tmp_path, monkeypatch):
    """The second writer ends at once; what a killed one left is removed."""
    out, found = tmp_path / "log", []

    class SecondWriter(ImpressionLog):
        def batch(self, *rows):
            if not found:
                thread = threading.Thread(target=second)
                thread.start()
                thread.join()
            return super().batch(*rows)

    def second():
        with pytest.raises(BusyError, match=r"log: another thread of this process is writing it"):
            kind(config(), out)
        found.append(True)

    monkeypatch.setattr(f"{kind.__module__}.ImpressionLog", SecondWriter)
    (out / "log").mkdir(parents=True)
    if kind is write.write_raw:
        shutil.rmtree(out)
        (tmp_path / ".log.new-12-ab").mkdir()
    else:
        (out / "log/.part-00000.parquet.new-12-ab").touch()
        (out / "log.json").write_text(dumps(dataclasses.asdict(config()), indent=2) + "\n")
    kind(config(), out)
    assert found
    assert [path.name for path in tmp_path.iterdir()] == ["log"]
    assert not list(out.rglob(".*"))
