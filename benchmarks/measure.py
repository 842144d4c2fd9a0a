"""Reads the options of a benchmark, measures candidates in turns or a step by itself, describes the
machine, and writes the figures.
"""

import argparse
import datetime
import json
import multiprocessing
import os
import platform
import re
import statistics
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch

from adaftr_fast._extension import build_info
from adaftr_fast.files.whole import replace_file
from benchmarks import RESULTS

ROOT = Path(__file__).parents[1]
NOT_CODE = (":(exclude)benchmarks/results", ":(exclude)*.md")  # a benchmark run rewrites both


def options(
    document: str | None, first: dict[str, Any] | None = None, **given: Any
) -> argparse.Namespace:
    """Reads the options of the command line, and sets the number of threads to the option
    ``threads``, if there is one.

    Args:
        document: the docstring of the benchmark, which ``--help`` shows.
        first: what ``add_argument`` takes of the argument without a name, if there is one.
        given: the default of each option, or the default and a help text. An option has the type
            of its default: a list takes one or more values, and False is a flag. A type in place
            of the default is that of an option that has to be given.
    """
    parser = argparse.ArgumentParser(
        description=document, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    if first is not None:
        parser.add_argument(**first)
    for name, value in given.items():
        default, text = value if isinstance(value, tuple) else (value, None)
        if default is False:
            kind = {"action": "store_true"}
        elif isinstance(default, type):
            kind = {"type": default, "required": True}
        elif isinstance(default, list):
            each = type(default[0]) if default else str
            kind = {"type": each, "nargs": "+", "default": default}
        else:
            kind = {"type": type(default), "default": default}
        parser.add_argument(f"--{name}", help=text, **kind)
    found = parser.parse_args()
    if "threads" in given:
        torch.set_num_threads(found.threads)
    return found


def write(
    name: str,
    cases: list[dict[str, Any]],
    gpu: dict[str, Any] | None = None,
    *,
    folder: Path | None = None,
    **when: str,
) -> Path:
    """Writes results/<name>-<processor>.json: machine, date, commit and the measured cases.

    With ``gpu``, facts about the card whose name stands under "gpu", the processor is the card.
    ``when`` has date and commit of the measurement, where it was not made just now; ``folder``
    takes the place of results/.
    """
    about = machine() | (gpu or {})
    path = (folder or RESULTS) / f"{name}-{processor(about)}.json"
    save(path, {"machine": about}, cases, **when)
    return path


def save(path: Path, origin: dict[str, Any], cases: list[dict[str, Any]], **when: str) -> None:
    """Writes a results file, with one line for each case: origin, date, commit and cases.

    Figures of a new run carry no "stale" text; a person adds one, a reason, when the code that they
    describe changes.
    """
    now = {"date": datetime.date.today().isoformat(), "commit": measured_code()}
    head = json.dumps(origin | now | when, ensure_ascii=False)[:-1]
    lines = ",\n".join(
        json.dumps(case, ensure_ascii=False, separators=(",", ":")) for case in cases
    )
    path.parent.mkdir(exist_ok=True)
    replace_file(path, f'{head}, "cases": [\n{lines}\n]}}\n'.encode())


def processor(about: dict[str, Any]) -> str:
    """Returns the name that files have of the processor of a machine: ``amd-epyc-26-2`` of family
    26, model 2.
    """
    words = re.sub(
        r"\((r|tm)\)|processor|family|model", " ", about.get("gpu", about["cpu"]).lower()
    )
    return re.sub(r"[^a-z0-9]+", "-", words).strip("-")


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


def step_alone(make: Callable[..., Callable[[], None]], *arguments: object) -> tuple[float, float]:
    """Runs the step that ``make(*arguments)`` returns once, in a process of its own.

    Returns:
        Its milliseconds, and the MiB that it adds to the peak of resident memory.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_measured_step, make, arguments).result()


def _measured_step(
    make: Callable[..., Callable[[], None]], arguments: tuple[object, ...]
) -> tuple[float, float]:
    step = make(*arguments)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    before = _resident("VmRSS")
    start = time.perf_counter()
    step()
    return 1e3 * (time.perf_counter() - start), _resident("VmHWM") - before


def _resident(key: str) -> float:
    """Returns a number of MiB that the system keeps of this process."""
    return int(re.search(rf"{key}:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024


def measured_code() -> str:
    """Returns "commit 1a2b3c4", followed by "with uncommitted changes" where the working tree
    differs from it.
    """
    try:
        commit = _git("rev-parse", "--short", "HEAD")
        changed = _git("status", "--porcelain", "--", ".", *NOT_CODE)
    except (OSError, subprocess.CalledProcessError):
        return "unknown commit"  # no git, or not a clone
    return f"commit {commit}" + (" with uncommitted changes" if changed else "")


def _git(*arguments: str) -> str:
    return subprocess.run(
        ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()
