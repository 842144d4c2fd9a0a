"""Small losses, tables and optimizers under NVIDIA's compute-sanitizer: faults of memory, and
races.

The programs run at the same time, each in a process with a limit of its own: ``python -m
benchmarks.gpu.stages.sanitizer PROGRAM``. One of the loss takes B = 300 rows, which are no whole
blocks, and goes through the row and column sweeps of small and of large calls, the join of splits,
the bounded rows (d = 512), both directions at once and the sigmoid loss.
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

import torch
from torch.nn.functional import normalize

import adaftr_fast as af
from benchmarks.gpu.cells import Cell, Row, Setting
from benchmarks.gpu.processes import run

LIMIT = 70  # seconds of a cell
NAME = "benchmarks.gpu.stages.sanitizer"
TOOLS = ("memcheck", "racecheck")
SUMMARY = re.compile(r"(?:ERROR|RACECHECK) SUMMARY: (\d+) (?:errors?|hazards?)")
TAIL = 1500  # characters of what a program printed that are kept
ROWS = 300
TYPES = ("bfloat16", "float16", "float32")
OPTIMIZERS = ("SGD", "Adagrad", "RowwiseAdagrad", "LazyAdam", "Adam", "AdamW")


def cells(setting: Setting) -> Iterator[Cell]:
    for tool in TOOLS:
        yield Cell({"tool": tool}, check, seconds=40)


def check(key: Row, setting: Setting) -> Row:
    """Returns the number of findings of each program; "failed" names the programs that have some,
    or did not end.
    """
    command = sanitizer()
    tool = key["tool"]
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
    command = [*tool, "--print-limit", "10", sys.executable, "-m", NAME, program]
    # Without torch's cache of memory, an address behind a tensor lies in no other tensor's memory.
    try:
        done = run(command, seconds, PYTORCH_NO_CUDA_MEMORY_CACHING="1")
    except TimeoutError as error:
        return str(error)
    summary = SUMMARY.search(done.stdout)
    clean = summary is not None and int(summary[1]) == 0 and done.returncode == 0
    return 0 if clean else done.stdout[-TAIL:]


def loss(dtype: str, width: int, device: str = "cuda") -> None:
    a, b = (normalize(torch.randn(ROWS, width, device=device)) for _ in range(2))
    a, b = (x.to(getattr(torch, dtype)).requires_grad_() for x in (a, b))
    tau = torch.full((ROWS,), 0.3, device=device, requires_grad=True)

    def sweep() -> None:
        af.adaptive_infonce(a, b, tau).backward()
        af.adaptive_infonce(a, b, tau, return_stats=True)[0].backward()
        af.adaptive_infonce(a, b, 0.3, symmetric=True).backward()
        af.sigmoid_contrast(a, b, 1.0, -5.0).backward()

    sweep()
    if device == "cuda":
        from adaftr_fast.kernels.infonce import launch

        launch.SMALL_PART = launch.FEW_BLOCKS = 0  # every call is a large one
        sweep()
        torch.cuda.synchronize()


def tables(optimizer: str, device: str = "cuda") -> None:
    sizes = [50, 1, 20]
    ids = torch.cat([torch.randint(0, size, (ROWS, 1), device=device) for size in sizes], 1)
    lengths = torch.randint(0, 4, (ROWS * len(sizes),), device=device)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64, device=device), lengths.cumsum(0)])
    values = torch.zeros(int(offsets[-1]), dtype=torch.int64, device=device)
    for widths in (8, [8, 3, 16]):
        table = af.FusedEmbedding(sizes, widths, device=device)
        update = getattr(af.optim, optimizer)(table, lr=0.01)
        for _ in range(3):
            for inputs in ((ids,), (values, offsets)):
                update.zero_grad()
                table(*inputs).sin().sum().backward()
                af.optim.clip_grad_norm_(table.parameters(), 1.0)
                update.step()
        table.flush()
    if device == "cuda":
        torch.cuda.synchronize()


def gluon(width: int, device: str = "cuda") -> None:
    os.environ["ADAFTR_FAST_INFONCE_SWEEPS"] = "gluon"
    loss("bfloat16", width, device)


PROGRAMS = {
    f"loss {dtype} {width}": partial(loss, dtype, width) for width in (64, 512) for dtype in TYPES
}
PROGRAMS |= {f"gluon {width}": partial(gluon, width) for width in (64, 128)}
PROGRAMS |= {f"tables {name}": partial(tables, name) for name in OPTIMIZERS}

if __name__ == "__main__":
    PROGRAMS[sys.argv[1]]()
