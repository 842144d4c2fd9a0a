"""A search: trains runs with options that Optuna chooses by the runs before.

A trial trains one run, and ends it early if it is worse than the trials that finished before it.
"""

from __future__ import annotations

import dataclasses
import sqlite3
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from adaftr_fast.config import RunConfig
from adaftr_fast.data.dataset.loader import PreparedData
from adaftr_fast.engines import Engine, Local, on_one_thread
from adaftr_fast.errors import CheckpointError, ConfigError, DivergedError, TrainingError
from adaftr_fast.extras.tuning.space import Space, apply
from adaftr_fast.files.json import dumps, loads
from adaftr_fast.files.locks import LOST_SECONDS, writing_folder
from adaftr_fast.files.whole import write_json
from adaftr_fast.runs.output import HERE, Output
from adaftr_fast.runs.run import fit_one
from adaftr_fast.training.checkpoint.snapshots import LAST, remove_snapshots
from adaftr_fast.training.checkpoint.weights import remove_weights
from adaftr_fast.training.evaluation import TaskMetrics, evaluate, mean_auc
from adaftr_fast.training.sharding import check_replicated
from adaftr_fast.training.trained import BEST, METRICS, TEST, earlier
from adaftr_fast.training.trainer import StopRun

TRIALS = "trials"  # name in the folder of the search
# finished trials before the first is pruned; epochs of a trial before it is
STARTUP_TRIALS = 5
WARMUP_EPOCHS = 1


@dataclass(frozen=True)
class Search:
    """What a search varies and measures.

    Attributes:
        data: the prepared data.
        config: the configuration; the options of ``space`` replace those of the same name.
        space: the options that vary.
        folder: the folder of the search.
        task: the task whose validation AUC counts; None for the mean over tasks.
        output: names ``folder`` in messages.
    """

    data: PreparedData
    config: RunConfig
    space: Space
    folder: Path
    task: str | None = None
    output: Output = HERE

    def __post_init__(self) -> None:
        check_replicated("tune", self.config.training)
        tasks = self.data.manifest.tasks
        if self.task is not None and self.task not in tasks:
            raise ConfigError(f"--task: expected one of {', '.join(tasks)}, got {self.task!r}")

    def auc(self, record: dict[str, Any]) -> float:
        """Returns the validation AUC of an epoch's record that the search maximizes."""
        metrics: TaskMetrics = record["validation"]
        return float(mean_auc(metrics) if self.task is None else metrics[self.task]["auc"])

    def settings(self) -> dict[str, Any]:
        """Returns what all runs of a search must have in common."""
        space = {name: dataclasses.asdict(each) for name, each in self.space.items()}
        data = self.data.manifest.fingerprint
        return {
            "configuration": self.config.identity(),
            "space": space,
            "data": data,
            "task": self.task,
        }

    def run_folder(self, number: int) -> Path:
        """Returns the folder of a trial's run."""
        return self.folder / TRIALS / f"{number:04d}"

    def validation(self, epoch: float) -> int:
        """Returns the number of the validation after some epochs."""
        return round(epoch * self.config.training.validations)


@dataclass(frozen=True)
class Asked:
    """A trial to train.

    Attributes:
        number: the number of the trial.
        options: its options by name.
        before: the trials that had finished when it was asked for, with which it is compared.
    """

    number: int
    options: dict[str, Any]
    before: list[FrozenTrial]


@dataclass(frozen=True)
class Trained:
    """What has become of a trial: it has a best epoch, was pruned, or has an error.

    Attributes:
        number: the number of the trial.
        values: the AUC that the search maximizes, by number of the validation.
        best_epoch: the epoch of the best weights; None if the trial was pruned or failed.
        error: the error of options that diverge or do not go together.
    """

    number: int
    values: dict[int, float] = field(default_factory=dict)
    best_epoch: float | None = None
    error: str | None = None


