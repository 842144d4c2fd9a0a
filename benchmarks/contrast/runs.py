"""Trains the rows of a part, and keeps the results of all runs in one file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from adaftr_fast.config import OptimizerConfig, RunConfig, TrainingConfig
from adaftr_fast.data.dataset.loader import PreparedData
from adaftr_fast.data.dataset.split_file import TRUTH, read_split
from adaftr_fast.data.prepare.run import prepare
from adaftr_fast.data.schema.parse import load_schema, parse_schema
from adaftr_fast.data.schema.types import Schema
from adaftr_fast.engines import Processes
from adaftr_fast.experiments.jobs import Job, Outcome, plan, run_all
from adaftr_fast.training.evaluation import predict
from adaftr_fast.training.metrics import auc
from adaftr_fast.training.trained import Run
from benchmarks.contrast.rows import Part, variants
from benchmarks.measure import machine, save

Key = tuple[str, str, str, int]  # set, backbone, row, seed
# in percent, by split and task, such as "test click"; {} of a run that diverged
Scores = dict[str, float]


class Runs:
    """The results of the study by set, backbone, row and seed, in a results file.

    Args:
        path: the file; it need not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        known = (
            json.loads(path.read_text(encoding="utf-8"))
            if path.exists()
            else {"machine": {}, "cases": []}
        )
        self._machine = known["machine"]
        self.scores = {
            (case["set"], case["backbone"], case["row"], case["seed"]): case["scores"]
            for case in known["cases"]
        }

    def cases(self) -> list[dict[str, Any]]:
        """Returns the results as the cases of the file."""
        names = ("set", "backbone", "row", "seed")
        return [dict(zip(names, key)) | {"scores": scores} for key, scores in self.scores.items()]

    def add(self, found: dict[Key, Scores]) -> None:
        """Adds results and writes the file, with one line for each run."""
        if not found:
            return
        self.scores |= found
        on = machine() | {"threads": 1}
        for name in ("cpu", "in use"):  # all on which runs of the file were trained
            earlier = self._machine.get(name, on[name]).split(" + ")
            on[name] = " + ".join(dict.fromkeys([*earlier, on[name]]))
        save(self.path, {"machine": on}, self.cases())


def train(
    part: Part, sets: list[str], seeds: int | None, jobs: int, data: Path, out: Path, runs: Runs
) -> None:
    """Trains the rows of a part that ``runs`` lacks, seed by seed.

    Args:
        part: the part.
        sets: the names of its sets.
        seeds: the number of seeds; None: those of the part.
        jobs: the number of parallel runs.
        data: the folder of the prepared folders.
        out: the folder of the run folders.
        runs: receives the results of each seed.
    """
    for seed in part.seeds[:seeds]:
        planned = {}
        for name in sets:
            prepared = open_set(name, data)
            for key, job in _planned(part, name, prepared, seed, out):
                if key not in runs.scores:
                    planned[key] = job, prepared
        outcomes = run_all(
            [job for job, _ in planned.values()], engine=Processes(jobs), progress=True
        )
        runs.add(
            {
                key: _scores(outcomes[job.key], job, prepared)
                for key, (job, prepared) in planned.items()
            }
        )


def _planned(
    part: Part, name: str, data: PreparedData, seed: int, out: Path
) -> Iterator[tuple[Key, Job]]:
    config = config_of(name)
    for backbone in part.backbones:
        for row in variants(part, backbone, len(data.manifest.tasks)):
            yield (name, backbone, row.title, seed), plan(data, row, config, seed, out / name)


def config_of(name: str) -> RunConfig:
    """Returns the options that all rows of a set have in common."""
    if name == "census":
        return RunConfig(
            optimizer=OptimizerConfig(lr=0.002), training=TrainingConfig(progress=False, patience=2)
        )
    return RunConfig(training=TrainingConfig(progress=False))


def open_set(name: str, folder: Path) -> PreparedData:
    """Opens a prepared folder, or prepares one that needs no files, such as ``synthetic_0.01`` (1 %
    of conversions).
    """
    if not (folder / name).exists():
        prepare(schema_of(name), [], folder / name, progress=False)
    return PreparedData(folder / name)


def schema_of(name: str) -> Schema:
    """Returns the schema of a set, ``synthetic_0.01`` with 1 % of conversions."""
    known, _, rate = name.partition("_0.")
    schema = load_schema(known)
    if not rate:
        return schema
    generate = schema.source["generate"]
    rates = generate["rates"] | {"conversion": float("0." + rate)}
    # From the source, which the key of a run depends on.
    return parse_schema(schema.source | {"name": name, "generate": generate | {"rates": rates}})


def _scores(outcome: Outcome, job: Job, data: PreparedData) -> Scores:
    if outcome.error:
        return {}
    splits = {"validation": outcome.validation, "test": outcome.test}
    found = {
        f"{split} {task}": 100 * each["auc"]
        for split, tasks in splits.items()
        for task, each in tasks.items()
    }
    if data.manifest.dataset.startswith("synthetic"):
        found |= _expected(job, data)
    return {name: round(value, 4) for name, value in found.items()}


def _expected(job: Job, data: PreparedData) -> Scores:
    """Returns the AUC of the best weights in expectation over the labels of the test split.

    Every row counts as a positive with its true probability, and as a negative with the rest.
    """
    config = job.config.model
    trained = Run(job.folder, config.name if config.is_own else None).load()
    logits = predict(trained.model, data.load("test"), 8192).logits
    found = {}
    for number, task in enumerate(data.manifest.tasks):
        truth = read_split(data.folder, data.manifest, "test", [TRUTH + task])[
            TRUTH + task
        ].to_numpy()
        weight = np.concatenate([truth, 1 - truth]).astype(np.float64)
        labels = np.repeat([1, 0], len(truth))
        found[f"expected {task}"] = 100 * auc(labels, np.tile(logits[:, number], 2), weight)
    return found
