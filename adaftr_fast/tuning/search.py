"""A search: trains one run after the other, with options that Optuna chooses by the runs before."""

from __future__ import annotations

import dataclasses
import sqlite3
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from adaftr_fast._files import replace_file
from adaftr_fast._json import dumps, loads
from adaftr_fast._locks import writing_folder
from adaftr_fast.config import RunConfig
from adaftr_fast.data.dataset.loader import PreparedData
from adaftr_fast.errors import CheckpointError, ConfigError, DivergedError, TrainingError
from adaftr_fast.runs.run import fit_one
from adaftr_fast.runs.trained import load_earlier
from adaftr_fast.training.checkpoint.progress import record_of
from adaftr_fast.training.checkpoint.run_snapshots import LAST
from adaftr_fast.training.checkpoint.snapshots import remove_snapshots
from adaftr_fast.training.checkpoint.weights import remove_weights
from adaftr_fast.training.evaluation import TaskMetrics, evaluate, mean_auc
from adaftr_fast.training.sharding import check_replicated
from adaftr_fast.training.trainer import BEST, TEST, StopRun
from adaftr_fast.tuning.space import Space, apply

STUDY, TRIALS = "study.db", "trials"  # names in the folder
NAME, SETTINGS, OPTIONS, ERROR = "tune", "settings", "options", "error"  # names in the study
STARTUP_TRIALS, WARMUP_EPOCHS = 5, 1  # finished trials before the first is pruned; epochs of a trial before it is


@dataclass(frozen=True)
class Search:
    """What a search varies and measures.

    Attributes:
        data: the prepared data.
        config: the configuration; the options of ``space`` replace those of the same name.
        space: the options that vary.
        folder: the folder of the search.
        task: the task whose validation AUC counts; None for the mean over tasks.
    """

    data: PreparedData
    config: RunConfig
    space: Space
    folder: Path
    task: str | None = None

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
        return {"configuration": self.config.identity(), "space": space, "data": data, "task": self.task}

    def run_folder(self, trial: FrozenTrial | Trial) -> Path:
        """Returns the folder of a trial's run."""
        return self.folder / TRIALS / f"{trial.number:04d}"


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


def tune(search: Search, trials: int) -> Found:
    """Trains until the search has ``trials`` trials, and evaluates the best one on the test split.

    The same call continues an interrupted search, and the interrupted trial in its epoch. With one seed
    (``config.training.seed``) and one machine the trials are the same, however often the search is interrupted. The
    weights of other trials than the best are removed.

    Args:
        search: the search.
        trials: the number of trials, including those of earlier calls.

    Raises:
        TrainingError: no trial has finished, or training cannot go on for another reason than the options of a trial.
            The same call resumes the trial.
        CheckpointError: the folder holds another search, or a damaged one.
        BusyError: another process writes the folder.
        KeyboardInterrupt: Ctrl-C or SIGTERM ended training.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with writing_folder(search.folder):
        study = _open(search)
        while (trial := _next(study, trials, search.config.training.seed)) is not None:
            _run(search, study, trial, trials)
            _remove_weights(search, study)
        _remove_weights(search, study)  # a killed process may not have done so after the last trial
        done = _complete(study)
        if not done:
            errors = [each.user_attrs[ERROR] for each in study.get_trials(deepcopy=False) if ERROR in each.user_attrs]
            raise TrainingError(f"{search.folder}: none of {trials} trials has finished; the last error: {errors[-1]}")
        best = best_trials(done)[0]
        return Found(study, best, apply(search.config, best.user_attrs[OPTIONS]), _test(search, best))


def best_trials(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Sorts finished trials by their AUC, the best first."""
    return sorted(trials, key=lambda each: (-(each.value or 0.0), each.number))


def _complete(study: optuna.Study) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])


def _open(search: Search) -> optuna.Study:
    """Opens the study or creates it. Raises CheckpointError if it is damaged or has other settings."""
    path, settings = search.folder / STUDY, search.settings()
    warmup = (WARMUP_EPOCHS + 1) * search.config.training.validations
    pruner = optuna.pruners.MedianPruner(n_startup_trials=STARTUP_TRIALS, n_warmup_steps=warmup)
    try:
        connect = partial(sqlite3.connect, path.absolute())  # a path within the URL would need several kinds of quotes
        storage = optuna.storages.RDBStorage("sqlite://", engine_kwargs={"creator": connect})
        study = optuna.create_study(
            storage=storage, study_name=NAME, direction="maximize", pruner=pruner, load_if_exists=True
        )
        if SETTINGS not in study.user_attrs:
            study.set_user_attr(SETTINGS, loads(dumps(settings)))
        before = study.user_attrs[SETTINGS]
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError, RuntimeError) as error:
        raise CheckpointError(f"{path}: damaged or not a search: {error}") from error
    if others := [name for name, value in loads(dumps(settings)).items() if before.get(name) != value]:
        raise CheckpointError(f"{search.folder}: a search with another {', '.join(others)}; name another --out")
    return study


