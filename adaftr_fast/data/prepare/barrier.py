"""Steps that every shard of a preparation takes, and whichever shard comes last to a stage merges.

All parts see one folder. What a shard did in a stage is reported by ``STEP-NUMBER.json`` there, written when its files are
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
from adaftr_fast.data.prepare.work_folder import file_lock
from adaftr_fast.data.shard import Shard
from adaftr_fast.errors import DataError

POLL_SECONDS = 0.5
RESTART_SECONDS = 60.0  # in which parts that had failed before this one began to wait may begin again
MERGE_LOCK = "merging"  # the lock of who merges


@dataclass(frozen=True)
class Stage:
    """What a shard does, and what is made of all parts' results, in their order; results are plain values."""

    name: str
    run: Callable[[], Any]
    merge: Callable[[list[Any]], Any]


class Unfinished(NamedTuple):
    """Parts that have still to take a stage before any can take the next one."""

    stage: str
    missing: list[int]


def run_stages(
    stages: Sequence[Stage], work: Path, shard: Shard, check: Callable[[], None], wait: float = 0.0
) -> Unfinished | None:
    """Takes all stages that can be taken; None when all are done, by all parts.

    Args:
        check: raises an error if what the stages start from has changed, before an result_path is kept.
        wait: seconds to wait for other parts after each stage.

    Raises:
        DataError: a shard that is waited for has failed, with its reason.
        FileNotFoundError: ``work`` is gone, so another shard has come last to the last stage and removed it.
    """
    for stage in stages:
        results = [result_path(work, stage.name, each) for each in shard.all]
        own, merged = result_path(work, stage.name, shard), result_path(work, stage.name)
        if not own.exists():
            with _record_failure(work / f"{stage.name}-{shard.number}.failed", shard):
                _write_result(own, stage.run(), check)
        if missing := _wait_for_others(work, stage.name, results, wait):
            return Unfinished(stage.name, missing)
        with file_lock(work / MERGE_LOCK):
            if not merged.exists():
                _write_result(merged, stage.merge([read_result(each) for each in results]), check)
    return None


def result_path(work: Path, stage: str, shard: Shard | None = None) -> Path:
    """The file that tells what a shard did in a stage, or what was merged of it."""
    return work / (f"{stage}-{shard.number}.json" if shard else f"{stage}.json")


def read_result(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _write_result(path: Path, value: Any, check: Callable[[], None]) -> None:
    check()
    replace_file(path, dumps(value).encode())


def _wait_for_others(work: Path, stage: str, results: list[Path], wait: float) -> list[int]:
    """The numbers of the parts whose results are not there, now or ``wait`` seconds later."""
    start, earlier = time.monotonic(), _read_failures(work, stage)
    while missing := [number for number, path in enumerate(results, start=1) if not path.exists()]:
        if not work.exists():
            raise FileNotFoundError(work)
        waited = time.monotonic() - start
        if waited >= wait:
            break
        failures = _read_failures(work, stage)
        reported = failures if waited > RESTART_SECONDS else failures - earlier
        if reported:
            raise DataError("; ".join(sorted(reported)))
        time.sleep(POLL_SECONDS)
    return missing


@contextmanager
def _record_failure(failed: Path, shard: Shard) -> Iterator[None]:
    """Leaves why the block failed in ``failed``, with which the parts end that wait for this one."""
    failed.unlink(missing_ok=True)
    try:
        yield
    except Exception as error:
        with suppress(OSError):  # a full disk, perhaps the very error
            replace_file(failed, f"shard {shard} failed: {error}".encode())
        raise


def _read_failures(work: Path, stage: str) -> set[str]:
    """The reasons that parts left."""
    reasons = set()
    for path in work.glob(f"{stage}-*.failed"):
        with suppress(FileNotFoundError):  # begun again
            reasons.add(path.read_text(encoding="utf-8"))
    return reasons
