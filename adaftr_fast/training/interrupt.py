"""Handles Ctrl-C and SIGTERM as requests to stop after the current step."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from adaftr_fast.distributed.ranks import Ranks

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupt:
    """A request to stop: true after a signal, whose number is ``signum``."""

    def __init__(self) -> None:
        self.signum: int | None = None

    def __bool__(self) -> bool:
        return self.signum is not None

    def synchronize(self) -> None:
        """Exchanges the requests of all ranks; does nothing in a single process."""

    def request(self, signum: int = signal.SIGINT) -> None:
        """Requests a stop, as the signal ``signum`` does."""
        self.signum = signum


class SharedInterrupt(Interrupt):
    """A request of any rank, which becomes true on all ranks at the same synchronization point.

    Signals reach the ranks at different steps. A rank that stopped alone would block the others in
    a collective.
    """

    def __init__(self, own: Interrupt, ranks: Ranks) -> None:
        super().__init__()
        self.own = own
        self.ranks = ranks

    def synchronize(self) -> None:
        self.signum = self.ranks.largest(self.own.signum or 0) or None


@contextmanager
def deferred_interrupt() -> Iterator[Interrupt]:
    """Within the block, turns the first Ctrl-C or SIGTERM into a request to stop; a second one acts
    as usual.
    """
    interrupt = Interrupt()
    # only the main thread may set handlers
    if threading.current_thread() is not threading.main_thread():
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
