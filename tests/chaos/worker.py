"""A process that runs the cases of one kind, so that a crash or an endless loop is a failure of its
case.
"""

import contextlib
import functools
import importlib
import signal
import subprocess
import sys
import tempfile
import traceback
from multiprocessing import Pipe
from multiprocessing.connection import Connection

LINES = 12  # of a traceback


class Worker:
    """Runs ``tests.chaos.KIND.check`` on cases, in a process that is started again after a crash.

    Args:
        kind: the name of the module.

    Attributes:
        counted: the sum of the numbers that ``check`` has returned.
    """

    def __init__(self, kind):
        module = importlib.import_module(f"tests.chaos.{kind}")
        self.seconds = getattr(module, "CASE_SECONDS", 120.0)
        self.counted = 0
        self.kind, self.process, self.errors = kind, None, tempfile.TemporaryFile("w+")  # noqa: SIM115

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._end()
        self.errors.close()

    def error(self, case):
        """Returns the end of the traceback of a case that fails, or how it ended the process; else
        None.
        """
        if self.process is None:
            self._start()
        try:
            self.pipe.send(case)
            if self.pipe.poll(self.seconds):
                error, number = self.pipe.recv()
                self.counted += number
                return error
            self.process.kill()
            how = f"no answer within {self.seconds:g} s"
        except (EOFError, OSError):
            code = self.process.wait()
            name = signal.Signals(-code).name if code < 0 else f"exit status {code}"
            how = f"the process ended: {name}"
        self._end()
        self.errors.seek(0)
        return "".join(self.errors.readlines()[-LINES:]) + how

    def _start(self):
        self.errors.truncate(0)
        self.errors.seek(0)
        self.pipe, theirs = Pipe()
        command = [sys.executable, "-X", "faulthandler", "-m", "tests.chaos.worker", self.kind]
        self.process = subprocess.Popen(
            [*command, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdout=self.errors,
            stderr=self.errors,
            start_new_session=True,  # Ctrl-C reaches the search alone
        )
        theirs.close()

    def _end(self):
        if self.process is not None:
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
            self.process.wait()
            self.pipe.close()
            self.process = None


@functools.cache
def _worker(kind):
    return Worker(kind)  # which ends with this process, as its pipe ends


def repeat(kind, case):
    """Returns the error of one case or None."""
    return _worker(kind).error(case)


def serve(kind, pipe):
    """Answers each case by its traceback or None, and what ``check`` returned."""
    check = importlib.import_module(f"tests.chaos.{kind}").check
    while True:
        case = pipe.recv()
        error = None
        number = 0
        try:
            number = check(case) or 0
        except Exception:
            error = "\n".join(traceback.format_exc().splitlines()[-LINES:])
        pipe.send((error, number))


if __name__ == "__main__":
    with contextlib.suppress(EOFError):
        serve(sys.argv[1], Connection(int(sys.argv[2])))
