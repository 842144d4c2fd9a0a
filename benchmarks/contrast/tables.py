"""The tables of the study."""

from benchmarks.contrast.runs import Runs


def tables(runs: Runs) -> str:
    return f"{len(runs.scores)} runs"
