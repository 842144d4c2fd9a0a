"""The search of every kind of chaos: draws cases until a limit is reached, and writes a file per
failure.

A kind is a module ``tests/chaos/KIND.py`` with three functions:

- ``draw(random)`` makes a case, a dictionary of JSON values, from a ``random.Random``;
- ``check(case)`` raises an error if the case fails. It runs in another process, so a crash is a
  failure too;
- ``simpler(case)`` yields simpler cases to try instead of one that fails, the simplest first.
"""

import hashlib
import importlib
import json
import random
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from tests.chaos.worker import Worker

Case = dict[str, Any]
SHRINK_SECONDS = 60.0  # for one failure


@dataclass(frozen=True)
class Limit:
    """Ends a search after a time, a number of cases, or whichever comes first."""

    minutes: float | None
    count: int | None

    def numbers(self, kind: str) -> Iterator[int]:
        """Yields the numbers of the cases and shows a progress bar; ends at the limit
        or on Ctrl-C.
        """
        seconds = None if self.minutes is None else 60 * self.minutes
        start, number = time.monotonic(), 0
        form = None if self.count is not None else "{desc}: {n_fmt} cases, {rate_fmt}{postfix}"
        with tqdm(
            desc=kind, total=self.count, unit=" cases", bar_format=form, mininterval=1
        ) as bar:
            while self.count is None or number < self.count:
                left = float("inf") if seconds is None else start + seconds - time.monotonic()
                if left <= 0:
                    return
                if seconds is not None:
                    bar.set_postfix_str(f"{left:.0f} s left", refresh=False)
                yield number
                number += 1
                bar.update()


def search(kind: str, seed: int, limit: Limit, out: Path) -> Iterator[Path]:
    """Draws cases and runs ``check`` of the kind's module on each; yields a file per kind of error,
    minimised.
    """
    module = importlib.import_module(f"tests.chaos.{kind}")
    known: set[str] = set()
    with Worker(kind) as worker:
        try:
            for number in limit.numbers(kind):
                case = module.draw(random.Random(f"{seed}-{number}"))
                error = worker.error(case)
                if error is not None and summary(error) not in known:
                    known.add(summary(error))
                    case, error = shrink(case, error, module.simpler, worker.error)
                    known.add(summary(error))
                    tqdm.write(f"{kind}: {error.splitlines()[-1]}")
                    yield write_failure(out, kind, seed, case, error)
        finally:
            if worker.counted:
                print(f"{kind}: {worker.counted} in all")


def summary(error: str) -> str:
    """Returns an error without its numbers, by which equal failures are recognised."""
    return "".join(character for character in error.splitlines()[-1] if not character.isdigit())


def _kind(error: str) -> str:
    return error.splitlines()[-1].split(":")[0]


def shrink(
    case: Case,
    error: str,
    simpler: Callable[[Case], Iterable[Case]],
    check: Callable[[Case], str | None],
) -> tuple[Case, str]:
    """Replaces a case that fails by a simpler one that fails alike, as long as there is one;
    returns it and its error.

    Alike: by the same exception, or by the end of the process.
    """
    kind = _kind(error)
    end, improved = time.monotonic() + SHRINK_SECONDS, True
    while improved and time.monotonic() < end:
        improved = False
        for candidate in simpler(case):
            found = check(candidate)
            if found is not None and _kind(found) == kind:
                case, error, improved = candidate, found, True
                break
    return case, error


def write_failure(out: Path, kind: str, seed: int, case: Case, error: str) -> Path:
    """Writes a file that repeats a failure, for ``--replay`` or to be copied to
    ``tests/chaos/cases``.
    """
    name = hashlib.sha256(json.dumps(case, sort_keys=True).encode()).hexdigest()[:8]
    path = out / f"{kind}-{name}.json"
    command = f"python -m tests.chaos --replay {path}"
    out.mkdir(parents=True, exist_ok=True)
    content = {"kind": kind, "seed": seed, "command": command, "error": error, "case": case}
    path.write_text(json.dumps(content, indent=2) + "\n")
    return path
