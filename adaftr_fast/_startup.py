"""What must happen before torch is imported. This module imports the standard library alone."""

from __future__ import annotations

import os
import sys
from pathlib import Path

COMMAND, MODULE = "adaftr-fast", "adaftr_fast.cli"
SPIN, WAIT_POLICY = "GOMP_SPINCOUNT", "OMP_WAIT_POLICY"
SPIN_COUNT = "1000"  # rounds of waiting before a thread sleeps; 300,000 by default. See docs/shared_machines.md


def is_command() -> bool:
    """Returns whether this process runs the command line: ``adaftr-fast`` or ``python -m adaftr_fast.cli``."""
    return Path(sys.argv[0]).name == COMMAND or ["-m", MODULE] in (sys.orig_argv[n : n + 2] for n in range(1, 4))


def bound_spinning() -> None:
    """Bounds how long OpenMP threads spin while they wait for work, unless the environment says how they wait.

    On a machine with other work, a thread spins while the thread that it waits for has no core. By default this takes
    the time of many steps. libgomp reads the variable when torch loads it. Child processes inherit it.
    """
    if WAIT_POLICY not in os.environ:
        os.environ.setdefault(SPIN, SPIN_COUNT)


def waiting() -> str:
    """Describes how OpenMP threads wait for work in this process."""
    names = [name for name in (WAIT_POLICY, SPIN) if name in os.environ]
    return ", ".join(f"{name}={os.environ[name]}" for name in names) or f"{SPIN} unset: 300,000 rounds"
