"""A stage with cells that raise, crash and hang; the others are measured."""

import os
import signal
import time

from benchmarks.gpu.cells import Cell

LIMIT = 600


def fail():
    raise ValueError("expected one thing, got another")


def cells(setting):
    does = {
        "first": lambda: {"seconds": 1.0},
        "raises": fail,
        "crashes": lambda: os.kill(os.getpid(), signal.SIGSEGV),
        "hangs": lambda: time.sleep(60),
        "last": lambda: {"seconds": float("inf")},
    }
    return [Cell({"contestant": name}, measure) for name, measure in does.items()]
