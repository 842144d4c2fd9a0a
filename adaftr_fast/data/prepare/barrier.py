"""Steps that every part of a preparation takes, and whichever part comes last to a step merges.

All parts see one folder. What a part did in a step is told by ``STEP-NUMBER.json`` there, written when its files are
whole, and what was merged by ``STEP.json``. So nothing that was done is done again, and who was killed can begin again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from adaftr_fast._files import replace_file
from adaftr_fast._json import dumps
from adaftr_fast.data.prepare.work_folder import alone
from adaftr_fast.data.shard import Part
from adaftr_fast.errors import DataError

POLL_SECONDS = 0.5
RESTART_SECONDS = 60.0  # in which parts that had failed before this one began to wait may begin again
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
        DataError: a part that is waited for has failed, with its reason.
        FileNotFoundError: ``work`` is gone, so another part has come last to the last step and removed it.
    """
    for step in steps:
        outcomes = [outcome(work, step.name, each) for each in part.all]
        own, merged = outcome(work, step.name, part), outcome(work, step.name)
        if not own.exists():
            with _reason_left(work / f"{step.name}-{part.number}.failed", part):
                _keep(own, step.do(), check)
        if missing := _missing(work, step.name, outcomes, wait):
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


def _missing(work: Path, step: str, outcomes: list[Path], wait: float) -> list[int]:
    """The numbers of the parts whose outcomes are not there, now or ``wait`` seconds later."""
    begin, before = time.monotonic(), _failures(work, step)
    while missing := [number for number, path in enumerate(outcomes, start=1) if not path.exists()]:
        if not work.exists():
            raise FileNotFoundError(work)
        waited = time.monotonic() - begin
        if waited >= wait:
            break
        failures = _failures(work, step)
        told = failures if waited > RESTART_SECONDS else failures - before
        if told:
            raise DataError("; ".join(sorted(told)))
        time.sleep(POLL_SECONDS)
    return missing


@contextmanager
def _reason_left(failed: Path, part: Part) -> Iterator[None]:
    """Leaves why the block failed in ``failed``, with which the parts end that wait for this one."""
    failed.unlink(missing_ok=True)
    try:
        yield
    except Exception as error:
        with suppress(OSError):  # a full disk, perhaps the very error
            replace_file(failed, f"part {part} failed: {error}".encode())
        raise


def _failures(work: Path, step: str) -> set[str]:
    """The reasons that parts left."""
    reasons = set()
    for path in work.glob(f"{step}-*.failed"):
        with suppress(FileNotFoundError):  # begun again
            reasons.add(path.read_text(encoding="utf-8"))
    return reasons
