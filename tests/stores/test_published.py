"""Folders in a store: whole or as before, whatever fails."""

import contextlib
import json
import os
import signal
import time
from itertools import product

import numpy as np
import pytest
from pyarrow.fs import FileSelector

from adaftr_fast._files import sha256
from adaftr_fast.errors import BusyError, StoreError
from adaftr_fast.runs.output import HERE, Output
from adaftr_fast.stores import (
    StorePath,
    as_path,
    local_copy,
    local_file,
    local_folder,
    open_folder,
)
from adaftr_fast.stores.cache import download_all
from adaftr_fast.stores.published import LIST, OBJECTS, names_in, publish, read_state, upload


@pytest.fixture
def folder(url):
    return as_path(url)


@pytest.fixture
def files(tmp_path):
    """PyArrow compresses what it writes under a name such as ``b.gz``, unless it is told not to."""
    random = np.random.default_rng(0)
    contents = {"a.bin": random.bytes(3_000_000), "folder/b.gz": b"text", "empty": b""}
    paths = {}
    for name, content in contents.items():
        paths[name] = tmp_path / "source" / name
        paths[name].parent.mkdir(parents=True, exist_ok=True)
        paths[name].write_bytes(content)
    return paths


def content_of(folder):
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()
    }


def bytes_of(files):
    return {name: path.read_bytes() for name, path in sorted(files.items())}


def published(folder, name):
    return (open_folder(folder) / name).read_bytes()


def objects(folder):
    selector = FileSelector(f"{folder.key}/{OBJECTS}", allow_not_found=True)
    return sorted(info.base_name for info in folder.filesystem.get_file_info(selector))


def write(url, name, text, then):
    with local_folder(as_path(url)) as folder:
        folder.mkdir(exist_ok=True)
        (folder / name).write_text(text)
        then()


def interrupt():
    """Ctrl-C, also where the process ignores its signal, as in the background of a shell."""
    raise KeyboardInterrupt


def write_half(url):
    with local_file(as_path(url)) as path:
        path.write_bytes(b"half")
        interrupt()


def test_a_published_folder_is_read_back(url, folder, files):
    state = publish(files, folder, None)
    copy = local_copy(folder)
    assert content_of(copy) == bytes_of(files)
    assert copy.name == folder.name
    opened = open_folder(folder)
    assert opened.state == state
    assert (opened / "a.bin").read_bytes() == files["a.bin"].read_bytes()
    assert (opened / "folder/b.gz").name == "b.gz"
    assert str(opened / "a.bin") == f"{url}/a.bin"
    with (opened / "a.bin").open() as file:
        file.seek(1_000_000)
        assert file.read(5) == files["a.bin"].read_bytes()[1_000_000:1_000_005]


def test_a_copy_is_downloaded_once(url, files, faults):
    publish(files, as_path(url), None)
    first = local_copy(as_path(url))
    faults.requests.clear()
    assert local_copy(as_path(url)) == first
    assert not [path for method, path in faults.requests if method == "GET" and OBJECTS in path]
    inode = first.stat().st_ino
    with local_folder(url) as folder:
        assert folder.exists()
    assert first.stat().st_ino == inode  # it stays where it is when nothing changes
    assert not folder.exists()


def test_a_new_state_keeps_the_objects_of_the_one_before(folder, files):
    first = publish(files, folder, None)
    reader = open_folder(folder)
    files["folder/b.gz"].write_bytes(b"new text")
    second = publish(files, folder, first)
    assert (reader / "folder/b.gz").read_bytes() == b"text"
    assert published(folder, "folder/b.gz") == b"new text"
    files["folder/b.gz"].write_bytes(b"newest")
    publish(files, folder, second)
    assert objects(folder) == sorted([*read_state(folder).objects, *read_state(folder).before])
    assert len(objects(folder)) == 4  # b.gz of two states
    with pytest.raises(FileNotFoundError):
        (reader / "folder/b.gz").read_bytes()