def _next(study: optuna.Study, trials: int, seed: int) -> Trial | None:
    """Returns the interrupted trial or a new one; None if there are ``trials`` already.

    The sampler is seeded by the number of the trial, so that an interruption does not change what it chooses.
    """
    known = study.get_trials(deepcopy=False)
    unfinished = [each for each in known if each.state == TrialState.RUNNING]
    if not unfinished and len(known) >= trials:
        return None
    number = unfinished[0].number if unfinished else len(known)
    study.sampler = optuna.samplers.TPESampler(seed=int(np.random.SeedSequence([seed, number]).generate_state(1)[0]))
    return Trial(study, unfinished[0]._trial_id) if unfinished else study.ask()


def _run(search: Search, study: optuna.Study, trial: Trial, trials: int) -> None:
    """Trains one run and tells the study its AUC, that it was pruned, or that it failed."""
    title = f"trial {trial.number:04d} ({trial.number + 1} of {trials})"
    options = trial.user_attrs.get(OPTIONS) or {name: each.suggest(trial, name) for name, each in search.space.items()}
    trial.set_user_attr(OPTIONS, options)
    _say(f"{title}: {shown(options)}")
    try:
        config = apply(search.config, options)
        on_epoch = partial(_report, search, study, trial)
        fitted = fit_one(search.data, config, search.run_folder(trial), on_epoch=on_epoch)
    except StopRun:
        study.tell(trial, state=TrialState.PRUNED)
        _say(f"{title}: pruned: below the median of the trials before")
    except (ConfigError, DivergedError) as error:  # of these options; any other error would end all trials alike
        trial.set_user_attr(ERROR, str(error))
        study.tell(trial, state=TrialState.FAIL)
        _say(f"{title}: failed: {error}")
    else:
        epoch = fitted.result.best_epoch
        study.tell(trial, search.auc(record_of(fitted.result.epochs, epoch)))
        fitted.trainer.finish()
        best = best_trials(_complete(study))[0]
        value = _complete(study)[-1].value
        _say(
            f"{title}: AUC {_percent(value)} in epoch {epoch:g}; best {_percent(best.value)} of trial {best.number:04d}"
        )


def _report(search: Search, study: optuna.Study, trial: Trial, record: dict[str, Any]) -> None:
    """Reports the AUC of a validation once. Raises StopRun if it is below the median of the trials before."""
    number = round(record["epoch"] * search.config.training.validations)
    if number not in study.get_trials(deepcopy=False)[trial.number].intermediate_values:
        trial.report(search.auc(record), number)
    if trial.should_prune():
        raise StopRun


def _remove_weights(search: Search, study: optuna.Study) -> None:
    """Removes the weights and snapshots of all finished trials, but for the weights of the best."""
    best = best_trials(_complete(study))[:1]
    for each in study.get_trials(deepcopy=False):
        folder = search.run_folder(each)
        remove_snapshots(folder / LAST)
        if [each.number] != [trial.number for trial in best]:
            remove_weights(folder / BEST)


def _test(search: Search, best: FrozenTrial) -> TaskMetrics:
    """Evaluates the best trial on the test split, which no other trial reads."""
    folder, config = search.run_folder(best), search.config
    name = apply(config, best.user_attrs[OPTIONS]).model.name
    metrics = evaluate(load_earlier(folder, name).model, search.data.load("test"), config.training.eval_batch_size)
    replace_file(folder / TEST, (dumps(metrics, indent=2) + "\n").encode())
    return metrics


def shown(options: dict[str, Any]) -> str:
    """Formats options for a line."""
    values = {name: f"{value:.4g}" if isinstance(value, float) else dumps(value) for name, value in options.items()}
    return ", ".join(f"{name} = {value}" for name, value in values.items())


def _percent(value: float | None) -> str:
    return f"{100 * (value or 0.0):.2f}"


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
