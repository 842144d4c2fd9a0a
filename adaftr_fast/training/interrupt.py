"""Ctrl-C and SIGTERM as requests to stop between two steps, not in the middle of one."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from adaftr_fast.distributed.ranks import Ranks

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupt:
    """True once a signal came; ``signum`` is its number."""

    def __init__(self) -> None:
        self.signum: int | None = None

    def __bool__(self) -> bool:
        return self.signum is not None

    def synchronize(self) -> None:
        """Learns of other ranks' signals, where there are any."""

    def request(self, signum: int = signal.SIGINT) -> None:
        self.signum = signum


class SharedInterrupt(Interrupt):
    """An interrupt of any rank, known to all from the same moment on: the last time they met.

    Signals reach the ranks between different steps, and one that stopped alone would leave the others waiting.
    """

    def __init__(self, own: Interrupt, ranks: Ranks) -> None:
        super().__init__()
        self.own, self.ranks = own, ranks

    def synchronize(self) -> None:
        self.signum = self.ranks.largest(self.own.signum or 0) or None


@contextmanager
def deferred_interrupt() -> Iterator[Interrupt]:
    """Within the block the first Ctrl-C or SIGTERM sets the flag; a second one acts as usual."""
    interrupt = Interrupt()
    if threading.current_thread() is not threading.main_thread():  # only it may set handlers
        yield interrupt
        return
    previous = {signum: signal.getsignal(signum) for signum in SIGNALS}

    def restore() -> None:
        for signum, handler in previous.items():
            signal.signal(signum, handler)

    def handle(signum: int, frame: FrameType | None) -> None:
        interrupt.request(signum)
        restore()

    for signum in SIGNALS:
        signal.signal(signum, handle)
    try:
        yield interrupt
    finally:
        restore()
