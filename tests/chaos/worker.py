"""A process that runs the cases of one kind, so that a crash or an endless loop is a failure of its
case.
"""

import functools
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import traceback

LINES = 12  # of a traceback


class Worker:
    """Runs ``tests.chaos.KIND.check`` on cases, in a process that is started again after a crash.

    Args:
        kind: the name of the module.

    Attributes:
        counted: the sum of the numbers that ``check`` has returned.
    """

    def __init__(self, kind):
        self.seconds = getattr(
            importlib.import_module(f"tests.chaos.{kind}"), "CASE_SECONDS", 120.0
        )
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
        timer = threading.Timer(self.seconds, self.process.kill)
        timer.start()
        try:
            self.process.stdin.write(json.dumps(case) + "\n")
            self.process.stdin.flush()
            answer = self.process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        finally:
            is_late = not timer.is_alive()
            timer.cancel()
        if answer:
            error, number = json.loads(answer)
            self.counted += number
            return error
        code = self.process.wait()
        self.errors.seek(0)
        said = "".join(self.errors.readlines()[-LINES:])
        self._end()
        name = signal.Signals(-code).name if code < 0 else f"exit status {code}"
        return said + (
            f"no answer within {self.seconds:g} s" if is_late else f"the process ended: {name}"
        )

    def _start(self):
        self.errors.truncate(0)
        self.errors.seek(0)
        command = [sys.executable, "-X", "faulthandler", "-m", "tests.chaos.worker", self.kind]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True,
            start_new_session=True,  # Ctrl-C reaches the search alone
        )  # fmt: skip

    def _end(self):
        if self.process is not None:
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
            self.process.communicate()
            self.process = None


@functools.cache
def _worker(kind):
    return Worker(kind)  # which ends with this process, as its stdin ends


def repeat(kind, case):
    """Returns the error of one case or None."""
    return _worker(kind).error(case)


def serve(kind, answers):
    """Answers each case of stdin, a line of JSON, by a line: its traceback or null, and what
    ``check`` returned.
    """
    check = importlib.import_module(f"tests.chaos.{kind}").check
    for line in sys.stdin:
        error, number = None, 0
        try:
            number = check(json.loads(line)) or 0
        except Exception:
            error = "\n".join(traceback.format_exc().splitlines()[-LINES:])
        print(json.dumps([error, number]), file=answers, flush=True)


if __name__ == "__main__":
    with os.fdopen(os.dup(1), "w") as own:
        os.dup2(2, 1)  # what a case prints is no answer
        serve(sys.argv[1], own)
