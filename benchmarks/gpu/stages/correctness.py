"""The tests on the GPU, a file a cell, and checks that need a GPU and stand in no test."""

from __future__ import annotations

import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.gpu import ROOT
from benchmarks.gpu.cells import Cell, Setting
from benchmarks.gpu.processes import run
from benchmarks.gpu.stages import checks

LIMIT = 200  # seconds of a cell
FOLDERS = ("tests/kernels", "tests/cuda", "tests/ops/infonce", "tests/training/device")
ON_A_CARD = ("test_cuda.py", "test_on_a_card.py")
DRY = "tests/test_json.py"
SHOWN = 5  # failures of a file that are kept


def cells(setting: Setting) -> Iterator[Cell]:
    """Yields the checks, then the test files that are there, those that run on the GPU before the others."""
    for name, check in checks.CHECKS.items():
        yield Cell({"check": name}, lambda check=check: check(setting.device))
    for path in [DRY] if setting.dry else files():
        yield Cell({"file": path}, lambda path=path: pytest(path), seconds=5)


def files() -> list[str]:
    found = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("test_*.py"))]
    return sorted((str(path.relative_to(ROOT)) for path in found), key=lambda path: not path.endswith(ON_A_CARD))


def pytest(path: str) -> dict[str, Any]:
    """Returns the numbers of tests of a file by outcome and the first failures; "failed" where any failed."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "--tb=short",
            "-p",
            "no:cacheprovider",
            f"--junit-xml={report}",
        ]
        done = run([*command, path], LIMIT - 10)
        if not report.exists():
            return {"failed": done.stdout[-2000:]}
        suite = next(ElementTree.parse(report).getroot().iter("testsuite"))
    counts = {name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")}
    found: dict[str, Any] = counts | {"skips": skips(suite)}
    bad = [
        case for case in suite.iter("testcase") if case.find("failure") is not None or case.find("error") is not None
    ]
    if bad or done.returncode not in (0, 5):  # 5: the file has no tests
        found["failures shown"] = [described(case) for case in bad[:SHOWN]]
        found["failed"] = f"{len(bad)} of {counts['tests']} tests, pytest ended with status {done.returncode}"
    return found


def skips(suite: ElementTree.Element) -> dict[str, int]:
    """Returns how many tests were skipped for each reason."""
    found: dict[str, int] = {}
    for skipped in suite.iter("skipped"):
        reason = skipped.get("message", "")
        found[reason] = found.get(reason, 0) + 1
    return found


def described(case: ElementTree.Element) -> str:
    node = case.find("failure") if case.find("failure") is not None else case.find("error")
    assert node is not None
    return f"{case.get('name')}: {(node.text or node.get('message') or '')[-1200:]}"
