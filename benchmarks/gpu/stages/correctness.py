"""The tests on the GPU, in groups, and checks that need a GPU and stand in no test.

A group runs on all cores, so that what it compiles takes seconds, and leaves it in the cache for
what is timed later.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.gpu import ROOT
from benchmarks.gpu.cells import Cell, Setting
from benchmarks.gpu.processes import run
from benchmarks.gpu.stages import checks
from benchmarks.gpu.stages.reports import FILE, TEXT

LIMIT = 120  # seconds of a cell
CHECK_LIMIT = 30  # of a check
TEST_LIMIT = 60  # of a test
FOLDERS = ("tests/kernels", "tests/cuda", "tests/ops/infonce", "tests/training/device")
# What a fault would cost most comes first. The last test of a group may leave its process unusable.
TABLES = ("tests/cuda/test_on_a_card.py", "tests/training/device/test_on_a_card.py")
LOSS = tuple(
    f"tests/kernels/infonce/{name}.py"
    for name in ("test_cuda", "test_losses", "test_precision", "gluon/test_gluon")
)
# each core has a process
ONE_THREAD = {"OMP_NUM_THREADS": "1", "TORCHINDUCTOR_COMPILE_THREADS": "1"}
DRY = ("tests/test_json.py",)
SHOWN = 5  # failures of a group that are kept


def cells(setting: Setting) -> Iterator[Cell]:
    """Yields tables and trainer, the loss, the checks, and the tests that need no GPU."""
    if setting.dry:
        yield from _checks(setting)
        yield Cell({"tests": "dry run"}, lambda: pytest(DRY, setting))
        return
    yield Cell({"tests": "tables and trainer"}, lambda: pytest(TABLES, setting), seconds=45)
    yield Cell({"tests": "loss"}, lambda: pytest(LOSS, setting), seconds=60)
    yield from _checks(setting)
    yield Cell(
        {"tests": "without a GPU"}, lambda: pytest(others(), setting), seconds=90, planned=False
    )


def _checks(setting: Setting) -> Iterator[Cell]:
    for name, check in checks.CHECKS.items():
        measure = partial(check, setting.device)
        yield Cell({"check": name}, measure, seconds=2, captures="graph" in name, limit=CHECK_LIMIT)


def others() -> tuple[str, ...]:
    """Returns the test files of ``FOLDERS`` that no other group has."""
    found = [
        str(path.relative_to(ROOT))
        for folder in FOLDERS
        for path in sorted((ROOT / folder).rglob("test_*.py"))
    ]
    return tuple(path for path in found if path not in TABLES + LOSS)


def pytest(paths: tuple[str, ...], setting: Setting) -> dict[str, Any]:
    """Runs test files on all cores, until the time of the cell is over at most.

    Returns:
        The numbers of tests by outcome, of each file too, why tests were skipped, and the first
        failures; "failed" where a test failed or has no outcome, with "timed out" where time was
        over.
    """
    seconds = min(LIMIT, setting.until - time.time()) - 10
    with tempfile.TemporaryDirectory() as folder:
        reports = Path(folder) / "reports.jsonl"
        plugins = ["-p", "no:cacheprovider", "-p", "benchmarks.gpu.stages.reports"]
        spread = [] if setting.dry else ["-n", str(os.cpu_count())]
        # others compile for minutes
        if paths in (TABLES, LOSS) and importlib.util.find_spec("pytest_timeout"):
            spread += ["--timeout", str(TEST_LIMIT), "--timeout-method", "thread"]
        command = [sys.executable, "-m", "pytest", "-q", "--tb=short", *plugins, *spread, *paths]
        try:
            done = run(command, seconds, **{FILE: str(reports)}, **ONE_THREAD)
        except TimeoutError as error:
            return outcomes(reports, str(error)) | {"timed out": True}
        ended = (
            ""
            if done.returncode == 0
            else f"pytest ended with status {done.returncode}: {done.stdout[-TEXT:]}"
        )
        return outcomes(reports, ended)


def outcomes(reports: Path, ended: str) -> dict[str, Any]:
    """Returns what ``pytest`` does from the lines of ``reports``; ``ended`` says how the run
    failed, if it did.
    """
    lines = (
        [json.loads(line) for line in reports.read_text().splitlines()] if reports.exists() else []
    )
    found: dict[str, dict[str, str]] = {}
    for line in lines:
        if "test" in line and found.get(line["test"], {}).get("outcome") != "failed":
            found[line["test"]] = line
    counts = Counter(each["outcome"] for each in found.values())
    files: dict[str, Counter[str]] = {}
    for name, each in found.items():
        files.setdefault(name.partition("::")[0], Counter())[each["outcome"]] += 1
    bad = [each for each in found.values() if each["outcome"] == "failed"]
    open_ = [line["begun"] for line in lines if "begun" in line and line["begun"] not in found]
    result: dict[str, Any] = {name: counts[name] for name in ("passed", "failed", "skipped")}
    result["tests"] = result.pop("failed") + result["passed"] + result["skipped"]
    result |= {"files": {name: dict(each) for name, each in files.items()}}
    result["skips"] = dict(
        Counter(each["text"] for each in found.values() if each["outcome"] == "skipped")
    )
    if bad or open_ or ended:
        result["failures shown"] = [f"{each['test']}: {each['text']}" for each in bad[:SHOWN]]
        result["without an outcome"] = open_
        result["failed"] = f"{len(bad)} of {result['tests']} tests. {ended}"
    return result
