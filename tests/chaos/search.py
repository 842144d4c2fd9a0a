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
import itertools
import json
import math
import random
import time

from tqdm import tqdm

from adaftr_fast.display.progress import progress_bar
from tests.chaos.worker import Worker

SHRINK_SECONDS = 60.0  # for one failure


def numbers(kind, minutes, count):
    """Yields the numbers of the cases and shows their progress; ends after so many minutes or
    cases, whichever comes first, if they are not None.
    """
    end = math.inf if minutes is None else time.monotonic() + 60 * minutes
    form = None if count is not None else "{desc}: {n_fmt} cases, {rate_fmt}{postfix}"
    with progress_bar(desc=kind, total=count, unit=" cases", bar_format=form, mininterval=1) as bar:
        for number in itertools.count() if count is None else range(count):
            left = end - time.monotonic()
            if left <= 0:
                return
            if left < math.inf:
                bar.set_postfix_str(f"{left:.0f} s left", refresh=False)
            yield number
            bar.update()


def search(kind, seed, minutes, count, out):
    """Draws cases and runs ``check`` of the kind's module on each; yields a file per kind of error,
    minimised.
    """
    module = importlib.import_module(f"tests.chaos.{kind}")
    known = set()
    with Worker(kind) as worker:
        try:
            for number in numbers(kind, minutes, count):
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


def summary(error):
    """Returns an error without its numbers, by which equal failures are recognised."""
    return "".join(character for character in error.splitlines()[-1] if not character.isdigit())


def _kind(error):
    return error.splitlines()[-1].split(":")[0]


def shrink(
    case,
    error,
    simpler,
    check,
):
    """Replaces a case that fails by a simpler one that fails alike, as long as there is one;
    returns it and its error.

    Alike: by the same exception, or by the end of the process.
    """
    kind = _kind(error)
    end = time.monotonic() + SHRINK_SECONDS
    improved = True
    while improved and time.monotonic() < end:
        improved = False
        for candidate in simpler(case):
            found = check(candidate)
            if found is not None and _kind(found) == kind:
                case = candidate
                error = found
                improved = True
                break
    return case, error


def write_failure(out, kind, seed, case, error):
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
