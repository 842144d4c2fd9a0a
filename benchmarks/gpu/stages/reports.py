"""A plugin of pytest that writes each outcome to a file at once, so that a run that is killed has
those before.

``ADAFTR_FAST_REPORTS`` names the file. A line is {"begun": test} or {"test": name, "outcome": ...,
"text": ...}. A process of pytest-xdist whose CUDA context has faulted leaves within the test that
broke it. Another takes its place, and the tests to come do not fail too.
"""

from __future__ import annotations

import json
import os

import pytest
import torch

from benchmarks.gpu.processes import die_with_parent

FILE = "ADAFTR_FAST_REPORTS"
TEXT = 1200  # characters of a failure that are kept
# it sends what it reports to the process that writes
IS_WORKER = "PYTEST_XDIST_WORKER" in os.environ

if IS_WORKER:
    die_with_parent()


def pytest_runtest_logstart(nodeid: str) -> None:
    _write({"begun": nodeid})


@pytest.hookimpl(trylast=True)  # a worker has sent the report by then
def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call" or not report.passed:
        is_skip = report.skipped and isinstance(report.longrepr, tuple)
        text = report.longrepr[2] if is_skip else report.longreprtext[-TEXT:]
        _write({"test": report.nodeid, "outcome": report.outcome, "text": text})
    if IS_WORKER and report.failed and _is_broken():
        os._exit(1)


def _write(line: dict[str, str]) -> None:
    if not IS_WORKER:
        with open(os.environ[FILE], "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def _is_broken() -> bool:
    if not torch.cuda.is_initialized():
        return False
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False
