"""The memory of this machine and of the process's cgroups, versions 1 and 2."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUPS = Path("/proc/self/cgroup")
MEMINFO = Path("/proc/meminfo")


class Files(NamedTuple):
    """File names in a cgroup, and the key of the reclaimable file pages in its statistics."""

    limit: str
    usage: str
    pages: str


VERSION_1 = Files("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
VERSION_2 = Files("memory.max", "memory.current", "inactive_file")


def available() -> int | None:
    """Returns the bytes of memory that a process can still take without swap, or None if the system
    does not tell.

    This is the least of what the machine and each of the process's cgroups have left.
    """
    try:
        words = (line.split() for line in MEMINFO.read_text().splitlines())
        left = [1024 * next(int(size) for name, size, *_ in words if name == "MemAvailable:")]
    except (OSError, StopIteration):
        return None
    for folder, files in _cgroups():
        with suppress(OSError, ValueError, KeyError):  # no such file, or no limit ("max")
            lines = (folder / "memory.stat").read_text().splitlines()
            pages = dict(line.split() for line in lines)
            used = int((folder / files.usage).read_text()) - int(pages[files.pages])
            left.append(int((folder / files.limit).read_text()) - used)
    return max(0, min(left))


def limit() -> int:
    """Returns the bytes of memory of this machine, or the least limit of the process's cgroups if
    that is less.
    """
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for folder, files in _cgroups():
        with suppress(OSError, ValueError):  # no such file, or no limit ("max")
            limits.append(int((folder / files.limit).read_text()))
    return min(limits)


def _cgroups() -> Iterator[tuple[Path, Files]]:
    """Yields the folders of the process's cgroups and of their ancestors up to the mount, which all
    have limits.

    A container sees its own cgroup at the mount; the path that the process has outside need not
    exist there.
    """
    lines: list[str] = []
    with suppress(OSError):
        lines = OWN_CGROUPS.read_text().splitlines()
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root, files = (CGROUPS / "memory", VERSION_1) if controllers else (CGROUPS, VERSION_2)
        inside = [each for each in Path(path).parts if each not in ("/", "..")]
        for depth in range(len(inside), -1, -1):
            yield root.joinpath(*inside[:depth]), files
