"""A power failure at any point of a publication leaves the former or the new state, whole."""

import pytest

from adaftr_fast.files import whole
from adaftr_fast.files.publish import publishing
from adaftr_fast.files.whole import replace_file

from .power import cut


def write_folder(target, text):
    with publishing(target) as new:
        (new / "inner").mkdir(parents=True)
        (new / "a").write_text(text)
        (new / "inner/b").write_text(text)


def write_file(target, text):
    with publishing(target) as new:
        new.write_text(text)


def write_small_file(target, text):
    replace_file(target, text.encode())


WRITERS = pytest.mark.parametrize("write", [write_folder, write_file, write_small_file])


@WRITERS
@pytest.mark.parametrize("old", ["old", None])
def test_every_way_to_publish(tmp_path, write, old):
    if old is not None:
        write(tmp_path / "out", old)
    cut(tmp_path, tmp_path / "out", lambda: write(tmp_path / "out", "new"))


@WRITERS
def test_the_simulation_finds_what_is_not_flushed(tmp_path, monkeypatch, write):
    write(tmp_path / "out", "old")
    monkeypatch.setattr(whole, "sync", lambda path: None)
    with pytest.raises(AssertionError, match="before call"):
        cut(tmp_path, tmp_path / "out", lambda: write(tmp_path / "out", "new"))


def test_the_simulation_finds_names_that_are_not_flushed(tmp_path, monkeypatch):
    write_folder(tmp_path / "out", "old")
    real = whole.sync
    monkeypatch.setattr(whole, "sync", lambda path: real(path) if path != tmp_path else None)
    # the former folder loses files before its name
    with pytest.raises(AssertionError, match="before call"):
        cut(tmp_path, tmp_path / "out", lambda: write_folder(tmp_path / "out", "new"))
