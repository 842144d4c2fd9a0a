"""The tests on the GPU, in groups, and checks that need a GPU and stand in no test.

A group runs on all cores, so that what it compiles takes seconds, and leaves it in the cache for
what is timed later.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from benchmarks.gpu import ROOT
from benchmarks.gpu.cells import Cell, Row, Setting
from benchmarks.gpu.processes import run
from benchmarks.gpu.stages import checks
from benchmarks.gpu.stages.reports import FILE, TEXT

LIMIT = 120  # seconds of a cell
CHECK_LIMIT = 30  # of a check
TEST_LIMIT = 60  # of a test
FOLDERS = ("tests/kernels", "tests/cuda", "tests/ops/infonce", "tests/training/device")
# What a fault would cost most comes first. The last test of a group may leave its process unusable.
GROUPS = {
    "tables and trainer": [
        "tests/cuda/test_on_a_card.py",
        "tests/training/device/test_on_a_card.py",
    ],
    "loss": [
        f"tests/kernels/infonce/{name}.py"
        for name in ("test_cuda", "test_losses", "test_precision", "gluon/test_gluon")
    ],
    "dry run": ["tests/files/test_json.py"],
}
# each core has a process
ONE_THREAD = {"OMP_NUM_THREADS": "1", "TORCHINDUCTOR_COMPILE_THREADS": "1"}
SHOWN = 5  # failures of a group that are kept


def cells(setting: Setting) -> Iterator[Cell]:
    """Yields tables and trainer, the loss, the checks, and the tests that need no GPU."""
    if setting.dry:
        yield from _checks()
        yield Cell({"tests": "dry run"}, pytest)
        return
    yield Cell({"tests": "tables and trainer"}, pytest, seconds=45)
    yield Cell({"tests": "loss"}, pytest, seconds=60)
    yield from _checks()
    yield Cell({"tests": "without a GPU"}, pytest, seconds=90, planned=False)


def _checks() -> Iterator[Cell]:
    for name in checks.CHECKS:
        captures = "graph" in name
        yield Cell({"check": name}, check, seconds=2, captures=captures, limit=CHECK_LIMIT)


def check(key: Row, setting: Setting) -> Row:
    return checks.CHECKS[key["check"]](setting.device)


def files_of(group: str) -> list[str]:
    """Returns the test files of a group; "without a GPU" has those of ``FOLDERS`` that no other
    has.
    """
    known = {path for paths in GROUPS.values() for path in paths}
    found = [
        str(path.relative_to(ROOT))
        for folder in FOLDERS
        for path in sorted((ROOT / folder).rglob("test_*.py"))
    ]
    return GROUPS.get(group) or [path for path in found if path not in known]


def pytest(key: Row, setting: Setting) -> Row:
    """Runs the test files of a group on all cores, until the time of the cell is over at most.

    Returns:
        The numbers of tests by outcome, of each file too, why tests were skipped, and the first
        failures; "failed" where a test failed or has no outcome, with "timed out" where time was
        over.
    """
    seconds = min(LIMIT, setting.until - time.time()) - 10
    with tempfile.TemporaryDirectory() as folder:
        files = files_of(key["tests"])
        reports = Path(folder) / "reports.jsonl"
        command = [sys.executable, "-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider"]
        command += ["-p", "benchmarks.gpu.stages.reports"]
        if not setting.dry:
            command += ["-n", str(os.cpu_count())]
        # others compile for minutes
        if key["tests"] in ("tables and trainer", "loss") and find_spec("pytest_timeout"):
            command += ["--timeout", str(TEST_LIMIT), "--timeout-method", "thread"]
        try:
            done = run([*command, *files], seconds, **{FILE: str(reports)}, **ONE_THREAD)
        except TimeoutError as error:
            return outcomes(reports, str(error)) | {"timed out": True}
        ended = f"pytest ended with status {done.returncode}: {done.stdout[-TEXT:]}"
        return outcomes(reports, ended if done.returncode else "")


def outcomes(reports: Path, ended: str) -> Row:
    """Returns what ``pytest`` does from the lines of ``reports``; ``ended`` says how the run
    failed, if it did.
    """
    lines = map(json.loads, reports.read_text().splitlines() if reports.exists() else [])
    begun = set()
    found = {}
    for line in lines:
        if "begun" in line:
            begun.add(line["begun"])
        elif line["test"] not in found or found[line["test"]]["outcome"] != "failed":
            found[line["test"]] = line
    counts = Counter()
    files = {}
    skips = Counter()
    for name, each in found.items():
        counts[each["outcome"]] += 1
        files.setdefault(name.partition("::")[0], Counter())[each["outcome"]] += 1
        if each["outcome"] == "skipped":
            skips[each["text"]] += 1
    result = {"tests": len(found), "passed": counts["passed"], "skipped": counts["skipped"]}
    result |= {"files": {name: dict(each) for name, each in files.items()}, "skips": dict(skips)}
    bad = [f"{name}: {each['text']}" for name, each in found.items() if each["outcome"] == "failed"]
    unfinished = sorted(begun - set(found))
    if bad or unfinished or ended:
        result |= {"failures shown": bad[:SHOWN], "without an outcome": unfinished}
        result["failed"] = f"{len(bad)} of {len(found)} tests. {ended}"
    return result
