"""What runs on the GPU in a loss and in a training step: traces, tables of kernels, launches, and
Nsight Compute.

A training step is the difference of two runs that differ in their number of steps, so that neither
start-up nor evaluation counts.
"""

from __future__ import annotations

import gzip
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

import adaftr_fast as af
from adaftr_fast.data.synthetic.log import LogConfig
from benchmarks.gpu.cells import Cell, Row, Setting
from benchmarks.gpu.processes import run
from benchmarks.gpu.stages import contestants as forms
from benchmarks.gpu.stages.training import GRAPHS, RATES, data, options, prepared, run_folder

LIMIT = 40  # seconds of a cell
SHAPES = [("bfloat16", 1024, 128), ("bfloat16", 65_536, 128)]
DRY_SHAPE = ("float32", 64, 16)
# of the two runs; three quarters of a log's rows are training rows
BATCH = 1024
STEPS = (20, 40)
DRY_STEPS = (2, 4)
KERNELS = 40  # rows of a table
# of the CUDA runtime and driver
CALLS = ("LaunchKernel", "GraphLaunch", "Memcpy", "Memset", "Synchronize")
NCU = (
    "ncu --target-processes all --clock-control none --csv --kernel-name regex:infonce "
    "--launch-skip 6 --launch-count 3 --section SpeedOfLight --section LaunchStats "
    "--section Occupancy --section WarpStateStats"
)
ONE_LOSS = (
    "from benchmarks.gpu.stages import contestants as forms\n"
    "leaves = forms.problem(65_536, 128, 'bfloat16', 'cuda')\n"
    "for _ in range(4):\n"
    "    forms.step(forms.ours, leaves)\n"
)


def cells(setting: Setting) -> Iterator[Cell]:
    for shape in [DRY_SHAPE] if setting.dry else SHAPES:
        key = dict(zip(("precision", "batch", "width"), shape))
        yield Cell({"what": "loss"} | key, loss, seconds=3)
    for precision in ("float32",) if setting.dry else ("bfloat16", "float32"):
        for graph in GRAPHS:
            batch = 64 if setting.dry else BATCH
            key = {"what": "training step", "precision": precision, "batch": batch, "graph": graph}
            planned = setting.dry or precision == "bfloat16"
            yield Cell(key, training_step, seconds=10, planned=planned)
    yield Cell({"what": "Nsight Compute"}, nsight_compute, seconds=15)


class Recording:
    """What the profiler saw: microseconds of each kernel, and numbers of kernels and of calls."""

    def __init__(self, work: Callable[[], Any], setting: Setting) -> None:
        activities = [ProfilerActivity.CPU] + (
            [ProfilerActivity.CUDA] if setting.device == "cuda" else []
        )
        with profile(activities=activities) as self.found:
            work()
            if setting.device == "cuda":
                torch.cuda.synchronize()
        self.times = Counter()
        self.counts = Counter()
        for event in self.found.events():
            if event.device_type == torch.autograd.DeviceType.CUDA:
                self.times[event.name] += event.time_range.elapsed_us()
                self.counts["kernels, copies and fills"] += 1
            elif event.name.startswith("cu"):
                self.counts.update(name for name in CALLS if name in event.name)
            elif event.name.startswith("aten::"):
                self.counts["ATen ops"] += 1

    def kernels(self, less: Recording | None = None, steps: int = 1) -> list[Row]:
        """Returns the microseconds a step of each kernel, beyond those of ``less``, in descending
        order.
        """
        times = Counter(self.times)
        times.subtract({} if less is None else less.times)
        return [
            {"kernel": name[:120], "us": round(us / steps, 2)}
            for name, us in times.most_common(KERNELS)
            if us > 0
        ]

    def write(self, path: Path) -> None:
        """Writes the trace, compressed, for Perfetto or chrome://tracing."""
        with tempfile.TemporaryDirectory() as folder:
            plain = Path(folder) / "trace.json"
            draft = path.with_suffix(".tmp")
            self.found.export_chrome_trace(str(plain))
            with open(plain, "rb") as source, gzip.open(draft, "wb") as target:
                shutil.copyfileobj(source, target)
            draft.replace(path)


def loss(key: Row, setting: Setting) -> Row:
    """Profiles one forward and backward, after two that compile and warm up."""
    leaves = forms.problem(key["batch"], key["width"], key["precision"], setting.device)
    for _ in range(2):
        forms.step(forms.ours, leaves)
    seen = Recording(lambda: forms.step(forms.ours, leaves), setting)
    if key["batch"] in (SHAPES[0][1], DRY_SHAPE[1]):
        seen.write(setting.out / "trace-loss.json.gz")
    return {"kernels": seen.kernels(), "calls": dict(seen.counts)}


def training_step(key: Row, setting: Setting) -> Row:
    """Profiles an epoch of AdaFTR with some steps and one with twice as many, and returns the
    difference by step.
    """
    seen = []
    numbers = DRY_STEPS if setting.dry else STEPS
    for steps in numbers:
        config = LogConfig(
            rows=steps * key["batch"] * 4 // 3 + 8, users=200, items=100, rates=RATES
        )
        data(config)
        chosen = options(key, setting) | {"max_epochs": 1}
        with run_folder() as out:
            seen.append(
                Recording(
                    lambda c=config, o=out, x=chosen: af.train(prepared(c), o, training=x), setting
                )
            )
    few, many = seen
    if key["precision"] == "bfloat16" or setting.dry:
        few.write(setting.out / f"trace-training-{key['graph']}.json.gz")
    more = numbers[1] - numbers[0]
    counts = {
        name: round((count - few.counts[name]) / more, 2) for name, count in many.counts.items()
    }
    return {"kernels": many.kernels(few, more), "calls": counts, "steps": list(numbers)}


def nsight_compute(key: Row, setting: Setting) -> Row:
    """Returns what Nsight Compute says of the loss's kernels, or why it says nothing."""
    if setting.dry or shutil.which("ncu") is None:
        return {"skipped": "a dry run" if setting.dry else "no ncu on PATH"}
    done = run([*NCU.split(), sys.executable, "-c", ONE_LOSS], LIMIT - 10)
    if done.returncode or "==ERROR==" in done.stdout:
        return {"skipped": f"ncu ended with status {done.returncode}: {done.stdout[-1500:]}"}
    return {"csv": done.stdout[-20_000:]}