@pytest.mark.parametrize(
    ("replaces", "requests"),
    [*product([True], range(14)), *product([False], range(0, 20, 3))],
)
def test_a_failure_at_any_request_leaves_one_of_the_two_states(
    folder, files, faults, few_attempts, monkeypatch, replaces, requests
):
    """Requests that fail for good, as when the machine is cut off.

    HDFS cannot replace a file. It removes the list before it renames the new one, which a reader
    takes meanwhile.
    """
    monkeypatch.setattr("adaftr_fast.stores.published.is_object_store", lambda path: replaces)
    base = publish(files, folder, None)
    old = bytes_of(files)
    files["a.bin"].write_bytes(b"changed" * 1000)
    files["folder/b.gz"].write_bytes(b"changed")
    new = bytes_of(files)
    faults.requests.clear()
    faults.after = requests
    possible = [old, new]
    with contextlib.suppress(StoreError):
        publish(files, folder, base)
        possible = [new]
    faults.after = None
    assert content_of(local_copy(folder)) in possible
    publish(files, folder, read_state(folder))  # goes on from whatever is there
    assert content_of(local_copy(folder)) == new


@pytest.mark.parametrize("kind", ["errors", "cuts", "slow"])
def test_what_fails_now_and_then_is_repeated(folder, files, faults, kind):
    setattr(faults, kind, 0.15)
    publish(files, folder, None)
    assert content_of(local_copy(folder)) == bytes_of(files)


def test_a_list_that_is_renamed_while_it_is_looked_for(folder, files, monkeypatch):
    monkeypatch.setattr("adaftr_fast.stores.published.is_object_store", lambda path: False)
    absent = [LIST, f"{LIST}.new"]
    state = publish(files, folder, None)
    read = StorePath.read_bytes

    def removed_and_renamed(path):
        if absent and path.name == absent[0]:
            absent.pop(0)
            raise FileNotFoundError(2, "no such file", str(path))
        return read(path)

    monkeypatch.setattr(StorePath, "read_bytes", removed_and_renamed)
    assert read_state(folder) == state
    assert not absent


def test_a_kill_while_the_first_list_is_written_where_it_is_renamed(folder, files, monkeypatch):
    monkeypatch.setattr("adaftr_fast.stores.published.is_object_store", lambda path: False)
    publish(files, folder, None)
    (whole := folder / LIST).filesystem.move(whole.key, f"{whole.key}.new")
    assert read_state(folder) is not None  # killed before the rename
    with whole.filesystem.open_output_stream(f"{whole.key}.new", compression=None) as stream:
        stream.write(b"{")
    assert read_state(folder) is None
    assert names_in(folder) == []


def test_a_list_that_is_replaced_while_it_is_read(folder, files, monkeypatch):
    """pyarrow asks for the size, then for as many bytes: those of the longer list that is there by
    then.
    """
    cut = []
    state = publish(files, folder, None)
    read = StorePath.read_bytes

    def cut_once(path):
        content = read(path)
        if path.name == LIST and not cut:
            cut.append(path)
            return content[:-20]
        return content

    monkeypatch.setattr(StorePath, "read_bytes", cut_once)
    assert read_state(folder) == state
    assert cut


def test_a_damaged_object_is_refused(folder, files):
    state = publish(files, folder, None)
    path = open_folder(folder) / "a.bin"
    with path.filesystem.open_output_stream(path.key) as stream:
        stream.write(b"x" * state.files["a.bin"].size)
    with pytest.raises(StoreError, match=r"a\.bin: .*sha256 differs"):
        path.read_bytes()
    with pytest.raises(StoreError, match=r"a\.bin: .*sha256 differs"):
        local_copy(folder)


def test_a_list_that_leaves_the_folder_is_refused(folder, files):
    publish(files, folder, None)
    content = json.loads((folder / LIST).read_bytes())
    for name in ("../x", "a//b"):
        changed = content | {"files": {name: content["files"]["empty"]}}
        with folder.filesystem.open_output_stream((folder / LIST).key) as stream:
            stream.write(json.dumps(changed).encode())
        with pytest.raises(StoreError, match=r"published\.json: damaged"):
            open_folder(folder)


