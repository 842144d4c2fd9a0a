import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from adaftr_fast.data import parallel
from adaftr_fast.data.synthetic import write
from adaftr_fast.data.synthetic.log import LAYOUTS, ImpressionLog, LogConfig
from adaftr_fast.errors import BusyError, DataError
from tests.files.holder import holder


def config(**changes):
    return LogConfig(**({"rows": 3_000, "rates": {"click": 0.2, "conversion": 0.08}} | changes))


def test_rows_do_not_depend_on_chunks():
    whole = ImpressionLog(config()).batch(0, 3_000)
    chunks = [ImpressionLog(config()).batch(start, start + 750) for start in range(0, 3_000, 750)]
    assert pa.concat_batches(chunks).equals(whole)
    assert not ImpressionLog(config(seed=1)).batch(0, 3_000).equals(whole)


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
    # a property of the user, so constant
    assert all(first[number] == profile[row] for row, number in enumerate(user))
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


@pytest.mark.parametrize("kind", [write.write_log, write.write_raw])
def test_files_have_the_same_bytes_on_any_number_of_cores(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(write, "BATCH_ROWS", 400)
    found = []
    for cores in (1, 5):
        monkeypatch.setattr(parallel, "cores", lambda: cores)  # noqa: B023  # called within the iteration
        out = tmp_path / str(cores)
        kind(config(), out)
        found.append(
            {path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file()}
        )
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": 0}, "rows: expected >= 1, got 0"),
        ({"rows": 2**63}, r"rows: expected < 2\^63, got 9223372036854775808"),
        ({"rates": {"click": float("nan")}}, "rates: expected decreasing shares"),
        ({"layout": "x"}, "layout: expected one of aliccp, ecomm, got 'x'"),
        (
            {"rates": {"click": 0.1, "conversion": 0.2}},
            r"rates: expected decreasing shares in \(0, 1\)",
        ),
        ({"relatedness_low": 0.9, "relatedness_high": 0.1}, "relatedness: expected low <= high"),
        ({"list_scale": float("nan")}, "list_scale: expected"),
        ({"spread": float("nan")}, "spread: expected >= 0"),
    ],
)
def test_invalid_values_are_named(changes, message):
    with pytest.raises(DataError, match=message):
        config(**changes)


@pytest.mark.parametrize(
    ("kind", "lock"), [(write.write_log, "log/.lock"), (write.write_raw, ".log.lock")]
)
def test_one_process_writes_a_log(kind, lock, tmp_path):
    """What a killed one left is removed."""
    out = tmp_path / "log"
    with holder(tmp_path / lock), pytest.raises(BusyError, match=r"log: process .* is writing it"):
        kind(config(), out)
    kind(config(), out)
    if kind is write.write_log:
        (out / "log/.part-00000.parquet.new-12-ab").touch()
    else:
        shutil.rmtree(out)
        (tmp_path / ".log.new-12-ab").mkdir()
    kind(config(), out)
    assert [path.name for path in tmp_path.iterdir()] == ["log"]
    assert not list(out.rglob(".*"))
