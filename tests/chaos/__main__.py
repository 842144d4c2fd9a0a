"""``python -m tests.chaos``: searches for failures by chance. See CONTRIBUTING.md."""

import argparse
import json
import random
import sys
from pathlib import Path

from tests.chaos.search import search
from tests.chaos.worker import repeat

KINDS = ("kills", "ops", "parsers")


def main():
    """Returns 1 if something failed."""
    arguments = parse()
    if arguments.replay:
        passed = [replays(path) for path in arguments.replay]
        return int(not all(passed))
    seed = random.SystemRandom().randrange(2**32) if arguments.seed is None else arguments.seed
    print(f"seed {seed}", flush=True)
    failures = []
    try:
        for kind in arguments.kinds or KINDS:
            for path in search(kind, seed, arguments.minutes, arguments.count, arguments.out):
                failures.append(path)  # noqa: PERF402  # kept when Ctrl-C ends the search
    except KeyboardInterrupt:
        print("interrupted")
    for path in failures:
        print(path)
    print(f"{len(failures)} failures, seed {seed}")
    return int(bool(failures))


def parse():
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos", description="Searches for failures by chance."
    )
    parser.add_argument(
        "kinds", nargs="*", metavar="KIND", help=f"{', '.join(KINDS)} (default: all of them)"
    )
    parser.add_argument(
        "--seed", type=int, help="repeats the cases of an earlier search (default: random)"
    )
    parser.add_argument(
        "--minutes", type=float, help="time for each kind (default: 3, unless --count is given)"
    )
    parser.add_argument("--count", type=int, help="number of cases of each kind")
    parser.add_argument(
        "--out", type=Path, default=Path("build/chaos"), help="folder for a file per failure"
    )
    parser.add_argument(
        "--replay", type=Path, nargs="+", metavar="FILE", help="repeats the cases in such files"
    )
    arguments = parser.parse_args()
    for kind in arguments.kinds:
        if kind not in KINDS:
            parser.error(f"KIND: expected one of {', '.join(KINDS)}, got {kind!r}")
    if arguments.minutes is None and arguments.count is None:
        arguments.minutes = 3.0
    return arguments


def replays(path):
    """Repeats the case of a file, prints its error and returns whether it passes."""
    content = json.loads(path.read_text())
    error = repeat(content["kind"], content["case"])
    print(f"{path}: {error or 'passes'}")
    return error is None


if __name__ == "__main__":
    sys.exit(main())
