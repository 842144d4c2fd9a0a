"""Preparing in parts, each by a process of its own, gives what one process gives."""

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from adaftr_fast.cli import main
from adaftr_fast.data.dataset import split_file
from adaftr_fast.data.dataset.loader import PreparedData
from adaftr_fast.data.dataset.manifest import Manifest, read_manifest
from adaftr_fast.data.dataset.split_file import read_split
from adaftr_fast.data.prepare import barrier, stages
from adaftr_fast.data.prepare.run import Unfinished, prepare, prepare_shard
from adaftr_fast.data.raw import inputs, staging
from adaftr_fast.data.schema.parse import load_schema, parse_schema
from adaftr_fast.data.schema.types import SPLITS
from adaftr_fast.data.shard import Shard
from adaftr_fast.data.synthetic.log import LogConfig
from adaftr_fast.data.synthetic.raw import write_raw
from adaftr_fast.errors import DataError

ROWS = 3_000
BY_TIME = {
    "train": {"where": [["day", "<=", 20]]},
    "validation": {"where": [["day", ">", 20]], "rows": "even"},
    "test": {"where": [["day", ">", 20]], "rows": "odd"},
}
SHARES = {"train": {"stop": 0.6}, "validation": {"start": 0.6, "stop": 0.8}, "test": {"start": 0.8}}
BY_USER = {split: {"hash": {"column": "user"} | share} for split, share in SHARES.items()}
BY_ROW = {split: {"hash": share} for split, share in SHARES.items()}
SCHEMA = {
    "name": "shop",
    "labels": {"click": "click", "buy": [["paid", ">", 60.0], ["click", "==", 1]]},
    "group": "user",
    "weight": "weight",
    "split": BY_TIME,
    "drop": [["day", "==", 7]],
    "defaults": {"min_count": 4, "buckets": 9},
    "fields": {
        "user": "categorical",
        "item": "categorical",
        "price": "numeric",
        "seen": {"kind": "categorical", "tokens": "all", "separator": "|"},
        "last": {"kind": "categorical", "column": "seen", "tokens": "last", "separator": "|"},
        "item_day": {"cross": ["item", "day"]},
        "spread": {"kind": "categorical", "column": "item", "hashed": 50},
    },
}


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    """The same rows as text, plain and compressed, and as parquet of many row groups and of one."""
    random, folder = np.random.default_rng(0), tmp_path_factory.mktemp("log")
    users, items = random.zipf(1.5, ROWS) % 400, random.zipf(1.3, ROWS) % 900
    columns = {
        "day": np.sort(random.integers(1, 31, ROWS)),
        "user": [None if user == 0 else f"u{user}" for user in users],
        "item": items,
        "price": np.round(random.gamma(2.0, 20.0, ROWS), 1),
        "seen": ["|".join(map(str, random.zipf(1.5, n) % 60)) or None for n in random.integers(0, 5, ROWS)],
        "click": random.integers(0, 2, ROWS),
        "paid": random.integers(0, 120, ROWS),
        "weight": np.round(random.random(ROWS), 3),
    }
    table = pa.table(columns)
    pa.csv.write_csv(table, folder / "log.csv")
    subprocess.run(["gzip", "-k", folder / "log.csv"], check=True)
    pq.write_table(table, folder / "log.parquet", row_group_size=170)
    pq.write_table(table, folder / "whole.parquet")
    (folder / "files").mkdir()
    for number, start in enumerate(range(0, ROWS, 800)):
        pq.write_table(table.slice(start, 800), folder / f"files/{number}.parquet", row_group_size=300)
    return folder


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(staging, "BLOCK_BYTES", 5_000)


def run_shards(schema, files, out, count, **options) -> tuple[Manifest, int]:
    """The manifest, and how often every part was called."""
    for call in range(1, 6):
        done = [prepare_shard(schema, files, out, Shard(number + 1, count), **options) for number in range(count)]
        if finished := [each for each in done if isinstance(each, Manifest)]:
            return finished[0], call
    raise AssertionError("no end")


def assert_same(out, whole):
    """Every row, id, value and word, but for the files that hold the rows."""
    ours, theirs = read_manifest(out), read_manifest(whole)
    for split in SPLITS:
        assert read_split(out, ours, split).equals(read_split(whole, theirs, split))
    assert (out / "vocabulary.parquet").read_bytes() == (whole / "vocabulary.parquet").read_bytes()
    splits = {split: dataclasses.replace(info, files={}) for split, info in ours.splits.items()}
    assert dataclasses.replace(ours, splits=splits) == theirs
    named = {"schema.json", "vocabulary.parquet", *(name for split in SPLITS for name in ours.files(split))}
    assert {path.name for path in out.iterdir()} == named
    assert not (out.parent / f".{out.name}.parts").exists()


