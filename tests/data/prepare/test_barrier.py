"""Shards wait for each other after every stage, and stop when one fails."""

import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from adaftr_fast.cli import main
from adaftr_fast.data.prepare import barrier
from adaftr_fast.data.prepare.run import Unfinished, prepare, prepare_shard
from adaftr_fast.data.schema.parse import parse_schema
from adaftr_fast.data.shard import Shard
from adaftr_fast.errors import DataError
from tests.data.prepare.shards import BY_USER, SCHEMA, assert_same, run_shards
from tests.forks import COMMAND, Script

pytestmark = pytest.mark.usefixtures("small_blocks")


def test_missing_shards_are_reported(log, tmp_path):
    schema, out = parse_schema(SCHEMA), tmp_path / "out"
    for _ in range(2):
        for number in (1, 3):
            done = prepare_shard(schema, [log / "log.csv"], out, Shard(number, 4))
    assert done == Unfinished("read", [2, 4])
    assert not out.exists()
    prepare(schema, [log / "log.csv"], tmp_path / "whole")
    run_shards(schema, [log / "log.csv"], out, 4)
    assert_same(out, tmp_path / "whole")


def test_concurrent_shards_wait_for_each_other(command, tmp_path, capsys):
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert main([*command, str(whole)]) == 0
    shards = [Script(COMMAND, *command, out, "--shard", f"{number}/2", "--wait", "300") for number in (1, 2)]
    for shard in shards:
        output, _ = shard.communicate(timeout=300)
        assert shard.returncode == 0
        assert "log, 7 fields" in output
    assert_same(out, whole)
    assert main([*command, str(tmp_path / "late"), "--shard", "2/3"]) == 0
    assert "shard 2/3: read is done, but not by shard 1, 3; run this again once it is" in capsys.readouterr().out


def test_failed_shard_stops_waiting_shards(log, tmp_path, monkeypatch):
    schema, file, out = parse_schema(SCHEMA), tmp_path / "log.csv", tmp_path / "out"
    lines = (log / "log.csv").read_text().splitlines()
    lines[3] = lines[3].replace(",", ";", 1)
    file.write_text("\n".join(lines))

    def failing():
        time.sleep(1)
        with suppress(DataError):
            prepare_shard(schema, [file], out, Shard(1, 2))

    with ThreadPoolExecutor(1) as other:
        done = other.submit(failing)
        with pytest.raises(DataError, match=r"shard 1/2 failed: 1 of .* rows cannot be read .*log\.csv:4"):
            prepare_shard(schema, [file], out, Shard(2, 2), wait=600)
        done.result()
    # A shard that failed before this one started to wait may be restarting.
    assert prepare_shard(schema, [file], out, Shard(2, 2), wait=1) == Unfinished("read", [1])
    monkeypatch.setattr(barrier, "RESTART_SECONDS", 0.1)
    with pytest.raises(DataError, match="shard 1/2 failed"):
        prepare_shard(schema, [file], out, Shard(2, 2), wait=600)


def test_wait_timeout_is_an_error(command, tmp_path, capsys):
    assert main([*command, str(tmp_path / "out"), "--shard", "1/2", "--wait", "0.1"]) == 2
    assert "read is done, but not by shard 2; run this again once it is (waited 0.1" in capsys.readouterr().err


def test_removed_work_folder_is_an_error(log, tmp_path, monkeypatch):
    schema, files, out = parse_schema(SCHEMA), [log / "log.csv"], tmp_path / "out"
    monkeypatch.setattr(barrier.time, "sleep", lambda _: shutil.rmtree(tmp_path / ".out.parts"))
    prepare(parse_schema(SCHEMA | {"split": BY_USER}), files, out)
    for _ in range(2):
        with pytest.raises(DataError, match="the work folder of its shards was removed; start all shards again"):
            prepare_shard(schema, files, out, Shard(1, 2), wait=5)
        shutil.rmtree(out)
        prepare(schema, [log / "log.parquet"], out)  # the same schema with another file
