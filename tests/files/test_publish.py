import errno
import itertools
import os
import threading

import pytest

from adaftr_fast.errors import BusyError
from adaftr_fast.files import whole
from adaftr_fast.files.publish import publishing, read_published

from .file_calls import killed_at
from .holder import holder

FILES = ("a", "b", "c")


def write_folder(target, text):
    with publishing(target) as new:
        new.mkdir()
        for name in FILES:
            (new / name).write_text(text)


def write_file(target, text):
    with publishing(target) as new:
        new.write_text(text)


def read_folder(target):
    def read(folder):
        return "".join((folder / name).read_text() for name in FILES)

    return read_published(target, read)


def read_file(target):
    return target.read_text()


KINDS = [(write_folder, read_folder), (write_file, read_file)]
BOTH = pytest.mark.parametrize("exchange", [True, False], ids=["exchange", "no exchange"])


@pytest.mark.parametrize(("write", "read"), KINDS, ids=["folder", "file"])
# None has no exchange
@pytest.mark.parametrize(("old", "exchange"), [("old", True), ("old", False), (None, True)])
def test_a_kill_at_any_point_leaves_the_old_or_the_new_one(tmp_path, write, read, exchange, old):
    target = tmp_path / "out"
    seen = set()
    for number in itertools.count():
        whole.remove(target)
        if old is not None:
            write(target, old)
        alive = not killed_at(number, lambda: write(target, "new"), exchange)
        try:
            seen.add(read(target)[-3:])
        except FileNotFoundError:
            seen.add(None)
        if alive:
            break
        write(target, "next")
        assert read(target)[-4:] == "next"
        assert os.listdir(tmp_path) == ["out"]
    assert number > 5
    assert seen == {old, "new"}
    assert os.listdir(tmp_path) == ["out"]


@BOTH
def test_a_reader_meets_one_version_while_a_writer_replaces_it(tmp_path, monkeypatch, exchange):
    target = tmp_path / "out"
    done = threading.Event()
    if not exchange:
        monkeypatch.setattr(whole, "_exchange", lambda new, target: False)
    write_folder(target, "0")

    def replace():
        for number in range(1, 60):
            write_folder(target, str(number % 10))
        done.set()

    writer = threading.Thread(target=replace)
    writer.start()
    found = set()
    while not done.is_set():
        found.add(read_folder(target))
    writer.join()
    assert found <= {digit * len(FILES) for digit in "0123456789"}
    assert len(found) > 1


def test_an_error_leaves_the_old_one(tmp_path):
    for write, read in KINDS:
        target = tmp_path / write.__name__
        write(target, "old")
        with pytest.raises(TypeError):
            write(target, None)  # after it has created the file or folder
        assert read(target)[-3:] == "old"
    # as a killed process may leave it
    (tmp_path / "write_folder").rename(tmp_path / ".write_folder.replaced")
    with pytest.raises(TypeError):
        write_folder(tmp_path / "write_folder", None)
    assert read_folder(tmp_path / "write_folder") == "old" * 3
    assert len(os.listdir(tmp_path)) == len(KINDS)
    with pytest.raises(FileNotFoundError), publishing(tmp_path / "deep/er"):
        pass  # writes nothing
    assert not (tmp_path / "deep").exists()


@BOTH
def test_a_failed_rename_restores_the_old_one(tmp_path, monkeypatch, exchange):
    target = tmp_path / "out"
    write_folder(target, "old")
    real = os.rename

    def full(source, place):
        if ".new-" in str(source):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(source, place)

    def no_exchange(new, target):
        if exchange:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return False

    monkeypatch.setattr(os, "rename", full)
    monkeypatch.setattr(whole, "_exchange", no_exchange)
    with pytest.raises(OSError, match="No space left"):
        write_folder(target, "new")
    assert os.listdir(tmp_path) == ["out"]
    assert read_folder(target) == "old" * 3


def test_only_leftovers_of_the_same_target_are_removed(tmp_path):
    mine = (".out.new-12-0a1b", ".out.new-abc_1234", ".out.replaced")
    others = (
        ".out.new",
        ".out.txt",
        ".out2.new-1-2",
        "out.new-1-2",
        ".out.new-1-2.parquet",
        ".out.work",
        ".x.replaced",
        ".out.old",
    )
    for name in mine + others:
        (tmp_path / name).write_text("x")
    (tmp_path / "out").mkdir()
    with publishing(tmp_path / "out") as new:
        assert sorted(os.listdir(tmp_path)) == sorted([*others, "out", ".out.lock"])
        new.mkdir()
    assert sorted(os.listdir(tmp_path)) == sorted([*others, "out"])


def test_two_writers_of_one_target(tmp_path):
    (tmp_path / ".out.new-1-2").mkdir()
    with holder(tmp_path / ".out.lock"), pytest.raises(BusyError, match="out: process"):
        write_file(tmp_path / "out", "mine")
    # perhaps the other writer's
    assert sorted(os.listdir(tmp_path)) == [".out.lock", ".out.new-1-2"]


def test_a_symbolic_link_stays(tmp_path):
    (tmp_path / "real").mkdir()
    for (write, read), old in itertools.product(KINDS, (False, True)):
        name = f"{write.__name__}{old}"
        target = tmp_path / "real" / name
        link = tmp_path / name
        if old:
            write(target, "old")
        link.symlink_to(target)
        write(link, "new")
        assert link.readlink() == target
        assert read(link) == read(target)
        assert read(target)[-3:] == "new"
    assert all(path.is_symlink() for path in tmp_path.iterdir() if path.name != "real")


def test_a_reader_gives_up_after_many_versions(tmp_path):
    target = tmp_path / "out"
    write_folder(target, "0")
    with pytest.raises(BusyError, match=r"out: replaced 20 times while it was read"):
        read_published(target, lambda folder: write_folder(target, "1"))
    with pytest.raises(FileNotFoundError):
        read_published(tmp_path / "absent", lambda folder: (folder / "a").read_text())