@pytest.mark.parametrize("split", [BY_TIME, BY_USER, BY_ROW], ids=["time", "user", "row"])
@pytest.mark.parametrize("name", ["log.csv", "log.csv.gz", "log.parquet", "files", "whole.parquet"])
def test_parts_are_the_whole(log, tmp_path, name, split):
    schema = parse_schema(SCHEMA | {"split": split})
    whole = prepare(schema, [log / name], tmp_path / "whole")
    assert min(info.rows for info in whole.splits.values()) > 100
    assert len(whole.fields[2].edges) == 8
    for count in (1, 2, 3, 8):
        manifest, calls = run_shards(schema, [log / name], tmp_path / f"by{count}", count)
        assert_same(tmp_path / f"by{count}", tmp_path / "whole")
        assert calls <= (1 if count == 1 else 3)
        assert len(manifest.files("train")) == 1 or name != "whole.parquet"  # a row group is not divided


def test_parts_of_raw_aliccp_files(tmp_path):
    config = LogConfig(rows=2_000, users=80, items=30, list_scale=0.05, rates={"click": 0.3, "conversion": 0.1})
    files = write_raw(config, tmp_path / "raw")
    source = load_schema("aliccp").source
    lists = {"110_14": {"kind": "categorical", "tokens": "all"}}
    schema = parse_schema(source | {"defaults": {"min_count": 2}, "fields": source["fields"] | lists})
    prepare(schema, files, tmp_path / "whole")
    for count in (2, 3):
        _, calls = run_shards(schema, files, tmp_path / f"by{count}", count)
        assert calls <= 4  # common features come before the rows that they are joined with
        assert_same(tmp_path / f"by{count}", tmp_path / "whole")


def test_parts_grow_another_folder(log, tmp_path):
    schema = parse_schema(SCHEMA)
    prepare(schema, [log / "files"], tmp_path / "first")
    half = pq.read_table(log / "log.parquet").slice(0, 2_300).replace_schema_metadata(None)
    half = half.set_column(2, "item", pa.compute.add(half["item"], 300))
    pq.write_table(half, tmp_path / "later.parquet", row_group_size=170)
    prepare(schema, [tmp_path / "later.parquet"], tmp_path / "whole", grow=tmp_path / "first")
    run_shards(schema, [tmp_path / "later.parquet"], tmp_path / "by3", 3, grow=tmp_path / "first")
    assert_same(tmp_path / "by3", tmp_path / "whole")


def test_bad_rows_are_counted_over_all_parts(log, tmp_path):
    lines = (log / "log.csv").read_text().splitlines()
    for line in (3, 900, 2_500):
        lines[line] = lines[line].replace(",", ";", 1)
    (tmp_path / "log.csv").write_text("\n".join(lines))
    schema = parse_schema(SCHEMA)
    prepare(schema, [tmp_path / "log.csv"], tmp_path / "whole", bad_rows=0.01)
    manifest, _ = run_shards(schema, [tmp_path / "log.csv"], tmp_path / "by2", 2, bad_rows=0.01)
    assert manifest.bad_rows.bad == 3
    assert_same(tmp_path / "by2", tmp_path / "whole")
    with pytest.raises(DataError, match=r"3 of 3,000 rows cannot be read .*a share of 0\.0005"):
        run_shards(schema, [tmp_path / "log.csv"], tmp_path / "few", 2, bad_rows=0.0005)


def test_a_missing_part_is_named_and_nothing_is_there_before_it(log, tmp_path):
    schema, out = parse_schema(SCHEMA), tmp_path / "out"
    for _ in range(2):
        for number in (1, 3):
            done = prepare_shard(schema, [log / "log.csv"], out, Shard(number, 4))
    assert done == Unfinished("read", [2, 4])
    assert not out.exists()
    prepare(schema, [log / "log.csv"], tmp_path / "whole")
    run_shards(schema, [log / "log.csv"], out, 4)
    assert_same(out, tmp_path / "whole")


