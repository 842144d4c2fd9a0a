"""Child processes that do not outlive their parent, and their environment."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sysconfig
from collections.abc import Callable
from pathlib import Path

from benchmarks.gpu import ROOT, WORK

SITE = WORK / "site"
"""The wheels that the build stage installs. The interpreter's own packages stay as they are."""
PACKAGE = WORK / "package"
"""The editable package: an upgrade of it in the folder of the wheels would replace their commands,
such as ninja.
"""
_LIBC = ctypes.CDLL(None)
PR_SET_PDEATHSIG = 1


def environment(**more: str) -> dict[str, str]:
    """Returns the variables of a process that imports the package from this checkout and keeps its
    caches.

    PATH begins with the commands of the installed wheels, of the package and of this interpreter's
    packages.
    """
    commands = [
        str(SITE / "bin"),
        str(PACKAGE / "bin"),
        sysconfig.get_path("scripts"),
        os.environ.get("PATH", ""),
    ]
    paths = [
        str(PACKAGE),
        str(SITE),
        str(ROOT),
        *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)),
    ]
    variables = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    caches = {
        name: str(WORK / "cache" / name.split("_")[0].lower())
        for name in ("TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR")
    }
    found = {
        "PATH": os.pathsep.join(filter(None, commands)),
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)),
    }
    return variables | caches | found | {"PYTHONUNBUFFERED": "1"} | more


def die_with_parent() -> None:
    """Lets the system kill this process when its parent ends."""
    _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def dies_with_parent() -> Callable[[], None]:
    """Returns what a child process calls first, so that a killed parent leaves none that uses the
    GPU.
    """
    parent = os.getpid()

    def call() -> None:
        die_with_parent()
        if os.getppid() != parent:  # it was killed before
            os._exit(1)

    return call


def run(
    command: list[str], seconds: float, cwd: Path = ROOT, **more: str
) -> subprocess.CompletedProcess[str]:
    """Runs a command with stdout and stderr as one text.

    Raises:
        TimeoutError: it took longer; it and its children were killed. The message holds the end of
            what it printed.
    """
    process = subprocess.Popen(
        command,
        cwd=cwd,
        env=environment(**more),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
        preexec_fn=dies_with_parent(),
    )
    try:
        printed, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        printed, _ = process.communicate()
        raise TimeoutError(
            f"no end within {seconds:.0f} s of {' '.join(command)}; it printed {printed[-1000:]}"
        ) from None
    return subprocess.CompletedProcess(command, process.returncode, printed)
