"""What must happen before torch is imported. This module imports the standard library alone."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

COMMAND = "adaftr-fast"
MODULE = "adaftr_fast.cli"
PARENT = os.getppid()  # another process adopts this one if the parent ends
TORCHRUN = "TORCHELASTIC_RUN_ID"  # set in its ranks
PR_SET_PDEATHSIG = 1
SPIN = "GOMP_SPINCOUNT"
WAIT_POLICY = "OMP_WAIT_POLICY"
# Rounds of waiting before a thread sleeps, measured in benchmarks/README.md, "Shared machines".
# libgomp's are 300,000.
ON_AN_IDLE_MACHINE = 10_000
BESIDE_OTHER_WORK = 300
# libgomp reads them once, when torch is imported
IS_BOUNDED = SPIN in os.environ or WAIT_POLICY in os.environ


def is_command() -> bool:
    """Returns whether this process runs the command line: ``adaftr-fast`` or ``python -m
    adaftr_fast.cli``.
    """
    if sys.argv and Path(sys.argv[0]).name == COMMAND:
        return True
    options = sys.orig_argv[1 : len(sys.orig_argv) - len(sys.argv) + 1]  # of the interpreter
    return options[-2:] == ["-m", MODULE]


def launched() -> bool:
    """Returns whether torchrun, or a scheduler that sets its variables, started this process as one
    of several.
    """
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def bound_spinning() -> None:
    """Bounds how long OpenMP threads spin while they wait for work, unless the environment says how
    they wait.

    On a machine with other work, a waiting thread wastes the core that the thread it waits for
    needs. By default this takes the time of many steps. Fewer rounds cost an idle machine more, so
    they depend on the load of the last minute. libgomp reads the variable when torch loads it.
    Child processes inherit it.
    """
    if WAIT_POLICY not in os.environ:
        is_idle = os.getloadavg()[0] < (os.cpu_count() or 1) / 2
        os.environ.setdefault(SPIN, str(ON_AN_IDLE_MACHINE if is_idle else BESIDE_OTHER_WORK))


def end_with_launcher() -> bool:
    """Makes Linux kill a rank when torchrun, its parent, ends from now on.

    Returns:
        Whether it does: False without torchrun or Linux.
    """
    if TORCHRUN not in os.environ or sys.platform != "linux":
        return False
    import ctypes

    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    return True


def waiting() -> str:
    """Describes how OpenMP threads wait for work in this process."""
    names = [name for name in (WAIT_POLICY, SPIN) if name in os.environ]
    return (
        ", ".join(f"{name}={os.environ[name]}" for name in names) or f"{SPIN} unset: 300,000 rounds"
    )