def test_a_local_folder_is_published_in_the_end(url, tmp_path):
    with local_folder(as_path(url)) as folder:
        folder.mkdir()
        (folder / "one").write_text("1")
        (folder / ".lock").write_text("")
    assert content_of(local_copy(as_path(url))) == {"one": b"1"}
    with local_folder(as_path(url)) as folder:
        assert (folder / "one").read_text() == "1"
        (folder / "one").unlink()
        (folder / "two").write_text("2")
    assert content_of(local_copy(as_path(url))) == {"two": b"2"}
    with local_folder(tmp_path / "here") as folder:
        assert folder == tmp_path / "here"


def test_states_are_published_meanwhile(url, monkeypatch):
    monkeypatch.setenv("ADAFTR_FAST_UPLOAD_SECONDS", "0.02")
    path = as_path(url)
    with local_folder(path) as folder:
        folder.mkdir()
        for number in range(200):  # two files that agree in every state
            for name in ("x", "y"):
                new = folder / f".{name}.new"
                new.write_text(str(number))
                new.replace(folder / name)
            if number % 20 == 0:
                opened = open_folder(path)
                if not hasattr(opened, "state") or "y" not in opened.state.files:
                    continue
                x, y = (int((opened / name).read_text()) for name in ("x", "y"))
                assert x - y in (0, 1)  # what the folder held at some time
    assert content_of(local_copy(as_path(url))) == {"x": b"199", "y": b"199"}


def test_an_error_of_the_block_publishes_what_there_is(url):
    with pytest.raises(KeyboardInterrupt):
        write(url, "one", "1", interrupt)
    assert content_of(local_copy(as_path(url))) == {"one": b"1"}


def test_nothing_is_lost_when_the_store_fails(url, faults, few_attempts):
    with local_folder(as_path(url)) as folder:
        folder.mkdir()
        (folder / "one").write_text("1")
    with pytest.raises(
        StoreError, match=r"all files are in .*, from which the same command goes on"
    ):
        write(url, "two", "2", lambda: setattr(faults, "errors", 1.0))
    faults.errors = 0.0
    with local_folder(as_path(url)) as folder:
        assert content_of(folder) == {"one": b"1", "two": b"2"}


def test_one_writer_on_a_machine(url):
    path = as_path(url)
    with local_folder(path):
        pid = os.fork()
        if pid == 0:
            try:
                with local_folder(path):
                    os._exit(0)
            except BusyError:
                os._exit(3)
            os._exit(4)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 3


