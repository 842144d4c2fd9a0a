import errno
import os

import pytest

from adaftr_fast.files.whole import make_folder, replace_file, replacing


def write_new(path, write):
    with replacing(path) as new:
        write(new)


def test_a_full_disk_is_named(tmp_path):
    """A write has no name of its own in its error."""
    with (
        open("/dev/full", "wb", buffering=0) as full,
        pytest.raises(OSError, match=r"No space left on device: '.*/out'"),
    ):
        write_new(tmp_path / "out", lambda new: full.write(b"content"))
    assert os.listdir(tmp_path) == []


def test_an_error_of_an_input_does_not_name_the_output(tmp_path):
    def read(_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with pytest.raises(OSError, match="Input/output error") as raised:
        write_new(tmp_path / "out", read)
    assert raised.value.filename is None


def test_a_pipe_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match=r"expected a file or a folder, found .*/pipe'") as error:
        replace_file(tmp_path / "pipe", b"content")
    assert error.value.errno == errno.EINVAL
    assert (tmp_path / "pipe").is_fifo()


def test_missing_folders_are_made(tmp_path):
    assert make_folder(tmp_path) == []
    assert make_folder(tmp_path / "a/b") == [tmp_path / "a/b", tmp_path / "a"]
    assert (tmp_path / "a/b").is_dir()
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError):
        make_folder(tmp_path / "file")
    with pytest.raises(NotADirectoryError):
        make_folder(tmp_path / "file/below")
