"""The number of cores that a call may use."""

import os

_limit: int | None = None


def cores() -> int:
    """Returns the number of cores this process may use."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return available if _limit is None else min(available, _limit)


def limit_cores(count: int) -> None:
    """Makes ``cores`` return at most ``count`` in this process, which shares its machine with other calls."""
    global _limit
    _limit = count
