import pytest

from adaftr_fast.data.dataset.manifest import read_manifest
from adaftr_fast.errors import BusyError
from tests.files.holder import holder
from tests.files.power import cut


def test_what_a_killed_process_left_is_removed_by_the_next_one(prepared, tmp_path):
    left = tmp_path / ".out.new-1-ab/prepared"
    for _ in range(2):  # to write the folder, and where it is up to date
        left.mkdir(parents=True)
        (left / "train.parquet").write_text("of other inputs")
        (tmp_path / ".out.lock").touch()
        with holder(tmp_path / ".out.lock"):
            if (tmp_path / "out").exists():
                prepared()  # up to date, so nothing is written
            else:
                with pytest.raises(BusyError, match=r"out: process .* is writing it"):
                    prepared()
            assert left.exists()
        (tmp_path / ".out.lock").touch()
        prepared()
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
