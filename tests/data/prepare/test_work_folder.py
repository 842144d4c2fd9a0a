import shutil

import pyarrow.csv as csv
import pyarrow.parquet as pq
import pytest

from adaftr_fast import _files
from adaftr_fast.data.dataset.manifest import read_manifest
from adaftr_fast.data.prepare import steps
from adaftr_fast.data.prepare.run import prepare
from adaftr_fast.data.prepare.work_folder import publish
from adaftr_fast.data.schema.parse import parse_schema
from adaftr_fast.data.schema.types import SPLITS
from adaftr_fast.errors import BusyError
from tests.files.holder import holder
from tests.files.power import TORN, Disk, cut

READ, COUNT = (f"{step}-00001-of-00001.json" for step in ("read", "count"))


def test_failed_publish_keeps_the_old_folder(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/old").touch()
    with pytest.raises(FileNotFoundError):
        publish(tmp_path / "nothing", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out/old").exists()
    (tmp_path / "work/prepared").mkdir(parents=True)
    publish(tmp_path / "work", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert not list((tmp_path / "out").iterdir())


def test_interrupted_run_resumes(source, write, tmp_path, monkeypatch):
    csv.write_csv(pq.read_table(write()), tmp_path / "log.csv")
    prepare(parse_schema(source), [tmp_path / "log.csv"], tmp_path / "whole")
    real, done = steps.write_split, []

    def interrupted(schema, encoders, groups, raw, batches, path, check):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(path.name)
        real(schema, encoders, groups, raw, batches, path, check)

    monkeypatch.setattr(steps, "write_split", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare(parse_schema(source), [tmp_path / "log.csv"], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    staged = list((tmp_path / ".out.work").glob("steps-*/staged/data/part-*.parquet"))
    assert len(staged) == 1
    written = staged[0].stat().st_mtime_ns

    def resumed(schema, encoders, groups, raw, batches, path, check):
        assert staged[0].stat().st_mtime_ns == written
        done.append(path.name)
        real(schema, encoders, groups, raw, batches, path, check)

    monkeypatch.setattr(steps, "write_split", resumed)
    prepare(parse_schema(source), [tmp_path / "log.csv"], tmp_path / "out")
    assert done == ["train.parquet", "validation.parquet", "test.parquet"]
    for split in SPLITS:
        whole, out = (pq.read_table(tmp_path / name / f"{split}.parquet") for name in ("whole", "out"))
        assert whole.equals(out)
    assert not (tmp_path / ".out.work").exists()


def test_concurrent_runs_do_not_mix(source, write, tmp_path):
    with holder(tmp_path / ".out.lock"):
        for shards in (1, 2):
            with pytest.raises(BusyError, match=r"out: process .* is writing it"):
                prepare(parse_schema(source), [write()], tmp_path / "out", shards=shards)
    (tmp_path / ".out.work").mkdir()
    (tmp_path / ".out.work/key").write_text("another key")
    (tmp_path / ".out.work/prepared").mkdir()
    (tmp_path / ".out.work/prepared/train.parquet").write_text("of other inputs")
    prepare(parse_schema(source), [write()], tmp_path / "out")


def test_what_killed_processes_left_is_removed(source, write, tmp_path):
    """A process was killed while it removed its work, which it had renamed, and another one while it made its work."""
    prepare(parse_schema(source), [write()], tmp_path / "out")
    (tmp_path / ".out.new-1-ab").mkdir()
    (tmp_path / ".out.lock").touch()
    prepare(parse_schema(source), [write()], tmp_path / "out")
    assert not list(tmp_path.glob(".out*"))
    (tmp_path / ".out.work/prepared").mkdir(parents=True)
    prepare(parse_schema(source), [write()], tmp_path / "out")
    assert not list(tmp_path.glob(".out*"))
    (tmp_path / ".out.work").mkdir()
    (tmp_path / ".out.work/key").write_text("unfinished work of other inputs")
    (tmp_path / ".out.new-1-ab").mkdir()
    with holder(tmp_path / ".out.lock"):
        prepare(parse_schema(source), [write()], tmp_path / "out")  # up to date, so nothing is written
        assert (tmp_path / ".out.new-1-ab").exists()
    (tmp_path / ".out.lock").touch()
    prepare(parse_schema(source), [write()], tmp_path / "out")
    assert [path.name for path in tmp_path.glob(".out*")] == [".out.work"]


@pytest.mark.parametrize("shards", [1, 2])
def test_the_former_folder_is_not_published_again(source, write, tmp_path, monkeypatch, shards):
    """A process is interrupted after it has exchanged both folders, and the new one is removed."""
    out = tmp_path / "out"
    log = write()
    real = _files._exchange

    def run(source):
        schema = parse_schema(source)
        return prepare(schema, [log], out, shards=shards)

    def interrupted(new, target):
        assert real(new, target)
        raise KeyboardInterrupt

    other = source | {"name": "other"}
    former = run(other)
    with monkeypatch.context() as patch:
        patch.setattr(_files, "_exchange", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(source)
    new = read_manifest(out)
    assert new.inputs != former.inputs
    shutil.rmtree(out)
    assert run(source) == new == read_manifest(out)
    assert not list(tmp_path.glob(".out*"))


def test_a_symbolic_link_is_followed(source, write, tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to("disk/data")
    other = source | {"name": "other"}
    for each in (source, other):  # absent, then replaced
        prepare(parse_schema(each), [write()], tmp_path / "out")
        assert (tmp_path / "out").is_symlink()
        assert read_manifest(tmp_path / "disk/data").dataset == each["name"]
    prepare(parse_schema(source), [write()], tmp_path / "out", shards=2)
    assert read_manifest(tmp_path / "disk/data").dataset == source["name"]
    assert (tmp_path / "out").is_symlink()
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["data"]


@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize("old", [True, False])
def test_a_power_failure_leaves_the_old_or_the_new_folder(source, write, tmp_path, old, shards):
    log, out = write(), tmp_path / "out"
    if old:
        prepare(parse_schema(source | {"name": "other"}), [log], out)
    schema = parse_schema(source)
    cut(tmp_path, out, lambda: prepare(schema, [log], out, shards=shards))


def each_file(folder):
    for name, content in folder.items():
        if isinstance(content, dict):
            yield from each_file(content)
        else:
            yield name, content


def test_a_power_failure_leaves_no_torn_work_that_would_be_resumed(source, write, tmp_path):
    csv.write_csv(pq.read_table(write()), tmp_path / "log.csv")
    disk = Disk(tmp_path, tmp_path / ".out.work")
    disk.run(lambda: prepare(parse_schema(source), [tmp_path / "log.csv"], tmp_path / "out"))
    seen = set()
    for work in (work or {} for states in disk.states for work in states):
        prepared = work.get("prepared", {})
        assert TORN not in [prepared.get(f"{split}.parquet") for split in SPLITS]
        written = next((files for name, files in work.items() if name.startswith("steps-")), {})
        vouched = {READ: written.get("staged"), COUNT: written.get("counted")}
        vouched["count.json"] = {"vocabulary.parquet": prepared.get("vocabulary.parquet")}
        for result, files in vouched.items():
            if result in work:
                seen.add(result)
                assert files
                named = [content for name, content in each_file(files) if not name.startswith(".")]
                assert named
                assert not {TORN, None}.intersection(named)
    assert seen == {READ, COUNT, "count.json"}
