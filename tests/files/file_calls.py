"""Calls a function before every call that changes names or flushes files, to kill or observe a
process there.
"""

import os
from contextlib import ExitStack, contextmanager
from unittest.mock import patch

from adaftr_fast.files import whole

CALLS = ("mkdir", "rename", "replace", "unlink", "rmdir", "fsync")


@contextmanager
def before_each_call(act, exchange=True, flushed=lambda path: None):
    """Calls ``act(name)`` before each call, during the block.

    Args:
        act: the function; the calls that it makes itself are not reported.
        exchange: whether the file system can exchange two folders.
        flushed: called with the path of a file or folder after it has been flushed.
    """
    inside = []

    def watched(name, real):
        def call(*arguments, **options):
            if not inside:
                inside.append(name)
                act(name)
                inside.clear()
            result = real(*arguments, **options)
            if name == "fsync":
                flushed(f"/proc/self/fd/{arguments[0]}")
            return result

        return call

    with ExitStack() as stack:
        for name in CALLS:
            stack.enter_context(patch.object(os, name, watched(name, getattr(os, name))))
        swap = whole._exchange if exchange else lambda new, target: False
        stack.enter_context(patch.object(whole, "_exchange", watched("exchange", swap)))
        yield


def killed_at(number, run, exchange=True):
    """Runs ``run`` in a forked process that dies before call ``number``; returns whether it died
    there.
    """
    child = os.fork()
    if child == 0:
        try:
            left = iter(range(number))
            with before_each_call(lambda name: next(left, None) is None and os._exit(9), exchange):
                run()
            os._exit(0)
        finally:
            os._exit(1)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, 9)
    return code == 9
