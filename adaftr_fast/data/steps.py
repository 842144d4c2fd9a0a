"""Steps that every part of a preparation takes, and whichever part comes last to a step merges.

All parts see one folder. What a part did in a step is told by ``STEP-NUMBER.json`` there, written when its files are
whole, and what was merged by ``STEP.json``. So nothing that was done is done again, and who was killed can begin again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from adaftr_fast._files import replace_file
from adaftr_fast._json import dumps
from adaftr_fast.data.part import Part
from adaftr_fast.data.workplace import alone

POLL_SECONDS = 0.5
MERGING = "merging"  # the lock of who merges


@dataclass(frozen=True)
class Step:
    """What a part does, and what is made of all parts' outcomes, in their order; outcomes are plain values."""

    name: str
    do: Callable[[], Any]
    merge: Callable[[list[Any]], Any]


class Unfinished(NamedTuple):
    """Parts that have still to take a step before any can take the next one."""

    step: str
    missing: list[int]


def run_steps(
    steps: Sequence[Step], work: Path, part: Part, check: Callable[[], None], wait: float = 0.0
) -> Unfinished | None:
    """Takes all steps that can be taken; None when all are done, by all parts.

    Args:
        check: raises an error if what the steps start from has changed, before an outcome is kept.
        wait: seconds to wait for other parts after each step.

    Raises:
        FileNotFoundError: ``work`` is gone, so another part has come last to the last step and removed it.
    """
    for step in steps:
        outcomes = [outcome(work, step.name, each) for each in part.all]
        own, merged = outcome(work, step.name, part), outcome(work, step.name)
        if not own.exists():
            _keep(own, step.do(), check)
        if missing := _missing(work, outcomes, wait):
            return Unfinished(step.name, missing)
        with alone(work / MERGING):
            if not merged.exists():
                _keep(merged, step.merge([read_outcome(each) for each in outcomes]), check)
    return None


def outcome(work: Path, step: str, part: Part | None = None) -> Path:
    """The file that tells what a part did in a step, or what was merged of it."""
    return work / (f"{step}-{part.number}.json" if part else f"{step}.json")


def read_outcome(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _keep(path: Path, value: Any, check: Callable[[], None]) -> None:
    check()
    replace_file(path, dumps(value).encode())


def _missing(work: Path, outcomes: list[Path], wait: float) -> list[int]:
    """The numbers of the parts whose outcomes are not there, now or ``wait`` seconds later."""
    end = time.monotonic() + wait
    while missing := [number for number, path in enumerate(outcomes, start=1) if not path.exists()]:
        if not work.exists():
            raise FileNotFoundError(work)
        if time.monotonic() > end:
            break
        time.sleep(POLL_SECONDS)
    return missing
