"""Times the package on a GPU beside others.

    python -m benchmarks.gpu --out DIR --only loss --total 560   on the GPU machine; repeat it until nothing is left
    python -m benchmarks.gpu --out DIR --report                  anywhere: benchmarks/results/gpu-<card>.json

Every cell is on disk before the next begins. A run that was killed goes on where it was, and measures at most the cell
again that it was at.
"""

import argparse
import math
import sys
import time
from pathlib import Path

from benchmarks.gpu import STAGES
from benchmarks.gpu.cells import Setting
from benchmarks.gpu.report import report
from benchmarks.gpu.run import locked, run


def parsed() -> argparse.Namespace:
    made = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--out", type=Path, required=True, help="folder of the measurements, a file for each stage")
    made.add_argument("--only", nargs="+", choices=STAGES, default=STAGES, metavar="STAGE", help=", ".join(STAGES))
    made.add_argument("--total", type=float, default=math.inf, help="seconds of all stages; cells are cut short")
    made.add_argument("--commit", metavar="TEXT", help="recorded as the measured commit, where there is no clone")
    made.add_argument("--report", action="store_true", help="measure nothing, assemble what is there")
    made.add_argument("--dry-run", action="store_true", help="tiny sizes on the CPU, to try the program itself")
    return made.parse_args()


def main() -> int:
    arguments = parsed()
    setting = Setting(arguments.out.resolve(), arguments.dry_run, arguments.commit, time.time() + arguments.total)
    if not arguments.report:
        with locked(setting.out):
            for stage in arguments.only:
                run(f"benchmarks.gpu.stages.{stage}", setting)
    return report(setting)


if __name__ == "__main__":
    sys.exit(main())
