"""Trains the rows of a part, and keeps the results of all runs in one file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from adaftr_fast.config import OptimizerConfig, RunConfig, TrainingConfig
from adaftr_fast.data.dataset.loader import PreparedData
from adaftr_fast.data.schema.parse import load_schema, parse_schema
from adaftr_fast.data.schema.types import Schema
from benchmarks.cells import Cell, Record, open_data, plan, train_all
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
        cells = {
            key: cell
            for name in sets
            for key, cell in _planned(part, name, open_set(name, data), seed, out)
            if key not in runs.scores
        }
        records = train_all(list(cells.values()), jobs)
        runs.add({key: scores_of(records[cell.key]) for key, cell in cells.items()})


def _planned(
    part: Part, name: str, data: PreparedData, seed: int, out: Path
) -> Iterator[tuple[Key, Cell]]:
    config = config_of(name)
    for backbone in part.backbones:
        for row in variants(part, backbone, len(data.manifest.tasks)):
            cell = plan(data, row.changes, config, seed, out / name)
            yield (name, backbone, row.title, seed), cell


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
    return open_data(folder / name, schema_of(name))


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


def scores_of(record: Record) -> Scores:
    """Returns the scores of a record."""
    splits = {"validation": record.validation, "test": record.test}
    found = {
        f"{split} {task}": each["auc"]
        for split, tasks in splits.items()
        for task, each in tasks.items()
    }
    found |= {f"expected {task}": area for task, area in record.expected.items()}
    return {name: round(100 * value, 4) for name, value in found.items()}
