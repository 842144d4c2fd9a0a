"""Trains the runs of the study, and keeps what is recorded of each in one file."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from adaftr_fast.data.dataset.loader import PreparedData
from adaftr_fast.data.dataset.split_file import TRUTH, read_split
from adaftr_fast.models import AdaFTR
from adaftr_fast.nn.contrast import ALIGNMENTS
from adaftr_fast.ops.infonce.api import adaptive_infonce
from adaftr_fast.runs.run import build
from adaftr_fast.training.evaluation import predict
from benchmarks import cells
from benchmarks.evidence import resample
from benchmarks.evidence.rows import (
    CONTESTANTS,
    PAIRS,
    PARTS,
    SEEDS,
    TRIAL_SEED,
    TRIALS,
    config,
    trial,
)  # fmt: skip
from benchmarks.evidence.sets import SETS
from benchmarks.evidence.tables import best_trial
from benchmarks.render import Case
from benchmarks.store import Store, origin

NAMES = ("set", "row", "trial", "seed")  # of a run, which has a trial or a seed
BATCHES = 16  # on which gradients are compared


@dataclass(frozen=True)
class Task:
    """A run to be trained: its cell, and its place in the file of results."""

    cell: cells.Cell
    about: Case  # set, row, and trial or seed


def train(name: str, part: str, data: PreparedData, out: Path, store: Store, jobs: int) -> None:
    """Trains what a part lacks on a set: the trials first, which choose the options of the rows.

    Raises:
        KeyboardInterrupt: Ctrl-C; the same call goes on.
    """
    for tasks in (_trials(name, data, out), _rows(name, part, data, out, store)):
        missing = [task for task in tasks if store.lacks(task.about)]
        for number, case in enumerate(cells.in_processes(measured, missing, jobs), start=1):
            store.add([case])
            about = ", ".join(str(case[key]) for key in NAMES if key in case)
            now = time.strftime("%H:%M:%S")
            print(f"{now} {part}: {number} of {len(missing)}: {about}", file=sys.stderr, flush=True)


def _trials(name: str, data: PreparedData, out: Path) -> Iterator[Task]:
    rows = data.manifest.splits["train"].rows
    for number in range(TRIALS):
        for row, model in CONTESTANTS.items():
            base = config(trial(number), model, 1.0, rows)
            cell = cells.plan(data, {}, base, TRIAL_SEED, out / name)
            yield Task(cell, {"set": name, "row": row, "trial": number})


def _rows(name: str, part: str, data: PreparedData, out: Path, store: Store) -> Iterator[Task]:
    """Yields the runs of a part, seed by seed."""
    rows = data.manifest.splits["train"].rows
    planned = {}
    for title, row in PARTS[part].items():
        options = {}
        if row.contestant is not None:
            options = trial(best_trial(store.cases(), name, row.contestant)["trial"])
        factor = equal_factor(data, options) if row.beta is None else row.beta
        planned[title] = config(options, row.model, factor, rows)
    for seed in SEEDS:
        for title, base in planned.items():
            cell = cells.plan(data, {}, base, seed, out / name)
            yield Task(cell, {"set": name, "row": title, "seed": seed})


def equal_factor(data: PreparedData, options: dict[str, Any]) -> float:
    """Returns the factor on beta with which an alignment without negatives has a gradient of the
    norm of the contrast in blocks of two.

    The norms are those of the gradients in the contrasted layer, at the initial weights of the first
    seed, summed over the first training batches.
    """
    base = config(options, PAIRS, 1.0, data.manifest.splits["train"].rows)
    torch.manual_seed(SEEDS[0])
    model = build(base.model, data)
    assert isinstance(model, AdaFTR)
    (a, b), norms = model.pairs[0], np.zeros(2)
    batches = data.load("train").shuffled(base.training.batch_size, seed=SEEDS[0], epoch=0)
    for batch in islice(batches, BATCHES):
        with torch.no_grad():
            h = model._contrasted(model.backbone.represent(*batch.features))
        leaves = [h[a].clone().requires_grad_(), h[b].clone().requires_grad_()]
        tau = torch.full((len(leaves[0]),), base.model.tau_fixed)
        losses = (
            adaptive_infonce(*leaves, tau, block=base.model.contrast_rows),
            ALIGNMENTS["alignment"](*leaves).mean(),
        )
        norms += [float(torch.stack(torch.autograd.grad(loss, leaves)).norm()) for loss in losses]
    return float(f"{norms[0] / norms[1]:.4g}")


def measured(task: Task) -> Case:
    """Trains a run. Returns its case, in percent; of a trial without the test metrics."""
    cell = task.cell
    record = cells.recorded(cell) or cells.train(cell)
    found = (
        task.about
        | origin(record)
        | {
            "options": _options(cell),
            "epochs": record.epochs,
            "validation": _percent(record.validation),
            "dead": record.dead_tasks,
        }
    )
    if record.error is not None:
        return found | {"error": record.error}
    if "trial" in task.about:
        return found
    data = PreparedData(cell.data)
    table = read_split(data.folder, data.manifest, "test")
    logits = predict(cells.model_of(cell), data.load("test"), 8192).logits
    np.save(cell.folder / "test_logits.npy", logits)
    weights = resample.counts(SETS[task.about["set"]].units(data))
    weights = np.concatenate([np.ones_like(weights[:1]), weights])
    area = {}
    for column, label in enumerate(data.manifest.tasks):
        truth = TRUTH + label if TRUTH + label in table.column_names else label
        area[label] = 100 * resample.areas(logits[:, column], table[truth].to_numpy(), weights)
    mean = np.mean(list(area.values()), axis=0)
    return found | {
        "test": {label: round(float(each[0]), 4) for label, each in area.items()},
        "gauc": _percent(record.test, "gauc"),
        "resampled": np.rint(1000 * (mean[1:] - mean[0])).astype(int).tolist(),
    }


def _options(cell: cells.Cell) -> dict[str, Any]:
    """Returns the options that differ between runs."""
    flat = cell.config.flat()
    names = (
        "optimizer.lr", "model.l2", "model.embedding_dim", "model.expert_hidden", "model.beta",
        "training.max_epochs", "training.batch_size", "model.name", "model.contrast",
        "model.contrast_rows", "model.contrast_epochs", "model.tau",
    )  # fmt: skip
    return {name.partition(".")[2]: flat[name] for name in names}


def _percent(metrics: dict[str, dict[str, float]], name: str = "auc") -> dict[str, float]:
    return {task: round(100 * each[name], 4) for task, each in metrics.items() if name in each}
