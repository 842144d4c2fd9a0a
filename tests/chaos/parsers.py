"""Damaged files of every kind that the package reads: each is read whole, or refused by an error in
one line.

A crash, a hang, too much memory, an error of another type, many warnings and lines without account
are failures.
"""

import base64
import faulthandler
import os
import resource
import shutil
import tempfile
import traceback
import warnings
from pathlib import Path

from adaftr_fast.cli.app import USER_ERRORS
from tests.chaos.targets import TARGETS

SECONDS = 10.0  # until a case hangs
MEMORY = 3 << 30  # bytes of address space for cases, beyond what is in use
WARNINGS = 20  # of one case
MEMORY_FOLDER = "/dev/shm"


def draw(random):
    """Damages a file of a random kind."""
    name = random.choices(list(TARGETS), [target.weight for target in TARGETS.values()])[0]
    seeds = TARGETS[name].seeds()
    return case_of(name, TARGETS[name].damage(random, random.choice(seeds), seeds))


def case_of(target, content):
    return {"target": target, "base64": base64.b64encode(content).decode()}


def simpler(case):
    """Yields the case with a half of its file removed, then with a quarter, and so on down to
    single bytes.
    """
    content = base64.b64decode(case["base64"])
    size = len(content)
    while size > 1:
        size = (size + 1) // 2
        for start in range(0, len(content), size):
            yield case_of(case["target"], content[:start] + content[start + size :])


def check(case):
    """Reads the file of a case in this process, which a hang ends.

    Raises:
        AssertionError: the case fails; the message has the target, the type of the error and the
            innermost function of the package.
    """
    _limit_memory()
    faulthandler.dump_traceback_later(SECONDS, exit=True)
    try:
        _check(case)
    finally:
        faulthandler.cancel_dump_traceback_later()


def _check(case):
    before = os.fstat(2).st_size
    folder = Path(tempfile.mkdtemp(dir=MEMORY_FOLDER if os.path.isdir(MEMORY_FOLDER) else None))
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            target = TARGETS[case["target"]]
            (folder / target.file).write_bytes(base64.b64decode(case["base64"]))
            target.read(folder / target.file)
    except USER_ERRORS:
        pass
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        frame = next(
            (each for each in reversed(frames) if "/adaftr_fast/" in each.filename), frames[-1]
        )
        place = f"{Path(frame.filename).name}: {frame.name}"
        detail = f": {error}" if isinstance(error, AssertionError) else ""
        raise AssertionError(
            f"{case['target']}: {type(error).__name__} in {place}{detail}"
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if len(caught) > WARNINGS or os.fstat(2).st_size - before > 20_000:
        raise AssertionError(f"{case['target']}: too many warnings")


def _limit_memory():
    """Limits the address space to what is in use, part of it kept by allocators and ended threads,
    and ``MEMORY``.
    """
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
