"""Handles Ctrl-C and SIGTERM as requests to stop after the current step."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from adaftr_fast.distributed.ranks import ALONE, Ranks

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupt:
    """A request to stop: true after a signal, whose number is ``signum``.

    Signals reach several ranks at different steps. A rank that stopped alone would block the others
    in a collective, so a request of any rank becomes true on all of them at the same
    synchronization point.

    Attributes:
        own: the signal that this process got.
    """

    def __init__(self, ranks: Ranks = ALONE) -> None:
        self.ranks = ranks
        self.signum: int | None = None
        self.own: int | None = None

    def __bool__(self) -> bool:
        return self.signum is not None

    def synchronize(self) -> None:
        """Exchanges the requests of all ranks; does nothing in a single process."""
        if not self.ranks.is_alone:
            self.signum = self.ranks.largest(self.own or 0) or None

    def request(self, signum: int = signal.SIGINT) -> None:
        """Requests a stop, as the signal ``signum`` does."""
        self.own = signum
        if self.ranks.is_alone:
            self.signum = signum


@contextmanager
def deferred_interrupt(ranks: Ranks = ALONE) -> Iterator[Interrupt]:
    """Within the block, the first Ctrl-C or SIGTERM is a request to stop. A later Ctrl-C acts as
    usual. A later SIGTERM changes nothing: a job manager sends one to all processes of a job, and
    torchrun sends another to its ranks.
    """
    interrupt = Interrupt(ranks)
    # only the main thread may set handlers
    if threading.current_thread() is not threading.main_thread():
        yield interrupt
        return
    previous = {signum: signal.getsignal(signum) for signum in SIGNALS}

    def handle(signum: int, frame: FrameType | None) -> None:
        if interrupt.own is None:
            interrupt.request(signum)
            signal.signal(signal.SIGINT, previous[signal.SIGINT])

    for signum in SIGNALS:
        signal.signal(signum, handle)
    try:
        yield interrupt
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)
