"""Builds, checks, times and profiles the package on a GPU, without a network.

    python -m benchmarks.gpu --collect wheels                    on a machine with a network
    python -m benchmarks.gpu --out DIR --wheels wheels --total 560   on the GPU machine, twice
    python -m benchmarks.gpu --out DIR --only loss --deadline 600
    python -m benchmarks.gpu --out DIR --report                  anywhere: benchmarks/results/gpu-<card>.json

Every cell is on disk before the next begins. A run that was killed goes on where it was, and
measures at most the cell again that it was at.
"""

from __future__ import annotations

import argparse
import math
import pickle
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.gpu import ROOT, STAGES
from benchmarks.gpu.cells import Setting
from benchmarks.gpu.processes import environment

REPORT = 20  # seconds that --total keeps for the report


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument(
        "--out", type=Path, help="folder of the measurements: one file, and three traces"
    )
    made.add_argument(
        "--only",
        nargs="+",
        choices=STAGES,
        default=list(STAGES),
        metavar="STAGE",
        help=", ".join(STAGES),
    )
    made.add_argument(
        "--deadline",
        type=float,
        help="seconds for each stage; by default its own, at most 5 minutes",
    )
    made.add_argument(
        "--total",
        type=float,
        help="seconds for the whole command, the report included; cells are cut short",
    )
    made.add_argument(
        "--commit",
        metavar="TEXT",
        help="recorded as the measured commit, where there is no clone to ask",
    )
    made.add_argument("--wheels", type=Path, help="folder of --collect, for the build stage")
    made.add_argument(
        "--report", action="store_true", help="measure nothing, assemble what is there"
    )
    made.add_argument(
        "--dry-run", action="store_true", help="tiny sizes on the CPU, to try the program itself"
    )
    made.add_argument(
        "--collect", type=Path, metavar="DIR", help="download wheels for the GPU machine into DIR"
    )
    made.add_argument(
        "--without",
        nargs="+",
        default=[],
        metavar="NAME",
        help="packages that --collect leaves out",
    )
    return made


def main() -> int:
    arguments = parser().parse_args()
    if arguments.collect is not None:
        from benchmarks.gpu.collect import collect

        return collect(arguments.collect, arguments.without)
    if arguments.out is None:
        parser().error("--out DIR is required, except with --collect")
    if arguments.total is not None and arguments.total <= REPORT:
        parser().error(
            f"--total: expected more than {REPORT} s, which the report may take, got "
            f"{arguments.total:g}"
        )
    until = math.inf if arguments.total is None else time.time() + arguments.total - REPORT
    wheels = None if arguments.wheels is None else arguments.wheels.resolve()
    setting = Setting(arguments.out.resolve(), wheels, arguments.dry_run, arguments.commit, until)
    status = 0
    if not arguments.report:
        from benchmarks.gpu.supervise import run

        status = run(
            [stage for stage in STAGES if stage in arguments.only], setting, arguments.deadline
        )
    command = [sys.executable, "-m", "benchmarks.gpu.report"]
    said = pickle.dumps(setting)
    return subprocess.run(command, cwd=ROOT, env=environment(), input=said).returncode or status


if __name__ == "__main__":
    sys.exit(main())
