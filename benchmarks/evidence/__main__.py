"""When does the contrast of AdaFTR help, and what should `train` do by default?

    python -m benchmarks.evidence                              trains what is missing, in the protocol's order
    python -m benchmarks.evidence compare --sets flights_2     a part, on some sets
    python -m benchmarks.tables                                the tables of docs/results.md

benchmarks/evidence/protocol.md is the protocol. Results go to benchmarks/results/evidence.json after each run; a
command that was interrupted goes on where it ended. A set whose files or package are missing is left out.
"""

from __future__ import annotations

import sys
from pathlib import Path

from adaftr_fast.errors import DataError
from benchmarks import RESULTS
from benchmarks.evidence.rows import ORDER, PARTS
from benchmarks.evidence.runs import NAMES, train
from benchmarks.evidence.sets import open_set
from benchmarks.measure import options
from benchmarks.store import Store


def main() -> None:
    arguments = options(
        __doc__,
        {"dest": "part", "nargs": "?", "choices": list(PARTS), "help": "the part (default: all)"},
        sets=([], "the sets (default: all)"),
        jobs=(1, "the number of parallel runs, each on one thread"),
        data=(Path("data/evidence"), "the folder of the prepared folders"),
        files=(Path("data"), "the folder of the files of census"),
        out=(Path("runs/evidence"), "the folder of the run folders"),
        results=(RESULTS / "evidence.json", "the file of results"),
    )
    store = Store(arguments.results, NAMES)
    for part, name in ORDER:
        if arguments.part in (None, part) and (not arguments.sets or name in arguments.sets):
            try:
                data = open_set(name, arguments.data, arguments.files)
            except (OSError, DataError, ModuleNotFoundError) as error:
                print(f"{name} is left out: {error}", file=sys.stderr)
                continue
            train(name, part, data, arguments.out, store, arguments.jobs)


if __name__ == "__main__":
    main()
