"""The time of a training step over that of another commit's, B = 1,024, both in turns on this
machine:

    git worktree add ../before COMMIT
    (cd ../before && python setup.py build_ext --inplace)
    python -m benchmarks.training.bench_against ../before --fields 121 --ids 6719

The two train in processes of their own, of which one waits while the other trains an epoch of each
contestant, and are started anew several times, as one process is up to a tenth slower than another
for as long as it lives. Batches come from parquet, and the first of an epoch wait for the loader.
Writes results/against_fields<fields>-*.json.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.measure import options, write
from benchmarks.prepared import FIELDS
from benchmarks.training import epochs

HERE = Path(__file__).parents[2]
REDUCED = ("AdaFTR, float32 before and bfloat16 now", "AdaFTR", "AdaFTR, bfloat16")


def start(tree: Path, folder: Path, *sizes: int) -> subprocess.Popen[str]:
    """Starts the contestants of a checkout whose extension is built; the sizes are those of
    ``epochs``.
    """
    command = [sys.executable, epochs.__file__, str(folder), *map(str, sizes)]
    environment = os.environ | {"PYTHONPATH": str(tree)}
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )
    found = Path(answer(process))
    if found.parents[1] != tree:
        process.kill()
        raise SystemExit(f"{tree}: another adaftr_fast was imported, {found}")
    return process


def epoch(process: subprocess.Popen[str]) -> dict[str, float]:
    """Milliseconds of a step of each contestant."""
    print(file=process.stdin, flush=True)
    return json.loads(answer(process))


def answer(process: subprocess.Popen[str]) -> str:
    if not (line := process.stdout.readline()):
        raise SystemExit(f"{process.args}: ended early")
    return line.rstrip("\n")


def train_in_turns(
    before: Path, folder: Path, turns: int, *sizes: int
) -> list[dict[str, dict[str, float]]]:
    """Returns the milliseconds of a step of "before" and "now" for each turn, in two
    new processes.
    """
    trees = {"before": before, "now": HERE}
    processes = {name: start(tree, folder / name, *sizes) for name, tree in trees.items()}
    try:
        for process in processes.values():
            epoch(process)  # warms
        times = []
        for turn in range(turns):
            order = [*processes][:: 1 if turn % 2 == 0 else -1]  # who goes after whom changes
            times.append({name: epoch(processes[name]) for name in order})
        return times
    finally:
        for process in processes.values():
            process.kill()


def compare(
    before: Path, fields: int, ids: int, steps: int, starts: int, turns: int, threads: int
) -> dict[str, object]:
    sizes = (threads, steps * epochs.BATCH, ids, fields)
    times = []
    for _ in range(starts):
        with tempfile.TemporaryDirectory() as folder:
            times += train_in_turns(before, Path(folder), turns, *sizes)
    describe = ["git", "describe", "--always", "--dirty"]
    of = subprocess.run(describe, cwd=before, capture_output=True, text=True, check=True)
    steps = {}
    for name, old, new in (*((each, each, each) for each in epochs.CONTESTANTS), REDUCED):
        pairs = [(turn["before"][old], turn["now"][new]) for turn in times]
        before_ms, now_ms = map(statistics.median, zip(*pairs))
        ratio = statistics.median(after / earlier for earlier, after in pairs)
        steps[name] = {
            "before, ms": round(before_ms, 2),
            "now, ms": round(now_ms, 2),
            "ratio": round(ratio, 3),
        }
    return {
        "fields": fields,
        "ids a field": ids,
        "before": of.stdout.strip(),
        "turns": len(times),
        "steps": steps,
    }


def main() -> None:
    given = options(
        __doc__,
        {"dest": "before", "type": Path, "help": "a checkout of the other commit, built"},
        fields=FIELDS,
        ids=(10_000, "of every field"),
        steps=(200, "of an epoch"),
        starts=(5, "of both processes: one is slower than another"),
        turns=(3, "of each start"),
        threads=2,
    )
    if not list(given.before.glob("adaftr_fast/_C*")):
        sys.exit(f"{given.before}: expected a checkout with a built extension, see above")
    case = compare(**vars(given) | {"before": given.before.resolve()})
    print(json.dumps(case, indent=1))
    print(write(f"against_fields{given.fields}", [case]))


if __name__ == "__main__":
    main()
