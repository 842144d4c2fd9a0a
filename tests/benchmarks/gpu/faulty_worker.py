"""A worker whose stages have cells that raise, crash, hang and end their process; the others are
measured.

``FAULTY_DEATH``, "PLACE SIGNAL", lets it die by a signal instead: at its "start", or "between"
cells.
"""

import os
import signal
import sys
import time
from multiprocessing.connection import Connection
from types import SimpleNamespace

from benchmarks.gpu import card, worker
from benchmarks.gpu.cells import Cell

PLACE, NUMBER = os.environ.get("FAULTY_DEATH", "never 0").split()
DOES = {
    "first": lambda: {"seconds": 1.0},
    "raises": lambda: [][1],
    "crashes": lambda: os.kill(os.getpid(), signal.SIGSEGV),
    "hangs": lambda: time.sleep(60),
    "ends": lambda: os._exit(3),
    "last": lambda: {"seconds": float("inf")},
}


def cells(setting):
    for name in DOES if PLACE == "never" else ("first", "last"):
        yield Cell({"contestant": name}, lambda key, setting: DOES[key["contestant"]]())


def die_at(place):
    if place == PLACE:
        os.kill(os.getpid(), int(NUMBER))


class Pipe(Connection):
    def send(self, message):
        super().send(message)
        if isinstance(message[0], dict):
            die_at("between")


die_at("start")
stage = SimpleNamespace(cells=cells, LIMIT=int(os.environ.get("FAULTY_LIMIT", 2)))
sys.modules |= {f"benchmarks.gpu.stages.{name}": stage for name in ("loss", "embedding")}
card.facts = lambda *_: {"gpu": "none"}
worker.serve(Pipe(int(sys.argv[1])))
