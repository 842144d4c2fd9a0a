"""Cells of studies: a data set, options and a seed, each trained once, and what is recorded of it.

Tables and figures are made from records. Studies on the same data share cells: MMoE of Table 4 is
MMoE of Table 6. A cell is trained on one thread, so the number of parallel ones changes no bit.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from adaftr_fast.config import RunConfig
from adaftr_fast.data.dataset.loader import PreparedData
from adaftr_fast.data.dataset.split_file import TRUTH, read_split
from adaftr_fast.data.prepare.run import prepare
from adaftr_fast.data.schema.types import Schema
from adaftr_fast.errors import CheckpointError, DivergedError
from adaftr_fast.files.json import dumps
from adaftr_fast.files.whole import make_folder, read_json, write_json
from adaftr_fast.models import MultiTaskModel
from adaftr_fast.runs.run import train_one
from adaftr_fast.training.evaluation import TaskMetrics, predict, spread
from adaftr_fast.training.metrics import auc
from adaftr_fast.training.trained import Run, load_trained
from benchmarks.measure import machine, measured_code

RECORD = "record.json"  # in the run folder
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Cell:
    """A run of a study.

    Attributes:
        key: sha256 of options, data and version. Equal keys give equal bits on the same machine.
        folder: the run folder.
        config: the options, with the seed.
        data: the folder of the prepared data.
    """

    key: str
    folder: Path
    config: RunConfig
    data: Path


@dataclass(frozen=True)
class Record:
    """What is recorded of a cell. A run that diverged has an error and no metrics.

    Attributes:
        key: the key of the cell.
        fingerprint: that of the prepared data.
        commit, cpu: what trained the cell.
        options: the options that the result depends on, with the seed.
        seconds: the duration in seconds.
        validation, test: metrics of the best weights, as fractions. The test split is read once,
            after training.
        expected: AUC on the test split in expectation over its labels, by task, where the true
            probabilities are known.
        epochs: the number of epochs.
        best_epoch: the number of epochs after which the weights were the best.
        learned: 5, 50 and 95 % quantiles of each diagnostic on the test split, such as the
            temperature.
        dead_tasks: tasks whose validation AUC is close to 0.5.
        error: the error of a run that diverged.
    """

    key: str
    fingerprint: str
    commit: str
    cpu: str
    options: dict[str, Any]
    seconds: float
    validation: TaskMetrics = field(default_factory=dict)
    test: TaskMetrics = field(default_factory=dict)
    expected: dict[str, float] = field(default_factory=dict)
    epochs: float = 0
    best_epoch: float = 0
    learned: dict[str, dict[str, float]] = field(default_factory=dict)
    dead_tasks: list[str] = field(default_factory=list)
    error: str | None = None


def open_data(folder: Path, schema: Schema) -> PreparedData:
    """Opens a prepared folder, which a schema that needs no files makes where it is missing."""
    if not folder.exists():
        prepare(schema, [], folder, progress=False)
    return PreparedData(folder)


def plan(
    data: PreparedData, changes: dict[str, Any], base: RunConfig, seed: int, root: Path
) -> Cell:
    """Returns the cell of a row and a seed.

    Args:
        data: the prepared data.
        changes: the fields of ``ModelConfig`` that make the row.
        base: the options that all rows have in common.
        seed: the seed.
        root: the folder that contains the run folder.

    Raises:
        ConfigError: the options of the row are not those of a model.
    """
    config = base.with_options(
        data={"folder": data.name},
        model=changes,
        training={"seed": seed, "progress": False},
    )
    manifest = data.manifest
    meaning = [config.identity(), manifest.fingerprint, manifest.inputs, version("adaftr-fast")]
    key = hashlib.sha256(dumps(meaning).encode()).hexdigest()
    folder = root / f"{config.model.name}-{key[:12]}-seed{seed}"
    return Cell(key, folder, config, Path(data.folder))


def recorded(cell: Cell) -> Record | None:
    """Returns the record of a cell, or None if there is none yet."""
    try:
        record = read_json(Record, cell.folder / RECORD)
    except (OSError, ValueError):
        return None
    return record if record.key == cell.key else None


def train(cell: Cell) -> Record:
    """Trains a cell, or resumes it, evaluates it and writes its record.

    Raises:
        KeyboardInterrupt: Ctrl-C interrupted the run, which can be resumed.
        ConfigError, DataError, TrainingError, CheckpointError, BusyError, OSError: see
            ``train_one``. A run that diverged raises nothing.
    """
    data = PreparedData(cell.data)
    start = time.perf_counter()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # of dead towers, which are recorded
            run = _trained(cell, data)
        found = {
            "validation": run.validation,
            "test": run.test,
            "expected": _expected(cell, data),
            "epochs": run.trained_epochs,
            "best_epoch": run.best_epoch,
            "learned": {name: spread(values) for name, values in run.diagnostics.items()},
            "dead_tasks": run.dead_tasks,
        }
    except DivergedError as error:  # deterministic, so another attempt would diverge, too
        found = {"error": str(error)}
    record = Record(
        key=cell.key,
        fingerprint=data.manifest.fingerprint,
        commit=measured_code(),
        cpu=machine()["cpu"],
        options=cell.config.identity(),
        seconds=time.perf_counter() - start,
        **found,
    )
    make_folder(cell.folder)  # which a run that diverged may not have
    write_json(cell.folder / RECORD, record)
    return record


def _trained(cell: Cell, data: PreparedData) -> Run:
    try:
        return train_one(data, cell.config, cell.folder)
    except CheckpointError:  # damaged, or the data folder has moved; the key identifies the run
        return train_one(data, cell.config, cell.folder, restart=True)


def model_of(cell: Cell) -> MultiTaskModel:
    """Returns the model of a trained cell with its best weights."""
    config = cell.config.model
    return load_trained(cell.folder, config.name if config.is_own else None).model


def _expected(cell: Cell, data: PreparedData) -> dict[str, float]:
    """Returns the AUC of the best weights in expectation over the labels of the test split.

    Every row counts as a positive with its true probability, and as a negative with the rest.
    """
    table = read_split(data.folder, data.manifest, "test")
    tasks = [task for task in data.manifest.tasks if TRUTH + task in table.column_names]
    if not tasks:
        return {}
    logits = predict(model_of(cell), data.load("test"), 8192).logits
    found = {}
    for task in tasks:
        truth = table[TRUTH + task].to_numpy()
        weight = np.concatenate([truth, 1 - truth]).astype(np.float64)
        labels = np.repeat([1, 0], len(truth))
        scores = np.tile(logits[:, data.manifest.tasks.index(task)], 2)
        found[task] = auc(labels, scores, weight)
    return found


def train_all(cells: Sequence[Cell], processes: int) -> dict[str, Record]:
    """Trains the cells without a record, each distinct one once; returns the records by key.

    Raises:
        KeyboardInterrupt: Ctrl-C interrupted the runs, which the same call resumes.
        BrokenProcessPool: a process was killed; the same call resumes what it did.
    """
    todo = {cell.key: cell for cell in cells}
    known = {key: record for key, cell in todo.items() if (record := recorded(cell)) is not None}
    missing = [cell for key, cell in todo.items() if key not in known]
    for record in in_processes(train, missing, processes):
        known[record.key] = record
        print(f"{len(known)} of {len(todo)} runs: {todo[record.key].folder.name}", file=sys.stderr)
    return known


def in_processes(
    function: Callable[[Item], Result], items: Iterable[Item], processes: int
) -> Iterator[Result]:
    """Yields the results of calls, in any order. Each runs on one thread, in a process that ends
    with this one.
    """
    waiting = iter(items)
    running: set[Future[Result]] = set()
    # a fork would inherit OpenMP's threads in an undefined state
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(processes, context, _begin)
    try:
        while True:
            # only as many calls as run, because queued ones would begin after Ctrl-C
            free = processes - len(running)
            running |= {pool.submit(function, each) for each in islice(waiting, free)}
            if not running:
                return
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for each in done:
                yield each.result()
    finally:
        pool.shutdown()


def _begin() -> None:
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None  # the processes are spawned
    parent.join()
    os._exit(1)
