"""Ends a rank with the process that started it."""

from __future__ import annotations

import os

from adaftr_fast import _startup
from adaftr_fast.errors import RankError


def end_with_launcher() -> None:
    """Makes Linux kill this process when torchrun, its parent, ends. Does nothing without torchrun or Linux.

    torchrun ends its ranks, unless it is killed by SIGKILL. They would train on, or wait for each other until
    ``training.rank_timeout``, and keep the run locked.

    Raises:
        RankError: torchrun has ended already.
    """
    if (
        _startup.end_with_launcher() and os.getppid() != _startup.PARENT
    ):  # the signal is that of a parent that ends from now on
        raise RankError("torchrun, which started this rank, has ended")
