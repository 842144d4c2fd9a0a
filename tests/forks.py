"""Runs a function in a forked process."""

import os
import signal
from collections.abc import Callable

SECONDS = 60  # after which a child that hangs dies


def in_a_fork(work: Callable[[], str]) -> str:
    """Returns what ``work`` returns in a forked child, the message of its RuntimeError, or "hangs"."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(SECONDS)
        try:
            os.write(write, work().encode())
        except RuntimeError as error:
            os.write(write, str(error).splitlines()[0].encode())
        finally:
            os._exit(0)
    os.close(write)
    os.waitpid(child, 0)
    with os.fdopen(read) as text:
        return text.read() or "hangs"