def train_trial(search: Search, asked: Asked) -> Trained:
    """Trains the run of a trial, or resumes it.

    The result depends on the arguments alone: the trial is pruned by those of ``asked.before``. The
    snapshots remain, so that a repeated call only ends the run again.

    Raises:
        KeyboardInterrupt, DataError, TrainingError, CheckpointError, BusyError, OSError: as
            ``fit_one``, apart from ``DivergedError``. The same call resumes the trial.
    """
    warmup = (WARMUP_EPOCHS + 1) * search.config.training.validations
    pruner = optuna.pruners.MedianPruner(n_startup_trials=STARTUP_TRIALS, n_warmup_steps=warmup)
    study = optuna.create_study(direction="maximize", pruner=pruner)
    study.add_trials(asked.before)
    trial = study.ask()
    folder = search.run_folder(asked.number)
    values: dict[int, float] = {}
    on_epoch = partial(_report, search, trial, folder / METRICS, values)
    best_epoch: float | None = None
    failure: str | None = None
    try:
        config = apply(search.config, asked.options)
        with fit_one(
            search.data, config, folder, on_epoch=on_epoch, wait=LOST_SECONDS, output=search.output
        ) as trainer:
            best_epoch = trainer.result.best_epoch
    except StopRun:
        pass
    # of these options; any other error would end all trials alike
    except (ConfigError, DivergedError) as error:
        failure = str(error)
    return Trained(asked.number, values, best_epoch, failure)


def _report(
    search: Search, trial: Trial, log: Path, values: dict[int, float], record: dict[str, Any]
) -> None:
    """Reports each validation once, also those before an interruption. Raises StopRun if the trial
    is to be pruned.
    """
    for line in log.read_text(encoding="utf-8").splitlines():
        each = loads(line)
        number = search.validation(each["epoch"])
        if number not in values:
            values[number] = search.auc(each)
            trial.report(values[number], number)
    if trial.should_prune():
        raise StopRun


STUDY = "study.db"  # name in the folder
NAME, SETTINGS, OPTIONS, ERROR = "tune", "settings", "options", "error"  # names in the study


@dataclass(frozen=True)
class Found:
    """The result of a search.

    Attributes:
        study: Optuna's study of all trials.
        best: the trial with the best validation AUC.
        config: its configuration.
        test: its metrics on the test split.
    """

    study: optuna.Study
    best: FrozenTrial
    config: RunConfig
    test: TaskMetrics