def test_parts_of_something_else_are_refused(log, tmp_path):
    schema, out, files = parse_schema(SCHEMA), tmp_path / "out", [tmp_path / "log.csv"]
    shutil.copy(log / "log.csv", files[0])
    prepare_shard(schema, files, out, Shard(1, 2))
    other = parse_schema(SCHEMA | {"defaults": {"buckets": 3}})
    for changed, message in (
        (
            (other, files, out, Shard(2, 2)),
            r"shard 2/2: the shards in .*\.out\.parts were started with a different schema;",
        ),
        (
            (schema, [log / "log.parquet"], out, Shard(2, 2)),
            r"a different list of files \(.*\); use the same one, or remove",
        ),
        ((schema, files, out, Shard(2, 3)), "with a different number of parts"),
    ):
        with pytest.raises(DataError, match=message):
            prepare_shard(*changed)
    with pytest.raises(DataError, match="with a different bad_rows"):
        prepare_shard(schema, files, out, Shard(2, 2), bad_rows=0.1)
    assert isinstance(run_shards(schema, files, out, 2)[0], Manifest)


@pytest.mark.parametrize("name", ["log.csv", "log.parquet"])
@pytest.mark.parametrize("done", [[2], [2, 1], [2, 1, 2]], ids=["read", "counted", "before encoding"])
def test_parts_of_a_file_that_changes_are_refused(log, tmp_path, name, done):
    schema, file, out = parse_schema(SCHEMA), tmp_path / name, tmp_path / "out"
    shutil.copy2(log / name, file)
    for number in done:
        prepare_shard(schema, [file], out, Shard(number, 2))
    shutil.copy(file, tmp_path / "other")
    (tmp_path / "other").rename(file)  # the same name and size, at another time
    for number in (1, 2):  # the part that hashes it, and one that does not
        with pytest.raises(DataError, match=r"a different list of files \(name, size, time of change\); .* or remove"):
            prepare_shard(schema, [file], out, Shard(number, 2))
    assert not out.exists()
    (tmp_path / "folder").mkdir()  # another name for the same file
    shutil.copy2(log / name, tmp_path / "folder" / name)
    prepare(schema, [log / name], tmp_path / "whole")
    run_shards(schema, [tmp_path / "folder" / name], out, 2)
    assert_same(out, tmp_path / "whole")


@pytest.mark.parametrize(
    ("module", "function", "kept"),
    [
        (inputs, "parse_block", "part-*.parquet"),
        (stages, "count_values", "count-1.json"),
        (split_file, "_encode", "train-*.parquet"),
        (stages, "split_info", "encode-1.json"),
    ],
)
def test_what_changes_while_it_is_read_is_not_kept(log, tmp_path, monkeypatch, module, function, kept):
    schema, file, out = parse_schema(SCHEMA), tmp_path / "log.csv", tmp_path / "out"
    shutil.copy2(log / "log.csv", file)
    before, real = file.stat(), getattr(module, function)

    def changing(*arguments):
        os.utime(file)
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(module, function, changing)
        with pytest.raises(DataError, match=r"log\.csv: changed while it was prepared"):
            prepare(schema, [file], tmp_path / "single")
        assert not [path.name for path in tmp_path.iterdir() if "single" in path.name]
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
        with pytest.raises(DataError, match=r"log\.csv: changed while it was prepared"):
            run_shards(schema, [file], out, 2)
    assert not list((tmp_path / ".out.parts").rglob(kept))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    prepare(schema, [file], tmp_path / "whole")
    run_shards(schema, [file], out, 2)
    assert_same(out, tmp_path / "whole")


def test_a_folder_is_kept_or_replaced_as_by_one_process(log, tmp_path):
    schema, files, out = parse_schema(SCHEMA), [log / "log.csv"], tmp_path / "out"
    first = prepare(schema, files, out)
    written = (out / "train.parquet").stat().st_mtime_ns
    assert prepare_shard(schema, files, out, Shard(2, 3)) == first  # nothing is left to do
    assert (out / "train.parquet").stat().st_mtime_ns == written
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    other = parse_schema(SCHEMA | {"split": BY_USER})
    run_shards(other, files, out, 2)
    prepare(other, files, tmp_path / "whole")
    assert_same(out, tmp_path / "whole")
    assert prepare(other, files, out) == read_manifest(out)  # one process keeps what parts have made
    assert len(read_manifest(out).files("train")) == 2
    assert prepare(schema, files, out) == first
    (out / "thesis.txt").touch()
    with pytest.raises(DataError, match=r"not replaced, since it also holds thesis\.txt"):
        prepare_shard(other, files, out, Shard(1, 2))


