"""Another process that holds a lock, for tests of writers that meet."""

import subprocess
import sys
from contextlib import contextmanager

HOLD = """
import sys
from pathlib import Path
name, sys.argv[0] = sys.argv[0], "adaftr-fast"  # the command line starts without torch
from adaftr_fast.files.locks import writer_lock
sys.argv[0] = name
with writer_lock(Path(sys.argv[1]), Path(sys.argv[1])):
    print(flush=True)
    sys.stdin.read()
"""


@contextmanager
def holder(lock, *arguments):
    """Locks the file ``lock`` in another process, whose command line ends with ``arguments``;
    yields the process.
    """
    command = [sys.executable, "-c", HOLD, str(lock), *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"\n"
        try:
            yield process
        finally:
            process.kill()