@pytest.fixture
def interruptible():
    """Ctrl-C acts as in a terminal; a worker of pytest-xdist ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_command_ends_when_another_machine_has_written_its_folder(
    url, files, monkeypatch, interruptible
):
    """It does not work on to its end, where its last upload would fail."""
    monkeypatch.setenv("ADAFTR_FAST_UPLOAD_SECONDS", "0.02")
    ended = False

    def write_on():
        nonlocal ended
        with local_folder(as_path(url)) as folder:
            publish(files, as_path(url), None)
            folder.mkdir()
            (folder / "one").write_text("1")
            time.sleep(60)
            ended = True

    with pytest.raises(StoreError, match=r"another process has written it meanwhile.*; what this"):
        write_on()
    assert not ended
    assert content_of(local_copy(as_path(url))) == bytes_of(files)


def write_and_cut(url, faults):
    with local_file(as_path(url)) as path:
        path.write_bytes(b"new")
        faults.errors = 1.0


def test_one_file(url, faults, tmp_path, few_attempts):
    with local_file(as_path(f"{url}/scores.parquet")) as path:
        path.write_bytes(b"scores" * 10_000)
    assert as_path(f"{url}/scores.parquet").read_bytes() == b"scores" * 10_000
    with pytest.raises(KeyboardInterrupt):
        write_half(f"{url}/scores.parquet")
    assert as_path(f"{url}/scores.parquet").read_bytes() == b"scores" * 10_000
    assert not list((tmp_path / "cache" / "writing").iterdir())
    with pytest.raises(StoreError, match=r"failed 2 times.*; the file is .*scores\.parquet"):
        write_and_cut(f"{url}/scores.parquet", faults)
    (kept,) = (tmp_path / "cache" / "writing").rglob("scores.parquet")
    assert kept.read_bytes() == b"new"


def test_a_file_that_is_moved_in_part_is_an_error(url, tmp_path, few_attempts, monkeypatch):
    def cut(new, target):
        with target.filesystem.open_output_stream(target.key) as stream:
            stream.write(new.read_bytes()[:1])

    monkeypatch.setattr("adaftr_fast.stores.published._move", cut)
    (tmp_path / "local").write_bytes(b"new")
    with pytest.raises(StoreError, match="1 of 3 bytes arrived"):
        upload(tmp_path / "local", as_path(f"{url}/file"))


def test_a_large_file_that_is_written_in_place(folder, files, few_attempts, monkeypatch):
    """What was sent of a file while it changed is not published, even if its size is the same."""
    path = files["a.bin"]

    def changed_afterwards(file):
        digest = sha256(file)
        if file == path:
            path.write_bytes(bytes(path.stat().st_size))
        return digest

    with monkeypatch.context() as patched:
        patched.setattr("adaftr_fast.stores.published.sha256", changed_afterwards)
        with pytest.raises(StoreError, match="changes meanwhile"):
            publish(files, folder, None)
    assert read_state(folder) is None
    publish(files, folder, None)
    assert content_of(local_copy(folder))["a.bin"] == path.read_bytes()


def test_a_download_of_a_folder_that_is_replaced(url, folder, files, monkeypatch):
    started = []
    first = publish(files, folder, None)

    def replaced_meanwhile(opened, target):
        if not started:
            second = publish({"empty": files["empty"]}, folder, first)
            started.append(publish({"folder/b.gz": files["folder/b.gz"]}, folder, second))
        download_all(opened, target)

    monkeypatch.setattr("adaftr_fast.stores.cache.download_all", replaced_meanwhile)
    assert content_of(local_copy(url)) == {"folder/b.gz": b"text"}
    monkeypatch.setattr(
        "adaftr_fast.stores.cache.download_all", lambda *_: (folder / "none").read_bytes()
    )
    publish(files, folder, started[0])
    with pytest.raises(StoreError, match="damaged"):
        local_copy(url)


def test_a_folder_in_a_published_folder(url, files):
    publish(files, as_path(url), None)
    inner = open_folder(as_path(f"{url}/folder"))
    assert (inner / "b.gz").read_bytes() == b"text"
    assert content_of(local_copy(f"{url}/folder")) == {"b.gz": b"text"}
    with pytest.raises(StoreError, match=r"/other: expected a folder that a command has published"):
        local_copy(f"{url}/other")


def test_what_is_being_written_is_local(url, tmp_path):
    output = Output(tmp_path / "local", as_path(url))
    assert output.recorded(tmp_path / "local/data/x") == f"{url}/data/x"
    assert output.found(f"{url}/data/x") == tmp_path / "local/data/x"
    assert output.found(f"{url}2/data") == as_path(f"{url}2/data")
    assert output.recorded(tmp_path) == str(tmp_path)
    assert output.recorded(output.local) == url
    with_options = Output(tmp_path, as_path(f"{url}?region=eu-west-1"))
    assert with_options.recorded(tmp_path / "x") == f"{url}/x?region=eu-west-1"
    assert with_options.found(f"{url}/x?region=eu-west-1") == tmp_path / "x"
    for path in (tmp_path, as_path("here/x")):
        assert HERE.recorded(path) == str(path)
        assert HERE.found(str(path)) == path


def test_a_folder_that_is_replaced_as_a_whole(url):
    with local_folder(url, download=False) as folder:
        folder.mkdir()
        (folder / "one").write_text("1")
    with local_folder(url, download=False) as folder:
        assert not folder.exists()
    assert content_of(local_copy(url)) == {"one": b"1"}
    with local_folder(url, download=False) as folder:
        folder.mkdir()
        (folder / "two").write_text("2")
    assert content_of(local_copy(url)) == {"two": b"2"}
