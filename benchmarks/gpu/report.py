"""Assembles the measurements of a folder into benchmarks/results/gpu-<card>.json and prints their
tables.

``benchmarks.gpu`` runs this module in a process of its own, which finds what the build stage
installed.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from benchmarks.gpu import STAGES
from benchmarks.gpu.cells import Journal, Setting


def report(setting: Setting) -> int:
    """Writes the results of every stage that has any; those of a dry run into their own folder.

    Needs no GPU: the measurements name the machine.
    """
    from benchmarks import RESULTS
    from benchmarks.gpu.render import TABLES
    from benchmarks.measure import write

    found = cases(setting.out)
    machine = machine_of(setting.out)
    if machine is None:
        print(f"benchmarks.gpu: {setting.out} has no measurements yet", file=sys.stderr)
        return 1
    when = {name: machine.pop(name) for name in ("date", "commit")}
    when["commit"] = setting.commit or when["commit"]
    path = write("gpu", found, machine, folder=setting.out if setting.dry else RESULTS, **when)
    for name, table in TABLES.items():
        if name.removeprefix("gpu_") in {case["stage"] for case in found}:
            print(f"\n{name}\n{table(found)}")
    bad = [case for case in found if "failed" in case or "wrong" in case]
    print(f"\n{path}: {len(found)} cells, {len(bad)} of them failed or wrong")
    return 0


def cases(folder: Path) -> list[dict[str, Any]]:
    """Returns every finished cell as one dictionary of its stage, key and figures, in the order of
    the stages.
    """
    return [
        {"stage": stage} | row["cell"] | row["result"]
        for stage in STAGES
        for row in Journal(folder, stage).cells().values()
    ]


def machine_of(folder: Path) -> dict[str, Any] | None:
    """Returns the facts about the machine that measured last.

    Raises:
        SystemExit: the stages were measured on different GPUs.
    """
    found = [facts for stage in STAGES if (facts := Journal(folder, stage).machine()) is not None]
    if len(cards := sorted({facts["gpu"] for facts in found})) > 1:
        sys.exit(
            f"benchmarks.gpu: {folder} holds figures of {' and '.join(cards)}; each needs a folder "
            "of its own"
        )
    return found[-1] if found else None


if __name__ == "__main__":
    sys.exit(report(Setting.from_json(sys.argv[1])))