def test_stopped_between_publishing_and_cleaning_up(log, tmp_path, monkeypatch):
    schema, files, out = parse_schema(SCHEMA), [log / "log.parquet"], tmp_path / "out"

    def stopped(work):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("adaftr_fast.data.prepare.run.remove_work", stopped)
        with pytest.raises(KeyboardInterrupt):
            run_shards(schema, files, out, 2)
    prepare(schema, files, tmp_path / "whole")
    assert isinstance(prepare_shard(schema, files, out, Shard(1, 2)), Manifest)
    assert_same(out, tmp_path / "whole")


def test_blocks_that_are_not_yet_to_be_seen_are_no_missing_rows(log, tmp_path):
    schema, files, out = parse_schema(SCHEMA), [log / "log.csv"], tmp_path / "out"
    prepare_shard(schema, files, out, Shard(1, 2))
    late = tmp_path / ".out.parts/staged/data/part-0000002.parquet"
    late.rename(tmp_path / "late")
    with pytest.raises(OSError, match=r"staged/data: expected \d+ staged files, found \d+"):
        prepare_shard(schema, files, out, Shard(2, 2))
    (tmp_path / "late").rename(late)
    prepare(schema, files, tmp_path / "whole")
    run_shards(schema, files, out, 2)
    assert_same(out, tmp_path / "whole")


def test_what_has_no_parts(tmp_path, capsys):
    with pytest.raises(DataError, match="a log that is generated has no parts"):
        prepare_shard(load_schema("synthetic"), None, tmp_path / "out", Shard(1, 2))
    for text, message in (("3", "expected NUMBER/COUNT"), ("0/2", "from 1 to 2, got 0"), ("3/2", "from 1 to 2, got 3")):
        with pytest.raises(DataError, match=message):
            Shard.parse(text)
    assert main(["prepare", "--dataset", "flights", "--wait", "5", "--out", str(tmp_path / "out")]) == 2
    assert "--wait goes with --part" in capsys.readouterr().err


def test_parts_without_rows_of_a_split_and_one_error_for_all(log, tmp_path):
    schema, files = parse_schema(SCHEMA | {"split": BY_TIME | {"test": {"where": [["day", ">", 90]]}}}), [log / "files"]
    with pytest.raises(DataError, match="split test has no rows"):
        run_shards(schema, files, tmp_path / "out", 3)
    for number in (1, 2, 3):  # whichever is asked again
        with pytest.raises(DataError, match="split test has no rows"):
            prepare_shard(schema, files, tmp_path / "out", Shard(number, 3))


KILLED = """
import os, shutil, signal, sys
from adaftr_fast.data.raw import staging
from adaftr_fast.cli import main

name, *arguments = sys.argv[1:]
staging.BLOCK_BYTES = 5_000

def killed(real, place):
    def call(*paths, **options):
        if os.path.basename(paths[place]) == name and os.path.exists(paths[0]):
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*paths, **options)
    return call

os.replace = killed(os.replace, 1)  # the file is written and not yet in its place
os.rename, shutil.rmtree = killed(os.rename, 0), killed(shutil.rmtree, 0)
sys.exit(main(arguments))
"""


@pytest.fixture
def command(log):
    return ["prepare", "--labels", "click", "--group", "user", "--files", str(log / "log.csv"), "--out"]


def test_a_part_killed_at_any_file_goes_on(command, tmp_path):
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert main([*command, str(whole)]) == 0
    first, second = ([*command, str(out), "--part", f"{number}/2"] for number in (1, 2))
    for name in ("part-0000003.parquet", "read.json", "count.json", "train-00002-of-00002.parquet", "encode.json"):
        assert main(first) == 0
        killed = subprocess.run([sys.executable, "-c", KILLED, name, *second], capture_output=True, text=True)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        assert not out.exists()
    assert main(second) == 0
    assert_same(out, whole)


@pytest.mark.parametrize("part", [[], ["--part", "1/1"]], ids=["single", "part"])
def test_killed_while_publishing_nothing_is_lost_or_left(log, command, tmp_path, part):
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert main([*command, str(whole)]) == 0
    for name in ("prepared", ".out.parts.old" if part else ".out.work"):
        shutil.rmtree(out, ignore_errors=True)
        prepare(parse_schema(SCHEMA), [log / "log.csv"], out)
        arguments = [sys.executable, "-c", KILLED, name, *command, str(out), *part]
        assert subprocess.run(arguments, capture_output=True).returncode == -signal.SIGKILL
        assert out.exists() == (name != "prepared")
        assert main([*command, str(out), *part]) == 0
        assert_same(out, whole)
        assert {path.name for path in tmp_path.iterdir()} == {"out", "whole"}
    prepare(parse_schema(SCHEMA), [log / "log.csv"], out)
    before = read_manifest(out)
    subprocess.run([sys.executable, "-c", KILLED, "prepared", *command, str(out), *part], capture_output=True)
    other = (parse_schema(SCHEMA | {"fields": {"absent": "categorical"}}), [log / "log.csv"], out)
    with pytest.raises(DataError, match="started with a different schema" if part else "no column 'absent'"):
        prepare_shard(*other, Shard()) if part else prepare(*other)
    assert read_manifest(out) == before  # back in its place


