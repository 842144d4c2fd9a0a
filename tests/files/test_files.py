import os

import pytest

from adaftr_fast._files import make_folder, replace_file


def test_a_symbolic_link_stays(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to("disk/file")
    for content in (b"first", b"second"):
        replace_file(tmp_path / "link", content)
        assert (tmp_path / "link").is_symlink()
        assert (tmp_path / "disk/file").read_bytes() == content
    assert os.listdir(tmp_path / "disk") == ["file"]


def test_missing_folders_are_made(tmp_path):
    assert make_folder(tmp_path) == []
    assert make_folder(tmp_path / "a/b") == [tmp_path / "a/b", tmp_path / "a"]
    assert (tmp_path / "a/b").is_dir()
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError):
        make_folder(tmp_path / "file")
    with pytest.raises(NotADirectoryError):
        make_folder(tmp_path / "file/below")
