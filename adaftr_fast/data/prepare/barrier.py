"""Runs the stages of ``prepare``, with a barrier after each: the last shard to finish a stage merges the results.

All shards share one folder. A shard writes the result of a stage to ``STAGE-NUMBER.json`` once its files are complete,
and the merged result is in ``STAGE.json``. No finished work is repeated, and a killed process can be started again.
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
from adaftr_fast._publish import sync_tree
from adaftr_fast.data.prepare.work_folder import file_lock
from adaftr_fast.data.shard import Shard
from adaftr_fast.errors import DataError

POLL_SECONDS = 0.5
RESTART_SECONDS = 60.0  # grace period in which a shard that failed earlier may restart
MERGE_LOCK = "merging"  # name of the lock for merging


@dataclass(frozen=True)
class Stage:
    """A stage of ``prepare``. Results are plain values that JSON can represent.

    Attributes:
        run: runs one shard and returns its result.
        merge: merges the results of all shards, in shard order.
    """

    name: str
    run: Callable[[], Any]
    merge: Callable[[list[Any]], Any]


class Unfinished(NamedTuple):
    """A stage that other shards have yet to run before any shard can run the next one.

    Attributes:
        stage: name of the stage.
        missing: numbers of these shards.
    """

    stage: str
    missing: list[int]


def run_stages(
    stages: Sequence[Stage], work: Path, shard: Shard, check: Callable[[], None], wait: float = 0.0
) -> Unfinished | None:
    """Runs every stage that can be run. Returns None once all shards have run all stages.

    Args:
        check: raises an error if the inputs of the stages have changed. Called before a result is written.
        wait: seconds to wait for other shards after each stage.

    Raises:
        DataError: another shard failed while this one waited for it; the error includes its reason.
        FileNotFoundError: ``work`` is gone, because another shard finished the last stage and removed it.
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
    """Returns the file with the result of a stage, of one shard or merged."""
    return work / (f"{stage}-{shard.number}.json" if shard else f"{stage}.json")


def read_result(path: Path) -> Any:
    """Reads the result of a stage."""
    return json.loads(path.read_text(encoding="utf-8"))


def _write_result(path: Path, value: Any, check: Callable[[], None]) -> None:
    check()
    sync_tree(path.parent)  # the files that the result stands for
    replace_file(path, dumps(value).encode())


def _wait_for_others(work: Path, stage: str, results: list[Path], wait: float) -> list[int]:
    """Returns the numbers of the shards without a result, after waiting up to ``wait`` seconds for them."""
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
    """Writes the error of the block to ``failed``, which shards that wait for this one read."""
    failed.unlink(missing_ok=True)
    try:
        yield
    except Exception as error:
        with suppress(OSError):  # the disk may be full, which may be the error itself
            replace_file(failed, f"shard {shard} failed: {error}".encode())
        raise


def _read_failures(work: Path, stage: str) -> set[str]:
    """Returns the errors that shards have written."""
    reasons = set()
    for path in work.glob(f"{stage}-*.failed"):
        with suppress(FileNotFoundError):  # the shard has been restarted
            reasons.add(path.read_text(encoding="utf-8"))
    return reasons
