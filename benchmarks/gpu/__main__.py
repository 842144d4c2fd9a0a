"""Builds, checks, times and profiles the package on a GPU, without a network.

    python -m benchmarks.gpu --collect wheels                    on a machine with a network
    python -m benchmarks.gpu --out DIR --wheels wheels           on the GPU machine; repeat it until nothing is left
    python -m benchmarks.gpu --out DIR --only loss --deadline 600
    python -m benchmarks.gpu --out DIR --report                  anywhere: benchmarks/results/gpu-<card>.json

Every cell is on disk before the next begins. A run that was killed goes on where it was, and measures at most the cell
again that it was at.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from benchmarks.gpu import ROOT, STAGES
from benchmarks.gpu.cells import Setting
from benchmarks.gpu.processes import environment


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--out", type=Path, help="folder of the measurements, a file for each stage")
    made.add_argument(
        "--only", nargs="+", choices=STAGES, default=list(STAGES), metavar="STAGE", help=", ".join(STAGES)
    )
    made.add_argument("--deadline", type=float, help="seconds for each stage; by default its own, under 8 minutes")
    made.add_argument("--wheels", type=Path, help="folder of --collect, for the build stage")
    made.add_argument("--report", action="store_true", help="measure nothing, assemble what is there")
    made.add_argument("--dry-run", action="store_true", help="tiny sizes on the CPU, to try the program itself")
    made.add_argument("--collect", type=Path, metavar="DIR", help="download wheels for the GPU machine into DIR")
    made.add_argument("--without", nargs="+", default=[], metavar="NAME", help="packages that --collect leaves out")
    return made


def main() -> int:
    arguments = parser().parse_args()
    if arguments.collect is not None:
        from benchmarks.gpu.collect import collect

        return collect(arguments.collect, arguments.without)
    if arguments.out is None:
        parser().error("--out DIR is required, except with --collect")
    wheels = None if arguments.wheels is None else arguments.wheels.resolve()
    setting = Setting(arguments.out.resolve(), wheels, arguments.dry_run)
    if arguments.report:
        return report(setting)
    from benchmarks.gpu.supervise import run

    status = run([stage for stage in STAGES if stage in arguments.only], setting, arguments.deadline)
    return report(setting) or status


def report(setting: Setting) -> int:
    """Assembles the results in a process of its own, which finds what the build stage installed."""
    code = "import sys; from benchmarks.gpu.report import main; sys.exit(main())"
    command = [sys.executable, "-c", code, str(setting.out), *(["--dry"] if setting.dry else [])]
    return subprocess.run(command, cwd=ROOT, env=environment()).returncode


if __name__ == "__main__":
    sys.exit(main())
