"""Assembles the measurements of a folder into benchmarks/results/gpu-<card>.json and prints their
tables.

``benchmarks.gpu`` runs this module in a process of its own, which finds what the build stage
installed.
"""

from __future__ import annotations

import pickle
import sys

from benchmarks import RESULTS
from benchmarks.gpu import STAGES
from benchmarks.gpu.cells import Journal, Setting
from benchmarks.gpu.render import TABLES
from benchmarks.measure import write


def report(setting: Setting) -> int:
    """Writes the results of every stage that has any; those of a dry run into their own folder.

    Needs no GPU: the measurements name the machine.
    """
    journal = Journal(setting.out)
    machine = journal.machine()
    if machine is None:
        print(f"benchmarks.gpu: {setting.out} has no measurements yet", file=sys.stderr)
        return 1
    cases = [
        {"stage": stage} | row["cell"] | row["result"]
        for stage in STAGES
        for row in journal.cells(stage).values()
    ]
    date = machine.pop("date")
    commit = machine.pop("commit")
    folder = setting.out if setting.dry else RESULTS
    path = write("gpu", cases, machine, folder=folder, date=date, commit=setting.commit or commit)
    for name, table in TABLES.items():
        if name.removeprefix("gpu_") in {case["stage"] for case in cases}:
            print(f"\n{name}\n{table(cases)}")
    bad = sum("failed" in case or "wrong" in case for case in cases)
    print(f"\n{path}: {len(cases)} cells, {bad} of them failed or wrong")
    return 0


if __name__ == "__main__":
    sys.exit(report(pickle.load(sys.stdin.buffer)))
