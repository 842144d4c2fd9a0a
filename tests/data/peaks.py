"""The peak of the anonymous memory of a process."""

import threading
import time
from collections.abc import Callable
from pathlib import Path


def anonymous() -> int:
    """Returns the bytes of anonymous memory that this process has."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def watch_peak() -> Callable[[], int]:
    """Starts to watch the memory; returns a function that gives the peak since then, in bytes."""
    peaks = [anonymous()]

    def watch() -> None:
        while True:
            peaks[0] = max(peaks[0], anonymous())
            time.sleep(0.002)

    threading.Thread(target=watch, daemon=True).start()
    return lambda: peaks[0]
