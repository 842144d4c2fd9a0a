"""Where the figures of a benchmark go. How they are measured: ``adaftr_fast.experiments.measure``."""

import json
from pathlib import Path
from typing import Any

from adaftr_fast.experiments.measure import machine, side_by_side

__all__ = ["RESULTS", "machine", "side_by_side", "write"]

RESULTS = Path(__file__).parent / "results"


def write(name: str, cases: list[dict[str, Any]]) -> Path:
    """Writes results/<name>-<instruction set>.json, one for each kind of machine, which it names beside the cases."""
    RESULTS.mkdir(exist_ok=True)
    about = machine()
    path = RESULTS / f"{name}-{about['in use']}.json"
    draft = path.with_suffix(".tmp")
    draft.write_text(json.dumps({"machine": about, "cases": cases}, indent=1) + "\n")
    draft.replace(path)
    return path
