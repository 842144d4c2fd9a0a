"""A worker whose stage "loss" has cells that raise, crash, hang and stop CUDA; the others are
measured.

``FAULTY_DEATH``, "PLACE SIGNAL", lets it die by a signal instead: at its "start", "between" cells
or at its "teardown".
"""

import os
import signal
import sys
import time
from types import SimpleNamespace

from benchmarks.gpu import worker
from benchmarks.gpu.cells import Cell

PLACE, NUMBER = os.environ.get("FAULTY_DEATH", "never 0").split()


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
    for name in does if PLACE == "never" else ("first", "last"):
        yield Cell({"contestant": name}, does[name])


def die_at(place):
    if place == PLACE:
        os.kill(os.getpid(), int(NUMBER))
        time.sleep(60)


def measure(*given):
    result = real_measure(*given)
    die_at("between")
    return result


def leave(status):
    die_at("teardown")
    real_leave(status)


die_at("start")
real_measure, real_leave = worker.measure, worker.leave
worker.measure, worker.leave = measure, leave
sys.modules["benchmarks.gpu.stages.loss"] = SimpleNamespace(
    cells=cells, LIMIT=int(os.environ.get("FAULTY_LIMIT", 2))
)
sys.modules["benchmarks.gpu.stages.embedding"] = SimpleNamespace(cells=cells, LIMIT=2)
worker.note_machine = lambda journal, setting: journal.append({"machine": {"gpu": "none"}})
worker.main()