def test_what_came_to_the_place_meanwhile_is_not_replaced(log, tmp_path, monkeypatch):
    schema, files, out = parse_schema(SCHEMA), [log / "log.csv"], tmp_path / "out"
    real = stages.split_info

    def meanwhile(path):
        out.mkdir(exist_ok=True)
        (out / "thesis.txt").touch()
        return real(path)

    with monkeypatch.context() as patch:
        patch.setattr(stages, "split_info", meanwhile)
        with pytest.raises(DataError, match=r"not a prepared folder \(it holds thesis\.txt\)"):
            prepare(schema, files, out)
        assert (out / "thesis.txt").exists()
        shutil.rmtree(out)
        with pytest.raises(DataError, match=r"not a prepared folder \(it holds thesis\.txt\)"):
            run_shards(schema, files, out, 2)
    assert (out / "thesis.txt").exists()
    shutil.rmtree(out)
    assert isinstance(prepare_shard(schema, files, out, Shard(1, 2)), Manifest)


def test_parts_at_once_wait_for_each_other(command, tmp_path, capsys):
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert main([*command, str(whole)]) == 0
    parts = [
        subprocess.Popen(
            [sys.executable, "-m", "adaftr_fast.cli", *command, str(out), "--part", f"{number}/2", "--wait", "300"],
            env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, text=True,
        )
        for number in (1, 2)
    ]  # fmt: skip
    for part in parts:
        told, _ = part.communicate(timeout=300)
        assert part.returncode == 0
        assert "log, 7 fields" in told
    assert_same(out, whole)
    assert main([*command, str(tmp_path / "late"), "--part", "2/3"]) == 0
    assert "part 2/3: read is done, but not by part 1, 3; run this again once it is" in capsys.readouterr().out


def test_a_part_that_fails_ends_those_that_wait_for_it(log, tmp_path, monkeypatch):
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
    # What failed before another began to wait may be about to begin again.
    assert prepare_shard(schema, [file], out, Shard(2, 2), wait=1) == Unfinished("read", [1])
    monkeypatch.setattr(barrier, "RESTART_SECONDS", 0.1)
    with pytest.raises(DataError, match="shard 1/2 failed"):
        prepare_shard(schema, [file], out, Shard(2, 2), wait=600)


def test_waiting_in_vain_is_no_success(command, tmp_path, capsys):
    assert main([*command, str(tmp_path / "out"), "--part", "1/2", "--wait", "0.1"]) == 2
    assert "read is done, but not by part 2; run this again once it is (waited 0.1" in capsys.readouterr().err


def test_removed_work_is_not_taken_for_done(log, tmp_path, monkeypatch):
    schema, files, out = parse_schema(SCHEMA), [log / "log.csv"], tmp_path / "out"
    monkeypatch.setattr(barrier.time, "sleep", lambda _: shutil.rmtree(tmp_path / ".out.parts"))
    prepare(parse_schema(SCHEMA | {"split": BY_USER}), files, out)
    for _ in range(2):
        with pytest.raises(DataError, match="the work of its parts was removed; begin all parts anew"):
            prepare_shard(schema, files, out, Shard(1, 2), wait=5)
        shutil.rmtree(out)
        prepare(schema, [log / "log.parquet"], out)  # the same schema, of another file


def test_the_loader_reads_parts_as_the_whole(log, tmp_path):
    run_shards(parse_schema(SCHEMA), [log / "log.csv"], tmp_path / "out", 3)
    prepare(parse_schema(SCHEMA), [log / "log.csv"], tmp_path / "whole")
    ours, theirs = (PreparedData(tmp_path / name).load("train") for name in ("out", "whole"))
    for one, other in zip(ours.batches(256), theirs.batches(256), strict=True):
        assert one.ids.equal(other.ids)
        assert one.offsets.equal(other.offsets)
