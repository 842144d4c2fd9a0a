"""What a step takes on several ranks.

python -m benchmarks.scaling          one global batch on 1, 2, 4, 8 processes of a thread -> results/scaling-*.json
python -m benchmarks.scaling --plan   the tables of docs/scaling.md, for machines that are assumed, not measured
"""

import argparse
import json

from benchmarks import RESULTS
from benchmarks.measure import write
from benchmarks.scaling import plan


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=30)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4, 8], help="the numbers of processes")
    parser.add_argument("--plan", action="store_true")
    parser.add_argument("--dry", action="store_true", help="print the figures and write no file")
    arguments = parser.parse_args()
    if arguments.plan:
        paths = sorted(RESULTS.glob("scaling-*.json"))
        cases = [case for path in paths for case in json.loads(path.read_text(encoding="utf-8"))["cases"]]
        print(plan.steps(cases), plan.tables(), sep="\n\n")
        return
    from benchmarks.scaling.measuring import measured

    cases = []
    for size in arguments.ranks:
        cases.append(measured(size, arguments.turns))
        print(cases[-1], flush=True)
    if not arguments.dry:
        print(write("scaling", cases))


if __name__ == "__main__":
    main()
