"""Trains the rows of a part, and keeps the results of all runs in one file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from adaftr_fast.data.dataset.loader import PreparedData
from adaftr_fast.data.schema.parse import load_schema, parse_schema
from adaftr_fast.data.schema.types import Schema
from benchmarks.cells import Cell, Record, open_data, plan
from benchmarks.contrast.rows import Part, variants
from benchmarks.paper.catalog import config_of
from benchmarks.render import Case
from benchmarks.store import Store

NAMES = ("set", "backbone", "row", "seed")  # of a run


def open_store(path: Path) -> Store:
    """Opens the results file of the study."""
    return Store(path, NAMES)


def train(
    part: Part, sets: list[str], seeds: int | None, jobs: int, data: Path, out: Path, store: Store
) -> None:
    """Trains the rows of a part that ``store`` lacks, seed by seed.

    Args:
        part: the part.
        sets: the names of its sets.
        seeds: the number of seeds; None: those of the part.
        jobs: the number of parallel runs.
        data: the folder of the prepared folders.
        out: the folder of the run folders.
        store: receives the results of each seed.
    """
    for seed in part.seeds[:seeds]:
        planned = [
            run for name in sets for run in _planned(part, name, open_set(name, data), seed, out)
        ]
        store.train(planned, scores_of, jobs)


def _planned(
    part: Part, name: str, data: PreparedData, seed: int, out: Path
) -> Iterator[tuple[Case, Cell]]:
    config = config_of(name)
    for backbone in part.backbones:
        for row in variants(part, backbone, len(data.manifest.tasks)):
            cell = plan(data, row.changes, config, seed, out / name)
            yield dict(zip(NAMES, (name, backbone, row.title, seed))), cell


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


def scores_of(record: Record) -> Case:
    """Returns the scores of a record in percent, by split and task, such as "test click"; none of a
    run that diverged.
    """
    splits = {"validation": record.validation, "test": record.test}
    found = {
        f"{split} {task}": each["auc"]
        for split, tasks in splits.items()
        for task, each in tasks.items()
    }
    found |= {f"expected {task}": area for task, area in record.expected.items()}
    return {"scores": {name: round(100 * value, 4) for name, value in found.items()}}
