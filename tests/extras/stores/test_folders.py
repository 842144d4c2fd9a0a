"""Inputs and outputs in a store: versions, copies, kills and second writers."""

import json
import os
import warnings
from pathlib import Path

import pytest

from adaftr_fast.api.places import local, output_file, output_folder, place_of
from adaftr_fast.api.ranks import output
from adaftr_fast.errors import BusyError, DataError, MissingPackageError, StoreError
from adaftr_fast.extras.stores import inputs, outputs
from adaftr_fast.extras.stores.filesystems import filesystem
from tests.forks import Script


def write(url, files):
    with output_folder(url) as folder:
        folder.mkdir(exist_ok=True)
        for name, content in files.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(content)


def content(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_text()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def objects(store):
    return [name for name in store.names() if "/objects/" in name]


def test_a_folder_is_what_was_written_and_its_parts_can_be_read(store, elsewhere):
    url = f"{store.url}/out"
    write(url, {"a": "1", "run/b": "2"})
    assert store.names()[-1] == "out/published.json"
    for _ in range(2):
        assert content(local(url)) == {"a": "1", "run/b": "2"}
        assert local(url).name == "out"
        assert content(local(f"{url}/run/")) == {"b": "2"}
        assert local(f"{url}/run/b").read_text() == "2"
        elsewhere()
    with pytest.raises(StoreError, match=r"out/run/c: no such file or folder"):
        local(f"{url}/run/c")


def test_a_new_version_keeps_the_objects_that_have_not_changed(store, elsewhere):
    url = f"{store.url}/out"
    write(url, {"a": "1", "b": "2"})
    before = local(url)
    first = objects(store)
    elsewhere()
    write(url, {"b": "3", ".part": "4"})
    assert content(local(url)) == {"a": "1", "b": "3"}
    assert content(before) == {"a": "1", "b": "2"}
    now = objects(store)
    assert len(now) == 2
    assert len({*first} & {*now}) == 1  # the former version of b is gone
    write(url, {})
    assert objects(store) == now


def test_inputs_are_copied_once_per_version(store, tmp_path, monkeypatch):
    for name in ("log.csv", "logs/1.csv", "logs/2.csv"):
        (tmp_path / "file").write_text(name)
        store.put(tmp_path / "file", name)
    first = local(f"{store.url}/log.csv")
    folder = local(f"{store.url}/logs")
    assert first.name == "log.csv"
    assert content(folder) == {"1.csv": "logs/1.csv", "2.csv": "logs/2.csv"}
    with monkeypatch.context() as patched:
        patched.setattr(inputs, "_download", None)
        assert local(f"{store.url}/log.csv") == first
        assert local(f"{store.url}/logs") == folder
    (tmp_path / "file").write_text("other text")
    store.put(tmp_path / "file", "log.csv")
    assert local(f"{store.url}/log.csv").read_text() == "other text"
    assert first.read_text() == "log.csv"


def test_an_input_that_is_replaced_while_it_is_copied_is_copied_again(store, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("1")
    url = store.put(tmp_path / "file", "log.csv")
    (tmp_path / "file").write_text("22")
    download = inputs._download

    def replaced(*arguments):
        monkeypatch.setattr(inputs, "_download", download)
        download(*arguments)
        store.put(tmp_path / "file", "log.csv")

    monkeypatch.setattr(inputs, "_download", replaced)
    assert local(url).read_text() == "22"
    published = f"{store.url}/out"
    write(published, {"a": "1"})

    def gone(new, fs, files):
        monkeypatch.setattr(inputs, "_download", download)
        write(published, {"a": "2"})
        download(new, fs, files)

    elsewhere = str(tmp_path / "elsewhere")
    monkeypatch.setenv("ADAFTR_FAST_CACHE", elsewhere)
    monkeypatch.setattr(inputs, "_download", gone)
    assert content(local(published)) == {"a": "2"}


def test_damage_is_told(store, tmp_path, elsewhere):
    url = f"{store.url}/out"
    write(url, {"a": "1"})
    elsewhere()
    (name,) = objects(store)
    (tmp_path / "file").write_text("2")
    store.put(tmp_path / "file", name)
    with pytest.raises(StoreError, match=r"objects/\w+/a: damaged: its content is not the publ"):
        local(url)
    store.remove(name)
    with pytest.raises(StoreError, match=r"out: damaged: an object is gone"):
        local(url)
    (tmp_path / "file").write_text('{"a": 1}')
    store.put(tmp_path / "file", "out/published.json")
    with pytest.raises(StoreError, match=r"published\.json: damaged: a: expected an object"):
        local(url)


KILLED = """
import os, sys
from adaftr_fast.api.places import output_folder
from adaftr_fast.extras.stores import outputs
function = sys.argv[2]
setattr(outputs, function, lambda *_: os._exit(9))
with output_folder(sys.argv[1]) as folder:
    folder.mkdir(exist_ok=True)
    (folder / "a").write_text("new")
    (folder / "b").write_text("new")
"""


@pytest.mark.parametrize("before", [{}, {"a": "old"}])
def test_a_kill_before_the_pointer_leaves_the_former_version(store, before):
    url = f"{store.url}/out"
    if before:
        write(url, before)
    Script(KILLED, url, "replace").end(9)
    assert len(objects(store)) == len(before) + 2
    if before:
        assert content(local(url)) == before
    write(url, {"c": "whole"})
    assert content(local(url)) == before | {"c": "whole"}
    assert len(objects(store)) == len(before) + 1  # what the kill left is gone
    assert not [*inputs.cache_folder().glob("writing/*")]


def test_an_error_leaves_the_former_version_but_for_a_run(store):
    url = f"{store.url}/out"
    write(url, {"a": "1"})

    def interrupted(open_one):
        with open_one(url) as out:
            (getattr(out, "local", out) / "a").write_text("2")
            raise KeyboardInterrupt

    for open_one, expected in ((output_folder, "1"), (output, "2")):
        with pytest.raises(KeyboardInterrupt):
            interrupted(open_one)
        assert content(local(url)) == {"a": expected}
    assert not [*inputs.cache_folder().glob("writing/*")]


def test_a_run_is_uploaded_from_time_to_time(store, monkeypatch):
    url = f"{store.url}/out"
    with output(url) as out:
        assert out.recorded(out.local / "day") == f"{url}/day"
        assert out.found(f"{url}/day") == out.local / "day"
        assert out.found("here/day") == Path("here/day")
        out.local.mkdir()
        (out.local / "a").write_text("1")
        out.save()  # not yet due
        assert store.names() == []
        monkeypatch.setattr(outputs, "SECONDS", 0.0)
        out.save()
        assert content(local(url)) == {"a": "1"}


def test_a_second_writer_is_refused(store, monkeypatch, elsewhere):
    url = f"{store.url}/out"
    with output_folder(url) as folder:
        folder.mkdir()
        (folder / "a").write_text("1")
        _, ended = Script(KILLED, url, "replace").end(1)
        assert f"{url}: process {os.getpid()} on " in ended
        assert "is writing it; wait, or name another place" in ended
    elsewhere()

    def late():
        with output_folder(url) as folder:
            (folder / "a").write_text("late")
            with monkeypatch.context() as patched:
                patched.setenv("ADAFTR_FAST_CACHE", f"{folder}-other")
                write(url, {"a": "2"})

    with pytest.raises(BusyError, match=r"another process has published it .*writing/") as busy:
        late()
    assert content(local(url)) == {"a": "2"}
    kept = Path(str(busy.value).rpartition(" ")[2])
    assert content(kept) == {"a": "late"}
    write(url, {"a": "3"})
    assert not kept.exists()


def test_a_failed_upload_keeps_the_output_here(store, monkeypatch):
    url = f"{store.url}/scores.parquet"
    with output_file(url) as file:
        file.write_text("1")
    assert store.names() == ["scores.parquet"]

    def fail(*_):
        raise RuntimeError("no answer")

    monkeypatch.setattr(outputs, "replace", fail)
    with (
        pytest.raises(StoreError, match=rf"{url}: no answer; until .* the output is ") as failed,
        output_file(url) as file,
    ):
        file.write_text("2")
    assert Path(str(failed.value).rpartition(" ")[2]).read_text() == "2"
    assert local(url).read_text() == "1"


def test_an_interrupted_upload_keeps_the_output_here(store, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(outputs, "put", interrupt)
    with (
        pytest.warns(RuntimeWarning, match="is not uploaded; until .*, the output is ") as warned,
        pytest.raises(KeyboardInterrupt),
    ):
        write(f"{store.url}/out", {"a": "1"})
    assert content(Path(str(warned[0].message).rpartition(" ")[2])) == {"a": "1"}


def test_a_run_goes_on_where_an_upload_fails(store, monkeypatch):
    """Also where the store has published it, and says that it has not."""
    url = f"{store.url}/out"
    replace = outputs.replace
    monkeypatch.setattr(outputs, "SECONDS", 0.0)

    failures = ["no answer"]

    def fail_once(*arguments):
        replace(*arguments)
        while failures:
            raise TimeoutError(failures.pop())

    monkeypatch.setattr(outputs, "replace", fail_once)
    with output(url) as out:
        out.local.mkdir()
        (out.local / "a").write_text("1")
        with pytest.warns(RuntimeWarning, match="no answer; .* tries again"):
            out.save()
        (out.local / "a").write_text("2")
    assert content(local(url)) == {"a": "2"}


def test_a_file_that_grows_while_it_is_uploaded_is_whole(store, monkeypatch, elsewhere):
    url = f"{store.url}/out"
    put = outputs.put

    def growing(fs, file, path):
        if file.name == "a":
            file.write_text(file.read_text() + "1")
        put(fs, file, path)

    monkeypatch.setattr(outputs, "put", growing)
    write(url, {"a": "1"})
    elsewhere()
    assert content(local(url)) == {"a": "11"}


def test_a_writer_without_a_change_removes_nothing(store, monkeypatch, elsewhere):
    """Another one may be uploading."""
    url = f"{store.url}/out"
    write(url, {"a": "1"})
    elsewhere()
    with output_folder(url) as folder:
        (folder / "a").write_text("2")
        (folder / "b").write_text("2")
        put = outputs.put

        def meanwhile(fs, file, path):
            put(fs, file, path)
            monkeypatch.setattr(outputs, "put", put)
            with monkeypatch.context() as patched:
                patched.setenv("ADAFTR_FAST_CACHE", f"{folder}-other")
                write(url, {})

        monkeypatch.setattr(outputs, "put", meanwhile)
    elsewhere()
    assert content(local(url)) == {"a": "2", "b": "2"}


class Denied:
    """A filesystem from which nothing can be removed, and the path of a URL."""

    def __init__(self, url):
        self.fs, self.path = filesystem(url)

    def __iter__(self):
        return iter((self, self.path))

    def __getattr__(self, name):
        return getattr(self.fs, name)

    def rm(self, _):
        raise PermissionError("denied")


def test_objects_that_cannot_be_removed_stay(store, monkeypatch):
    url = f"{store.url}/out"
    write(url, {"a": "1"})
    with monkeypatch.context() as patched:
        patched.setattr(outputs, "filesystem", Denied)
        with pytest.warns(RuntimeWarning, match="versions stay: denied"):
            write(url, {"a": "2"})
    assert content(local(url)) == {"a": "2"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write(url, {"a": "3"})
    assert len(objects(store)) == 1


def test_a_folder_of_other_files_is_not_overwritten(store, tmp_path):
    (tmp_path / "file").write_text("1")
    store.put(tmp_path / "file", "out/log.csv")
    with (
        pytest.raises(
            StoreError, match=r"expected nothing or a folder that .*found .*out/log\.csv"
        ),
        output_folder(f"{store.url}/out"),
    ):
        pass
    assert store.names() == ["out/log.csv"]


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ("runs/a", Path("runs/a")),
        ("file:///runs/a%20b", Path("/runs/a b")),
        ("s3://bucket/a:b@c/", "s3://bucket/a:b@c"),
    ],
)
def test_places(place, expected):
    assert place_of(place) == expected


@pytest.mark.parametrize(
    ("place", "error", "message"),
    [
        (Path("s3://bucket/a"), StoreError, "s3:/bucket/a: expected a URL with two slashes"),
        ("s3://key:secret@bucket/a", StoreError, "s3://…: keys in a URL would be recorded"),
        ("s3://key:12/ab@bucket/a", StoreError, "s3://…: keys in a URL would be recorded"),
        ("https://host/a?X-Sig=1", StoreError, "https://…: keys in a URL would be recorded"),
        ("nothing://bucket/a", StoreError, "nothing://bucket/a: cannot be used: Protocol not kn"),
        ("runs/\udcff", DataError, r"'runs/\\udcff': expected a path in UTF-8"),
    ],
)
def test_places_that_are_none(place, error, message):
    with pytest.raises(error, match=message):
        local(place)


def test_a_missing_package_is_named():
    code = """
import sys
sys.modules["s3fs"] = sys.modules["smb"] = sys.modules["smbprotocol"] = None
from adaftr_fast.api.places import local
from adaftr_fast.errors import MissingPackageError
for url in ("s3://bucket/a", "smb://host/a"):
    try:
        local(url)
    except MissingPackageError as error:
        print(error)
"""
    shown = Script(code).end(0)[0].splitlines()
    assert shown[0].endswith('its filesystem is not installed: pip install "adaftr-fast[s3]"')
    assert "smbprotocol" in shown[1]
    assert MissingPackageError.__mro__[1].__name__ == "UserError"


def test_the_pointer_names_all_files(store):
    write(f"{store.url}/out", {"a": "1"})
    fs, path = filesystem(f"{store.url}/out/published.json")
    ((name, about),) = json.loads(fs.cat_file(path)).items()
    assert (name, about["size"]) == ("a", 1)
    assert f"out/{about['object']}" in store.names()
