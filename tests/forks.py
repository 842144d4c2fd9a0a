"""Runs a function in a forked process, or a script in a fork of a process that has imported the
package.
"""

import contextlib
import gc
import multiprocessing
import os
import signal
import sys
import tempfile
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

SECONDS = 60  # after which a child that hangs dies
ROOT = Path(__file__).parents[1]
SERVER = multiprocessing.get_context("forkserver")
# Imported once for all scripts and ranks: an import of torch takes longer than most of what they
# do.
# what an export imports
EXPORT = ["torch.export._trace", "torch._inductor.ir", "adaftr_fast.serving.export"]
PRELOAD = ["torch", "torch._dynamo", "adaftr_fast.cli.app", "adaftr_fast.api.run", *EXPORT]
SERVER.set_forkserver_preload(PRELOAD)

COMMAND = "import sys; from adaftr_fast.cli import main; sys.exit(main(sys.argv[1:]))"
"""The script that runs a command of ``adaftr-fast``."""


# a bound that only broken code reaches
def wait_for(condition: Callable[[], Any], seconds: float = 600) -> Any:
    """Waits until a condition is true, and returns its value."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end
        time.sleep(0.02)
    return value


def in_a_fork(work: Callable[[], str]) -> str:
    """Returns what ``work`` returns in a forked child, the message of its RuntimeError,
    or "hangs".
    """
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


class Script:
    """Runs a Python script as ``python -c`` does, but in milliseconds: the package is imported
    already.

    Variables that torch reads when it is loaded, such as OMP_NUM_THREADS, have no effect. A script
    that still runs when its object is collected, or after ``communicate`` has waited in vain, is
    killed, so that it holds up no session.

    Args:
        source: the script.
        arguments: its ``sys.argv[1:]``.
        variables: what its environment has beside that of this process.
    """

    def __init__(self, source: str, *arguments: Any, **variables: Any) -> None:
        self._folder = tempfile.TemporaryDirectory()
        environment = os.environ | {name: str(value) for name, value in variables.items()}
        given = (self._folder.name, source, [str(each) for each in arguments], environment)
        self._process = SERVER.Process(target=_run, args=given)
        with contextlib.chdir(ROOT):  # where the server imports the package
            self._process.start()
        self.pid = self._process.pid
        weakref.finalize(self, _end, self._process)

    @property
    def returncode(self) -> int | None:
        """The exit status, negative after a signal, or None while the script runs."""
        return self._process.exitcode

    def communicate(self, timeout: float = 300) -> tuple[str, str]:
        """Waits for the end and returns what was printed to stdout and to stderr."""
        self._process.join(timeout)
        ended = self.returncode is not None
        _end(self._process)
        assert ended, f"no end within {timeout} s: {self.printed('err')}"
        return self.printed("out"), self.printed("err")

    def end(self, status: int = 0) -> tuple[str, str]:
        """Waits for the end, which must have this exit status; returns what
        ``communicate`` does.
        """
        printed = self.communicate()
        assert self.returncode == status, printed[1]
        return printed

    def send_signal(self, number: int) -> None:
        os.kill(self._process.pid, number)

    def kill(self) -> None:
        self._process.kill()

    def printed(self, name: str = "out") -> str:
        """Returns what was printed until now to stdout, or to stderr ("err")."""
        path = Path(self._folder.name, name)
        return path.read_text() if path.exists() else ""


def _end(process: Any) -> None:
    if process.is_alive():
        process.kill()
        process.join()


def _run(folder: str, source: str, arguments: list[str], environment: dict[str, str]) -> None:
    gc.freeze()  # collections would copy the memory of the imports, which is shared
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{folder}/{name}", os.O_WRONLY | os.O_CREAT), number)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["-c", *arguments]
    exec(compile(source, "<script>", "exec"), {"__name__": "__main__"})
