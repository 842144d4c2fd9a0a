"""What killed commands leave of their outputs is bounded, and the next command removes it."""

import os
import threading
import time
from functools import partial

import boto3
import pyarrow.parquet as pq
import pytest

from adaftr_fast._locks import LOCK, writer_lock
from adaftr_fast.api.prepare import prepare
from adaftr_fast.errors import DataError, StoreError
from adaftr_fast.stores import (
    as_path,
    cache,
    local_copy,
    local_file,
    local_folder,
    published,
    writing,
)
from adaftr_fast.stores.filesystems import abort_uploads
from adaftr_fast.stores.published import publish, read_state
from tests.logs import shop_log
from tests.stores.test_published import content_of, objects


def die(*_, **__):
    os._exit(9)


def killed(act, owner=None, name="", dies=die):
    """Runs ``act`` in a forked process, which must kill itself, by ``dies`` in place of the
    function of the owner.
    """
    child = os.fork()
    if child == 0:
        try:
            if owner is not None:
                setattr(owner, name, dies)
            act()
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


def write_folder(url, text, size=0):
    with local_folder(as_path(url)) as folder:
        folder.mkdir(exist_ok=True)
        (folder / "name").write_text(text)
        (folder / "large").write_bytes(text[:1].encode() * size)


def write_file(url, then=lambda: None):
    with local_file(as_path(url)) as path:
        path.with_name(f".{path.name}.new-1-ab").write_bytes(b"half")
        then()
        path.write_bytes(b"scores")


def left(tmp_path):
    """The files of outputs in the cache, without locks."""
    paths = (tmp_path / "cache" / "writing").rglob("*")
    return sorted(path.name for path in paths if path.is_file() and path.name != LOCK)


def uploads(url):
    client = boto3.client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"])
    found = client.list_multipart_uploads(
        Bucket="bucket", Prefix=as_path(url).key.partition("/")[2]
    )
    return [each["Key"] for each in found.get("Uploads", ())]


def test_a_file_that_was_being_written_goes_with_the_next_command(url, tmp_path):
    killed(lambda: write_file(f"{url}/scores", die))
    assert left(tmp_path) == [".scores.new-1-ab"]
    write_file(f"{url}/scores")
    assert list((tmp_path / "cache" / "writing").iterdir()) == []


def test_a_prepared_folder_that_was_uploaded_before_the_kill(url, tmp_path):
    """The next command finds it in the store and writes nothing. One that was killed before goes
    on, and replaces no files of others.
    """
    pq.write_table(shop_log(3000, users=50), tmp_path / "log.parquet")
    command = partial(
        prepare,
        tmp_path / "log.parquet",
        f"{url}/data",
        labels=["click", "conversion"],
        progress=False,
    )
    killed(command, published, "_write_list")
    assert objects(as_path(f"{url}/data"))
    killed(command, writing, "_keep_as_copy")
    assert "schema.json" in left(tmp_path)
    command()
    assert left(tmp_path) == []
    for name in ("objects/mine", "mine"):
        other = as_path(f"{url}/{name}/of/{name}")
        with other.filesystem.open_output_stream(other.key, compression=None) as stream:
            stream.write(b"mine")
        with pytest.raises(DataError, match="holds files that no command has published"):
            prepare(tmp_path / "log.parquet", f"{url}/{name}/of", labels=["click", "conversion"])


@pytest.mark.parametrize("used", [0, 4000])
def test_outputs_of_killed_commands_count_for_the_bound(url, tmp_path, monkeypatch, used):
    """Those of the last hour stay, as copies do, and so do those that are being written."""
    monkeypatch.setenv(cache.LIMIT, "0")
    killed(lambda: write_folder(f"{url}/model", "1"), writing._Sender, "_send")
    killed(lambda: write_file(f"{url}/scores", die))
    then = (time.time() - used,) * 2
    for path in (tmp_path / "cache").rglob("*"):
        os.utime(path, then)
    with local_file(as_path(f"{url}/third")) as path:
        path.write_bytes(b"1")
        os.utime(path, then)
        cache.shrink(cache.cache_folder(), 0.0)
        assert path.exists()
    assert left(tmp_path) == (
        [] if used else [".model.origin", ".scores.new-1-ab", "large", "name"]
    )


