import errno
import fcntl
import os
import socket
import threading
import time

import pytest

from adaftr_fast.errors import BusyError
from adaftr_fast.files.locks import LOCK, writer_lock, writing_folder

from .holder import holder


def take(folder):
    with writing_folder(folder):
        pass


def test_the_second_process_is_told_who_writes(tmp_path):
    out = tmp_path / "out"
    with holder(out / LOCK, "train", "--out", "a b") as other:
        with pytest.raises(BusyError) as error:
            take(out)
        message = str(error.value)
        assert message.startswith(f"{out}: process {other.pid} on {socket.gethostname()} (`-c ")
        assert "train --out 'a b'`, since 20" in message
        assert message.endswith("is writing it; wait, or name another place")
        assert (out / LOCK).exists()
        take(tmp_path / "another")


def test_a_lock_ends_with_its_process(tmp_path):
    out = tmp_path / "out"
    with holder(out / LOCK) as other:
        other.kill()
        other.wait()
        assert (out / LOCK).exists()
        take(out)
    assert not (out / LOCK).exists()


def test_a_writer_may_wait_for_another(tmp_path):
    with holder(tmp_path / LOCK) as other:
        start = time.monotonic()
        with pytest.raises(BusyError), writing_folder(tmp_path, wait=0.6):
            pass
        assert time.monotonic() - start >= 0.6
        threading.Timer(0.6, other.kill).start()
        with writing_folder(tmp_path, wait=60):
            assert other.wait() != 0


def test_what_the_lock_created_is_removed_if_it_is_empty(tmp_path):
    take(tmp_path / "deep/er")
    assert list(tmp_path.iterdir()) == []
    with writing_folder(tmp_path / "deep/er"):
        (tmp_path / "deep/mine").touch()
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["mine"]
    (tmp_path / "empty").mkdir()
    take(tmp_path / "empty")
    assert (tmp_path / "empty").exists()


def test_a_thread_may_hold_a_lock_several_times(tmp_path):
    lock = tmp_path / "lock"
    errors = []

    def meet():
        try:
            with writer_lock(lock, tmp_path):
                pass
        except BusyError as error:
            errors.append(str(error))

    def meet_in_thread():
        thread = threading.Thread(target=meet)
        thread.start()
        thread.join()

    for _ in range(2):
        with writer_lock(lock, tmp_path) as is_alone:
            assert is_alone
            with writer_lock(lock, tmp_path) as is_alone:
                assert not is_alone
            assert lock.exists()
            meet_in_thread()
        meet_in_thread()
    assert (
        errors
        == [f"{tmp_path}: another thread of this process is writing it; name another place"] * 2
    )


def test_a_symbolic_link_leads_to_the_same_lock(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with holder(tmp_path / "real" / LOCK), pytest.raises(BusyError, match="real: process"):
        take(tmp_path / "link")


def test_a_forked_process_neither_holds_nor_releases_the_lock(tmp_path):
    lock = tmp_path / "lock"
    with writer_lock(lock, tmp_path):
        child = os.fork()
        if child == 0:
            try:
                with writer_lock(lock, tmp_path):
                    os._exit(1)
            except BusyError:
                os._exit(0)
            finally:
                os._exit(2)
        assert os.waitpid(child, 0)[1] == 0
        assert lock.exists()


def test_a_file_that_was_removed_meanwhile_is_no_lock(tmp_path, monkeypatch):
    """The former holder removes the file after this process has opened and before it
    has locked it.
    """
    lock = tmp_path / "lock"
    real = fcntl.lockf

    def late(descriptor, operation):
        monkeypatch.setattr(fcntl, "lockf", real)
        lock.unlink()
        return real(descriptor, operation)

    monkeypatch.setattr(fcntl, "lockf", late)
    with writer_lock(lock, tmp_path) as is_alone:
        assert is_alone
        assert lock.exists()


def test_a_file_system_without_locks_warns(tmp_path, monkeypatch):
    def unsupported(descriptor, operation):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "lockf", unsupported)
    with (
        pytest.warns(RuntimeWarning, match="its file system has no locks .*No locks available"),
        writer_lock(tmp_path / "lock", tmp_path) as is_alone,
    ):
        assert not is_alone
