"""A worker whose stage "loss" has cells that raise, crash, hang and stop CUDA; the others are measured."""

import os
import signal
import sys
import time
from types import SimpleNamespace

from benchmarks.gpu import worker
from benchmarks.gpu.cells import Cell


def cells(setting):
    def raises():
        raise ValueError("expected one thing, got another")

    does = {
        "first": lambda: {"seconds": 1.0},
        "raises": raises,
        "crashes": lambda: os.kill(os.getpid(), signal.SIGSEGV),
        "hangs": lambda: time.sleep(60),
        "ends": lambda: os._exit(3),
        "last": lambda: {"seconds": float("inf")},
    }
    for name, measure in does.items():
        yield Cell({"contestant": name}, measure)


sys.modules["benchmarks.gpu.stages.loss"] = SimpleNamespace(cells=cells, LIMIT=int(os.environ.get("FAULTY_LIMIT", 2)))
worker.note_machine = lambda journal, setting: journal.append({"machine": {"gpu": "none"}})
worker.main()
