import shutil

import pyarrow.csv as csv
import pyarrow.parquet as pq
import pytest

from adaftr_fast import _files
from adaftr_fast.data.dataset.manifest import read_manifest
from adaftr_fast.data.schema.types import SPLITS
from adaftr_fast.errors import BusyError
from tests.files.holder import holder
from tests.files.power import TORN, Disk, cut

READ, COUNT = (f"{step}-00001-of-00001.json" for step in ("read", "count"))


def test_concurrent_runs_do_not_mix(prepared, tmp_path):
    busy = pytest.raises(BusyError, match=r"out: process .* is writing it")
    with holder(tmp_path / ".out.lock"), busy:
        prepared()
    (tmp_path / ".out.work/prepared").mkdir(parents=True)
    (tmp_path / ".out.work/key").write_text("another key")
    (tmp_path / ".out.work/prepared/train.parquet").write_text("of other inputs")
    prepared()
    assert len(pq.read_table(tmp_path / "out/train.parquet")) > 0


def test_what_killed_processes_left_is_removed(prepared, tmp_path):
    """A process was killed while it removed its work, which it had renamed, and another one while
    it made its work.
    """
    prepared()
    for left in (".out.new-1-ab", ".out.work/prepared"):
        (tmp_path / left).mkdir(parents=True)
        (tmp_path / ".out.lock").touch()
        prepared()
        assert not list(tmp_path.glob(".out*"))
    (tmp_path / ".out.work").mkdir()
    (tmp_path / ".out.work/key").write_text("unfinished work of other inputs")
    (tmp_path / ".out.new-1-ab").mkdir()
    with holder(tmp_path / ".out.lock"):
        prepared()  # up to date, so nothing is written
        assert (tmp_path / ".out.new-1-ab").exists()
    (tmp_path / ".out.lock").touch()
    prepared()
    assert [path.name for path in tmp_path.glob(".out*")] == [".out.work"]


def test_the_former_folder_is_not_published_again(source, prepared, tmp_path, monkeypatch):
    """A process is interrupted after it has exchanged both folders, and the new one is removed."""
    real = _files._exchange

    def interrupted(new, target):
        assert real(new, target)
        raise KeyboardInterrupt

    former = prepared(options={"shards": 2})
    source["name"] = "other"
    with monkeypatch.context() as patch:
        patch.setattr(_files, "_exchange", interrupted)
        with pytest.raises(KeyboardInterrupt):
            prepared(options={"shards": 2})
    new = read_manifest(tmp_path / "out")
    assert new.inputs != former.inputs
    shutil.rmtree(tmp_path / "out")
    assert prepared(options={"shards": 2}) == new == read_manifest(tmp_path / "out")
    assert not list(tmp_path.glob(".out*"))


def test_a_symbolic_link_is_followed(source, prepared, tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to("disk/data")
    for name, shards in (("first", 1), ("second", 1), ("third", 2)):  # absent, then replaced
        source["name"] = name
        prepared(options={"shards": shards})
        assert (tmp_path / "out").is_symlink()
        assert read_manifest(tmp_path / "disk/data").dataset == name
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["data"]


@pytest.mark.parametrize("shards", [1, 2])
def test_a_power_failure_leaves_the_old_or_the_new_folder(source, prepared, tmp_path, shards):
    """One shard replaces a folder, two write a new one."""
    if shards == 1:
        prepared()
        source["name"] = "other"
    prepared("else")  # writes the log
    cut(
        tmp_path,
        tmp_path / "out",
        lambda: prepared(files=["log.parquet"], options={"shards": shards}),
    )


def each_file(folder):
    for name, content in folder.items():
        if isinstance(content, dict):
            yield from each_file(content)
        else:
            yield name, content


def test_a_power_failure_leaves_no_torn_work_that_would_be_resumed(write, prepared, tmp_path):
    csv.write_csv(pq.read_table(write()), tmp_path / "log.csv")
    disk = Disk(tmp_path, tmp_path / ".out.work")
    disk.run(lambda: prepared(files=["log.csv"]))
    seen = set()
    for work in (work or {} for states in disk.states for work in states):
        ready = work.get("prepared", {})
        assert TORN not in [ready.get(f"{split}.parquet") for split in SPLITS]
        written = next((files for name, files in work.items() if name.startswith("steps-")), {})
        vouched = {READ: written.get("staged"), COUNT: written.get("counted")}
        vouched["count.json"] = {"vocabulary.parquet": ready.get("vocabulary.parquet")}
        for result in vouched.keys() & work.keys():
            seen.add(result)
            named = [
                content for name, content in each_file(vouched[result]) if not name.startswith(".")
            ]
            assert named
            assert not {TORN, None}.intersection(named)
    assert seen == {READ, COUNT, "count.json"}
