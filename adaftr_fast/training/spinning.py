"""Warns where OpenMP threads that spin while they wait slow training down, as they do beside other
work.
"""

from __future__ import annotations

import time
import warnings
from functools import cache

import torch
from torch import Tensor

from adaftr_fast._startup import BESIDE_OTHER_WORK, IS_BOUNDED, SPIN

GRAIN = 1 << 15  # elements that torch gives to one thread
ROUNDS = 20
# about 1 without a free core, 4 where threads soon sleep, hundreds where they spin
TOLERATED = 20.0


@cache
def warn_of_spinning() -> None:
    """Warns, once in a process, if ops on all threads take several times as long as on one.

    It takes a few milliseconds on an idle machine. It does nothing where the environment bounded
    how long threads spin when this package was imported, as it does in the commands.
    """
    if IS_BOUNDED or torch.get_num_threads() < 2:
        return
    if (found := slowdown()) > TOLERATED:
        warnings.warn(
            f"threads that wait for each other make this process {found:.0f} times slower than one "
            "thread, since other "
            f"work uses the machine: set {SPIN}={BESIDE_OTHER_WORK} in the environment before "
            "Python starts (in a "
            "notebook: restart the kernel, and set it with os.environ before torch is imported), "
            "or train with the "
            "command `adaftr-fast train`, which sets it",
            RuntimeWarning,
            stacklevel=3,
        )


def slowdown() -> float:
    """Returns the time of an op on all threads over that of its parts one after the other."""
    threads = torch.get_num_threads()
    together = _seconds(torch.ones(threads * GRAIN))
    return together / (threads * _seconds(torch.ones(GRAIN)))


def _seconds(values: Tensor) -> float:
    values.mul_(1.0)  # warms
    start = time.perf_counter()
    for _ in range(ROUNDS):
        values.mul_(1.0)
    return time.perf_counter() - start
