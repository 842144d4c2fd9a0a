import pytest

from adaftr_fast.data.prepare.work_folder import publish


def test_what_cannot_be_published_leaves_the_old_folder(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/old").touch()
    with pytest.raises(FileNotFoundError):
        publish(tmp_path / "nothing", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out/old").exists()
    (tmp_path / "work/new").mkdir(parents=True)
    publish(tmp_path / "work/new", tmp_path / "out")
    assert [path.name for path in (tmp_path / "work/replaced").iterdir()] == ["old"]
    assert not list((tmp_path / "out").iterdir())
