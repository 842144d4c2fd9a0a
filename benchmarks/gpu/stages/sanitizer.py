"""Small losses, tables and optimizers under NVIDIA's compute-sanitizer: faults of memory, and
races.

The programs (sanitized.py) run at the same time, each in a process with a limit of its own.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from benchmarks.gpu.cells import Cell, Setting
from benchmarks.gpu.processes import run
from benchmarks.gpu.stages.sanitized import PROGRAMS

LIMIT = 70  # seconds of a cell
TOOLS = ("memcheck", "racecheck")
SUMMARY = re.compile(r"(?:ERROR|RACECHECK) SUMMARY: (\d+) (?:errors?|hazards?)")
TAIL = 1500  # characters of what a program printed that are kept


def cells(setting: Setting) -> Iterator[Cell]:
    for tool in TOOLS:
        yield Cell(
            {"tool": tool}, lambda tool=tool: check(tool, setting), seconds=0 if setting.dry else 40
        )


def check(tool: str, setting: Setting) -> dict[str, Any]:
    """Returns the number of findings of each program; "failed" names the programs that have some,
    or did not end.
    """
    command = sanitizer()
    if setting.dry or command is None:
        return {"skipped": "a dry run" if setting.dry else "no compute-sanitizer found"}
    seconds = min(LIMIT, setting.until - time.time()) - 10
    with ThreadPoolExecutor(len(PROGRAMS)) as pool:
        every = dict(
            zip(PROGRAMS, pool.map(partial(findings, [command, "--tool", tool], seconds), PROGRAMS))
        )
    if bad := {name: found for name, found in every.items() if found != 0}:
        return {"failed": f"{tool} finds something in {', '.join(bad)}", "programs": every}
    return {"programs": every}


def sanitizer() -> str | None:
    """Returns the path of compute-sanitizer, or None."""
    return shutil.which("compute-sanitizer", path=f"{os.environ['PATH']}:/usr/local/cuda/bin")


def findings(tool: list[str], seconds: float, program: str) -> int | str:
    """Returns the number of findings in a program, or the end of what was printed where there are
    some or no number.
    """
    command = [
        *tool,
        "--print-limit",
        "10",
        sys.executable,
        "-m",
        "benchmarks.gpu.stages.sanitized",
        program,
    ]
    # Without torch's cache of memory, an address behind a tensor lies in no other tensor's memory.
    try:
        done = run(command, seconds, PYTORCH_NO_CUDA_MEMORY_CACHING="1")
    except TimeoutError as error:
        return str(error)
    summary = SUMMARY.search(done.stdout)
    clean = summary is not None and int(summary[1]) == 0 and done.returncode == 0
    return 0 if clean else done.stdout[-TAIL:]
