"""Starts commands as forks of this process, which computes nothing itself, and finds every process
that they leave.
"""

import ctypes
import fcntl
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36
END_SECONDS = 20.0  # for processes to end by themselves
readers = set()  # processes that go on while commands start and end
servers = set()  # processes that go on while cases start and end

# processes without a parent become children of this one
ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ends with the processes below


def fork(act, folder, log):
    """Runs ``act`` in a forked process with the working directory ``folder``; its output goes to
    ``log``.
    """
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.dup2(os.open(log, os.O_CREAT | os.O_TRUNC | os.O_WRONLY), 1)
        os.dup2(1, 2)
        os.chdir(folder)
        import torch

        torch.set_num_threads(1)
        code = act()
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def spawn(command, folder, log):
    """Starts a Python program in the working directory ``folder``; its output goes to ``log``."""
    root = str(Path(__file__).parents[3])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": root}
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, *command], cwd=folder, env=environment, stdout=file, stderr=file
        )
    process.returncode = 0  # end() waits for it
    return process.pid


def end(process, seconds=None):
    """Waits for a child and returns its exit status, negative for a signal; None after
    ``seconds``.
    """
    deadline = None if seconds is None else time.monotonic() + seconds
    while True:
        found, status = os.waitpid(process, 0 if deadline is None else os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            return None
        time.sleep(0.005)


def kill(*processes):
    for process in processes:
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


def children(process):
    try:
        return [
            int(each)
            for each in Path(f"/proc/{process}/task/{process}/children").read_text().split()
        ]
    except OSError:
        return []


def descendants(process):
    below = children(process)
    return below + [each for child in below for each in descendants(child)]


def ranks(agent):
    """Returns the processes that torchrun has started."""
    found = []
    for process in children(agent):
        try:
            if b"RANK=" in Path(f"/proc/{process}/environ").read_bytes():
                found.append(process)
        except OSError:
            pass
    return found


def reap():
    """Reaps children that have ended; returns those that have not."""
    left = []
    for process in set(children(os.getpid())) - readers - servers:
        try:
            if not os.waitpid(process, os.WNOHANG)[0]:
                left.append(process)
        except ChildProcessError:
            pass
    return left


def all_ended(seconds=END_SECONDS):
    """Waits until this process has no children but readers and servers; returns whether it has
    none.
    """
    deadline = time.monotonic() + seconds
    while reap():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def kill_all():
    """Kills every process that was started here but readers and servers."""
    while left := reap():
        kill(*left, *(below for process in left for below in descendants(process)))
        time.sleep(0.02)


def end_all():
    """Kills every process that was started here but servers."""
    readers.clear()
    kill_all()


def is_locked(lock):
    """Returns whether another process holds a lock file."""
    try:
        with lock.open("r+") as file:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False
