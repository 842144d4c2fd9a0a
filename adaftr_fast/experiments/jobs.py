"""Runs as jobs, identified by a key of everything that their result depends on.

Experiments on the same data share jobs: MMoE of Table 4 is MMoE of Table 6. Jobs run on an engine
with one thread each, so that neither engine nor number of parallel jobs changes a bit.
"""

from __future__ import annotations

import hashlib
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from adaftr_fast._files import AnyPath, read_json, write_json
from adaftr_fast._json import dumps
from adaftr_fast._locks import LOST_SECONDS, writing_folder
from adaftr_fast._progress import progress_bar
from adaftr_fast.config import RunConfig
from adaftr_fast.data.dataset.loader import PreparedData
from adaftr_fast.data.dataset.manifest import Manifest
from adaftr_fast.engines import Engine, on_one_thread
from adaftr_fast.errors import CheckpointError, DivergedError
from adaftr_fast.experiments.catalog import Variant
from adaftr_fast.runs.run import RUN_FILES, train_one
from adaftr_fast.training.evaluation import TaskMetrics, spread
from adaftr_fast.training.trained import Run

RESULT = "result.json"


@dataclass(frozen=True)
class Job:
    """One run of an experiment.

    Attributes:
        key: sha256 of configuration, data and version. Equal keys give equal bits on the same
            machine.
        folder: the run folder.
        config: the configuration of the run.
        data: the folder of the prepared data.
    """

    key: str
    folder: Path
    config: RunConfig
    data: AnyPath


@dataclass(frozen=True)
class Outcome:
    """The result of a job for reports. A run that diverged has an error and no metrics.

    Attributes:
        key: the key of the job.
        seconds: the duration in seconds.
        validation, test: metrics of the best weights, as fractions. The test split is read once,
            after training.
        epochs: the number of epochs.
        best_epoch: the number of epochs after which the weights were the best.
        learned: 5, 50 and 95 % quantiles of each diagnostic on the test split, such as the
            temperature.
        dead_tasks: tasks whose validation AUC is close to 0.5.
        error: the error of a run that diverged.
    """

    key: str
    seconds: float
    validation: TaskMetrics
    test: TaskMetrics
    epochs: float
    best_epoch: float
    learned: dict[str, dict[str, float]]
    dead_tasks: list[str]
    error: str | None = None


def plan(data: PreparedData, variant: Variant, base: RunConfig, seed: int, root: Path) -> Job:
    """Returns the job of a row and a seed.

    Args:
        data: the prepared data.
        variant: the row.
        base: the configuration that all rows have in common.
        seed: the seed.
        root: the folder that contains the run folder.

    Raises:
        ConfigError: the options of the row are not a valid model configuration.
    """
    config = base.with_options(
        data={"folder": data.name},
        model=variant.changes,
        training={"seed": seed, "progress": False},
    )
    key = _key(config, data.manifest)
    return Job(key, root / f"{config.model.name}-{key[:12]}-seed{seed}", config, data.folder)


def _key(config: RunConfig, manifest: Manifest) -> str:
    meaning = [config.identity(), manifest.fingerprint, manifest.inputs, version("adaftr-fast")]
    return hashlib.sha256(dumps(meaning).encode()).hexdigest()


def finished(job: Job) -> Outcome | None:
    """Returns the outcome of a finished job, or None if the job is unfinished or its result file is
    damaged.
    """
    try:
        outcome = read_json(Outcome, job.folder / RESULT)
    except (OSError, ValueError):
        return None
    return outcome if outcome.key == job.key else None


def execute(job: Job) -> Outcome:
    """Trains, or resumes, and evaluates a run. The outcome is written last and marks the job as
    finished.

    A lost attempt may still hold the folder's lock, so the job waits for it, and may have finished
    the job.

    Raises:
        KeyboardInterrupt: Ctrl-C interrupted the run, which remains unfinished.
        ConfigError, DataError, TrainingError, CheckpointError, BusyError, OSError: see
            ``train_one``. A run that diverged raises nothing.
    """
    with writing_folder(job.folder, RESULT, *RUN_FILES, wait=LOST_SECONDS):
        outcome = finished(job)
        if outcome is None:
            outcome = _outcome(job)
            write_json(job.folder / RESULT, outcome)
    return outcome


def _outcome(job: Job) -> Outcome:
    start = time.perf_counter()
    try:
        run = _train(job)
    except DivergedError as error:  # deterministic, so another attempt would diverge, too
        return Outcome(job.key, time.perf_counter() - start, {}, {}, 0, 0, {}, [], str(error))
    return Outcome(
        key=job.key,
        seconds=time.perf_counter() - start,
        validation=run.validation,
        test=run.test,
        epochs=run.trained_epochs,
        best_epoch=run.best_epoch,
        learned={name: spread(values) for name, values in run.diagnostics.items()},
        dead_tasks=run.dead_tasks,
    )


def _train(job: Job) -> Run:
    data = PreparedData(job.data)
    try:
        return train_one(data, job.config, job.folder)
    except CheckpointError:  # damaged, or the data folder has moved; the key identifies the run
        return train_one(data, job.config, job.folder, restart=True)


def run_all(jobs: Sequence[Job], *, engine: Engine, progress: bool) -> dict[str, Outcome]:
    """Runs the unfinished jobs, each distinct job once.

    Args:
        jobs: the jobs.
        engine: the engine, such as ``Processes``.
        progress: shows a progress bar over the jobs.

    Returns:
        The outcome of every job by its key.

    Raises:
        KeyboardInterrupt: Ctrl-C interrupted the jobs, which save snapshots; finished ones remain
            finished.
        EngineError: a process was killed, or the cluster fails.
    """
    todo = {job.key: job for job in jobs}
    outcomes = {key: outcome for key, job in todo.items() if (outcome := finished(job)) is not None}
    open_jobs = [job for key, job in todo.items() if key not in outcomes]
    with progress_bar(
        total=len(todo), initial=len(outcomes), unit="run", disable=not progress
    ) as bar:

        def done(index: int, outcome: Outcome) -> None:
            outcomes[outcome.key] = outcome
            bar.set_postfix_str(open_jobs[index].folder.name, refresh=False)
            bar.update()

        engine.map(on_one_thread(_run), open_jobs, done=done)
    return outcomes


def _run(job: Job) -> Outcome:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of dead towers, which the report names
        return execute(job)
