"""Measures candidates in alternation, with medians, and describes the machine."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from adaftr_fast._extension import build_info


def machine() -> dict[str, Any]:
    """Describes the machine."""
    model = platform.processor()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        facts = dict(line.split(":", 1) for line in lines if line.count(":") == 1)
        named = {key.strip(): value.strip() for key, value in facts.items()}
        model = (
            f"{named.get('model name')} (family {named.get('cpu family')}, model "
            f"{named.get('model')})"
        )
    return {"cpu": model, "cores": os.cpu_count(), "threads": torch.get_num_threads()} | {
        key: build_info()[key] for key in ("torch", "in use")
    }


def side_by_side(
    candidates: dict[str, Callable[[], Any]], seconds: float = 2.0, least: int = 3
) -> dict[str, float]:
    """Measures the candidates in alternation, so that a drift of the machine affects all of them
    equally.

    Args:
        candidates: the functions by name.
        seconds: the time to spend on each candidate, in seconds.
        least: the minimum number of calls of each candidate.

    Returns:
        The median time of each candidate, in milliseconds.
    """
    for run in candidates.values():
        run()  # compiles and warms up
    times: dict[str, list[float]] = {name: [] for name in candidates}
    spent = dict.fromkeys(candidates, 0.0)
    while any(len(times[name]) < least or spent[name] < seconds for name in candidates):
        for name, run in candidates.items():
            if len(times[name]) >= least and spent[name] >= seconds:
                continue
            start = time.perf_counter()
            run()
            spent[name] += time.perf_counter() - start
            times[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in times.items()}