def test_a_command_goes_on_with_its_own_output_whatever_the_bound(url, tmp_path, monkeypatch):
    monkeypatch.setenv(cache.LIMIT, "0")
    killed(lambda: write_folder(f"{url}/model", "1"), writing._Sender, "_send")
    long_ago = (time.time() - 2 * cache.IN_USE_SECONDS,) * 2
    for path in (tmp_path / "cache").rglob("*"):
        os.utime(path, long_ago)
    with local_folder(as_path(f"{url}/model")) as folder:
        assert (folder / "name").read_text() == "1"


def test_a_command_begins_while_another_looks_at_its_output(url, tmp_path):
    """A command that shrinks the cache holds the lock of each output for a moment."""
    place = writing.local_place(as_path(f"{url}/scores"))
    looking = threading.Event()

    def look():
        with writer_lock(place.with_name(LOCK), place):
            looking.set()
            time.sleep(0.3)

    thread = threading.Thread(target=look)
    thread.start()
    assert looking.wait(60)
    write_file(f"{url}/scores")
    thread.join()
    assert left(tmp_path) == []


@pytest.mark.parametrize("name", ["_write_list", "_remove", "_send"])
def test_a_folder_that_was_being_uploaded(url, tmp_path, name):
    """What the next command publishes is all that is there, also where the killed one has sent
    other files.
    """
    mine = as_path(url) / "objects" / "mine"
    with mine.filesystem.open_output_stream(mine.key, compression=None) as stream:
        stream.write(b"of another program")
    write_folder(url, "1")

    def send_half(path, target, size):
        stream = target.filesystem.open_output_stream(target.key, compression=None)
        stream.write(bytes(30 << 20))
        die()

    killed(
        lambda: write_folder(url, "2", 40 << 20),
        published,
        name,
        send_half if name == "_send" else die,
    )
    assert uploads(url) or name != "_send"
    write_folder(url, "3", 5)
    assert content_of(local_copy(url)) == {"name": b"3", "large": b"33333"}
    state = read_state(as_path(url))
    assert objects(as_path(url)) == sorted({*state.objects, *state.before, "mine"})
    assert uploads(url) == []
    assert left(tmp_path) == []


@pytest.mark.parametrize(
    ("options", "cause"),
    [("", "403"), ("?endpoint_override=no_host:9000&scheme=http", "Invalid endpoint")],
    ids=["denied", "an address that boto3 refuses"],
)
def test_uploads_that_cannot_be_aborted_are_warned_of(url, faults, options, cause):
    faults.denied = "/bucket"
    paths = [as_path(f"{url}/{name}{options}") for name in ("objects", "published.json")]
    message = f"unfinished uploads of killed commands may stay: .*{cause}"
    with pytest.warns(RuntimeWarning, match=message) as warned:
        abort_uploads(*paths)
    assert len(warned) == 1


def test_a_writer_whose_objects_were_removed_publishes_nothing(url, tmp_path, monkeypatch):
    """It has uploaded them for its next state when a command on another machine ends without a
    change.
    """
    write_folder(url, "1")
    (tmp_path / "name").write_text("2")
    base = read_state(as_path(url))
    upload = published._upload_object

    def uploaded(*arguments):
        upload(*arguments)
        monkeypatch.setattr(published, "_upload_object", upload)
        write_folder(url, "1")

    monkeypatch.setattr(published, "_upload_object", uploaded)
    with pytest.raises(StoreError, match="another process has written it meanwhile"):
        publish({"name": tmp_path / "name"}, as_path(url), base, "other")
    state = read_state(as_path(url))
    assert state.files == base.files
    assert objects(as_path(url)) == sorted(state.objects)