def tune(search: Search, trials: int, engine: Engine | None = None) -> Found:
    """Trains until the search has ``trials`` trials, and evaluates the best one on the test split.

    The same call continues an interrupted search, and the interrupted trials in their epochs. With
    one seed (``config.training.seed``), one machine and one trial at a time the trials are the
    same, however often the search is interrupted. The weights of other trials than the best are
    removed.

    Args:
        search: the search.
        trials: the number of trials, including those of earlier calls.
        engine: the engine that trains the trials; None is ``Local()``, which trains one after the
            other on all cores. On another one each trial has one thread, and as many run at the
            same time as the engine has calls in progress. Their options then depend on which trials
            end first.

    Raises:
        TrainingError: no trial has finished, or training cannot go on for another reason than the
            options of a trial. The same call resumes the trial.
        CheckpointError: the folder holds another search, or a damaged one.
        BusyError: another process writes the folder.
        EngineError: the cluster fails.
        KeyboardInterrupt: Ctrl-C or SIGTERM ended training.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    engine = engine or Local()
    with writing_folder(search.folder):
        study = _open(search)
        train = partial(train_trial, search)
        step = on_one_thread(train) if engine.remote else lambda asked, advance: train(asked)
        engine.map(
            step,
            _ask_all(search, study, trials),
            done=lambda _, trained: _tell(search, study, trained, trials),
        )
        _remove_weights(search, study)  # a killed process may not have done so after the last trial
        done = ranked(study)
        if not done:
            last = trials_of(study, TrialState.FAIL)[-1]
            raise TrainingError(
                f"{search.folder}: none of {trials} trials has finished; the last error: "
                f"{last.user_attrs[ERROR]}"
            )
        best = done[0]
        config = apply(search.config, best.user_attrs[OPTIONS])
        return Found(study, best, config, _test(search, best.number, config))


def trials_of(study: optuna.Study, *states: TrialState) -> list[FrozenTrial]:
    """Returns the trials of a study that are in one of some states, or all."""
    return study.get_trials(deepcopy=False, states=states or None)


def ranked(study: optuna.Study) -> list[FrozenTrial]:
    """Returns the finished trials by their AUC, the best first."""
    finished = trials_of(study, TrialState.COMPLETE)
    return sorted(finished, key=lambda each: (-(each.value or 0.0), each.number))


def _open(search: Search) -> optuna.Study:
    """Opens the study or creates it. Raises CheckpointError if it is damaged or has
    other settings.
    """
    path = search.folder / STUDY
    settings = loads(dumps(search.settings()))
    try:
        # a path within the URL would need several kinds of quotes
        connect = partial(sqlite3.connect, path.absolute())
        storage = optuna.storages.RDBStorage("sqlite://", engine_kwargs={"creator": connect})
        study = optuna.create_study(
            storage=storage, study_name=NAME, direction="maximize", load_if_exists=True
        )
        if SETTINGS not in study.user_attrs:
            study.set_user_attr(SETTINGS, settings)
        before = study.user_attrs[SETTINGS]
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError, RuntimeError) as error:
        raise CheckpointError(f"{path}: damaged or not a search: {error}") from error
    if others := [name for name, value in settings.items() if before.get(name) != value]:
        raise CheckpointError(
            f"{search.folder}: a search with another {', '.join(others)}; name another --out"
        )
    return study


def _ask_all(search: Search, study: optuna.Study, trials: int) -> Iterator[Asked]:
    """Yields the interrupted trials, and then new ones until there are ``trials``."""
    for each in trials_of(study, TrialState.RUNNING):
        yield _ask(search, study, each.number, trials)
    while (number := len(trials_of(study))) < trials:
        yield _ask(search, study, number, trials)


def _ask(search: Search, study: optuna.Study, number: int, trials: int) -> Asked:
    """Chooses the options of a trial, unless that is done, by the trials that have finished.

    The sampler is seeded by the number of the trial, so that an interruption does not change what
    it chooses.
    """
    seed = int(np.random.SeedSequence([search.config.training.seed, number]).generate_state(1)[0])
    study.sampler = optuna.samplers.TPESampler(seed=seed)
    trial = study.ask() if number == len(trials_of(study)) else _trial(study, number)
    options = trial.user_attrs.get(OPTIONS) or {
        name: each.suggest(trial, name) for name, each in search.space.items()
    }
    trial.set_user_attr(OPTIONS, options)
    _say(f"{_title(number, trials)}: {shown(options)}")
    return Asked(number, options, trials_of(study, TrialState.COMPLETE))


def _tell(search: Search, study: optuna.Study, trained: Trained, trials: int) -> None:
    """Tells the study the AUC of a trial, that it was pruned, or that it failed; removes weights no
    longer needed.
    """
    trial = _trial(study, trained.number)
    title = _title(trained.number, trials)
    # by a process that was killed
    reported = trials_of(study)[trained.number].intermediate_values
    for number, value in trained.values.items():
        if number not in reported:
            trial.report(value, number)
    if trained.error is not None:
        trial.set_user_attr(ERROR, trained.error)
        study.tell(trial, state=TrialState.FAIL)
        _say(f"{title}: failed: {trained.error}")
    elif trained.best_epoch is None:
        study.tell(trial, state=TrialState.PRUNED)
        _say(f"{title}: pruned: below the median of the trials before")
    else:
        value = trained.values[search.validation(trained.best_epoch)]
        study.tell(trial, value)
        best = ranked(study)[0]
        _say(
            f"{title}: AUC {_percent(value)} in epoch {trained.best_epoch:g}; best "
            f"{_percent(best.value)} of trial {best.number:04d}"
        )
    _remove_weights(search, study)


def _trial(study: optuna.Study, number: int) -> Trial:
    return Trial(study, trials_of(study)[number]._trial_id)


def _title(number: int, trials: int) -> str:
    return f"trial {number:04d} ({number + 1} of {trials})"


def _remove_weights(search: Search, study: optuna.Study) -> None:
    """Removes the weights and snapshots of all finished trials, but for the weights of the best."""
    best = ranked(study)[:1]
    for each in trials_of(study):
        if each.state == TrialState.RUNNING:
            continue
        folder = search.run_folder(each.number)
        remove_snapshots(folder / LAST)
        if [each.number] != [trial.number for trial in best]:
            remove_weights(folder / BEST)


def _test(search: Search, number: int, config: RunConfig) -> TaskMetrics:
    """Evaluates the best trial on the test split, which no other trial reads."""
    folder = search.run_folder(number)
    model = earlier(folder, config.model.name).model
    metrics = evaluate(
        model,
        search.data.load("test"),
        config.training.eval_batch_size,
        gauc_weights=config.training.gauc_weights,
    )
    write_json(folder / TEST, metrics)
    return metrics


def shown(options: dict[str, Any]) -> str:
    """Formats options for a line."""
    values = {
        name: f"{value:.4g}" if isinstance(value, float) else dumps(value)
        for name, value in options.items()
    }
    return ", ".join(f"{name} = {value}" for name, value in values.items())


def _percent(value: float | None) -> str:
    return f"{100 * (value or 0.0):.2f}"


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
