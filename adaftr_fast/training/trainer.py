"""The training loop. Read it from top to bottom: fit, train_epoch, train_step.

The trainer works with any model that has ``loss(batch)``, which returns the weighted terms of the loss to minimize,
``model(ids)``, which returns logits [B, T], and ``task_names``, the names of the T tasks.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adaftr_fast.config import OptimizerConfig, TrainingConfig
from adaftr_fast.data.dataset.batch import Batch
from adaftr_fast.data.dataset.loader import Share, Split
from adaftr_fast.distributed.ranks import Ranks
from adaftr_fast.errors import DivergedError, TrainingError
from adaftr_fast.models.base import MultiTaskModel
from adaftr_fast.ops.embedding.lookup import raise_bad_ids
from adaftr_fast.training.checkpoint.best import BestWeights
from adaftr_fast.training.checkpoint.exchange import load_state
from adaftr_fast.training.checkpoint.files import check_shared_folder, on_rank_zero
from adaftr_fast.training.checkpoint.progress import Progress, RunningMean, epochs_after, record_of
from adaftr_fast.training.checkpoint.run_snapshots import RunSnapshots
from adaftr_fast.training.checkpoint.state import capture, restore, sharded_state
from adaftr_fast.training.checkpoint.weights import Description, remove_checkpoint
from adaftr_fast.training.device.feed import to_device
from adaftr_fast.training.device.memory import memory_errors
from adaftr_fast.training.evaluation import diagnose, evaluate, mean_auc, spread
from adaftr_fast.training.interrupt import Interrupt, SharedInterrupt, deferred_interrupt
from adaftr_fast.training.logger import EpochLogger, shown
from adaftr_fast.training.result import PICTURE, REPORT
from adaftr_fast.training.sharding import check_equal_sync_steps, check_sharding
from adaftr_fast.training.stepper import Stepper, not_finite

BEST, TEST = "best", "test.json"  # names in the run folder
OnEpoch = Callable[[dict[str, Any]], None]
DEAD_MARGIN = 0.005  # a tower whose validation AUC is this close to 0.5 predicts a constant or noise


class StopRun(Exception):
    """Raised by ``on_epoch`` to end a run early, which is no failure in its trackers."""


@dataclass
class Result:
    """The result of ``fit``. The model holds the best weights.

    Attributes:
        epochs: one record per validation, as in metrics.jsonl. ``epoch`` is the number of epochs trained, an int after
            whole epochs unless ``TrainingConfig.validate_every`` is less than 1.
        best_epoch: the ``epoch`` of the best weights; 0 if training was interrupted before the first validation.
        interrupted: the number of the signal (Ctrl-C or SIGTERM) that ended training; 0 without a signal.
        dead_tasks: tasks whose validation AUC is 0.5 within ``DEAD_MARGIN``.
    """

    epochs: list[dict[str, Any]] = field(default_factory=list)
    best_epoch: float = 0
    interrupted: int = 0
    dead_tasks: list[str] = field(default_factory=list)


class Trainer:
    """Minimizes a model's loss on ``train`` and keeps the weights with the best mean AUC on ``validation``.

    Args:
        model: the model to train.
        train: the training split.
        validation: the validation split.
        optimizer: the optimizer options.
        config: the training options.
        folder: the run folder, for metrics.jsonl, the checkpoint ``best/`` and, until ``finish``, the snapshots
            ``last/``. None writes no files. The results of an earlier run in it are removed when this
            run has been validated for the first time.
        about: the description of the run in checkpoints and snapshots. None writes neither.
        ranks: the ranks that train together, each on its rows of every batch. Rank 0 writes files and logs, and each
            rank its rows of sharded tables. A run may resume on another number of ranks.
        on_epoch: a function that is called with the record of every validation once it is saved, and again with that
            of the last one if a run resumes after it. ``fit`` raises what it raises, and the run can be resumed;
            ``StopRun`` ends its trackers as finished.

    Raises:
        CheckpointError: the tables are sharded and a rank does not see ``folder``.
        TrainingError: the training split is smaller than a batch, an epoch has fewer steps than validations, a batch
            cannot be divided equally among ranks and parts, or not between the blocks of ``contrast_rows``, or sharded
            tables do not support an option.
    """

    def __init__(
        self,
        model: MultiTaskModel,
        train: Split,
        validation: Split,
        *,
        optimizer: OptimizerConfig,
        config: TrainingConfig,
        folder: Path | None = None,
        about: Description | None = None,
        ranks: Ranks | None = None,
        on_epoch: OnEpoch | None = None,
    ) -> None:
        if len(train) < config.batch_size:
            raise TrainingError(
                f"training.batch_size: {len(train)} training rows are fewer than a batch of {config.batch_size}"
            )
        if len(train) // config.batch_size < config.validations:
            raise TrainingError(
                f"training.validate_every: the {len(train) // config.batch_size} steps of an epoch are fewer than its "
                f"{config.validations} validations"
            )
        check_sharding(optimizer, config, ranks)
        if config.tables == "torchrec" and (folder is None or about is None):
            raise TrainingError("trainer: sharded tables need a folder for the best weights, and about")
        self.ranks = ranks
        self.is_rank_zero = ranks is None or ranks.rank == 0
        self.share = _share(config, ranks, model)
        if ranks is not None:
            check_equal_sync_steps(config, ranks)
        self.is_sharded = config.tables == "torchrec"
        self.snapshots: RunSnapshots | None = None
        best: Path | None = None
        if folder is not None and about is not None and (self.is_rank_zero or self.is_sharded):
            sharing = ranks if self.is_sharded else None  # the ranks that share the files of the state
            if sharing is not None:
                check_shared_folder(folder, sharing, "with training.tables = torchrec every rank writes its rows")
            self.snapshots = RunSnapshots(folder, about, len(train), config.checkpoint_seconds, sharing)
            best = folder / BEST
        self.best_weights = BestWeights(model, best, about, ranks)
        if not self.is_rank_zero:
            folder, config = None, replace(config, progress=False, trackers=[])
        self.model = model
        self.train = train
        self.validation = validation
        self.stepper = Stepper(model, optimizer, config, ranks)
        self.logger = EpochLogger(folder, config)
        self.config = config
        self.folder = folder
        self.on_epoch = on_epoch
        self._parameters = {} if about is None else about.config.flat()
        self.progress = Progress()
        self.means = RunningMean()
        self._resumed = False
        self._ends_again = False
        self._batches: Iterator[Batch] | None = None  # the rest of this epoch's
        self._checked = 0  # steps of this epoch whose losses are known to be finite

    def resume(self) -> bool:
        """Resumes the unfinished run in ``folder``. ``fit`` then ends with the bits of an uninterrupted run.

        Returns:
            Whether there is an unfinished run.

        Raises:
            CheckpointError: the unfinished run has other options or data, or no snapshot can be read.
            TrainingError: a tracker cannot be opened.
        """
        found = load_state(self.ranks, self.snapshots, sharded_state(self.model, self.stepper.optimizers))
        if found is None:
            return False
        self.progress, tensors, sums = found
        restore(self.model, self.stepper.optimizers, tensors)
        self.means = RunningMean(sums, self.progress.new_steps)
        self._resumed = True
        self._ends_again = not self.progress.new_steps and bool(self.progress.epochs)  # it may have been killed before
        self._start_logger(self.progress.epochs[: len(self.progress.epochs) - self._ends_again])
        return True

    def finish(self) -> None:
        """Ends the log and removes the snapshots, after all results have been written or to restart the run."""
        self.logger.close()
        if self.snapshots is not None:
            self.snapshots.discard()

    def fit(self) -> Result:
        """Trains until validation stops improving, for ``max_epochs``, or until Ctrl-C or SIGTERM.

        An interrupted run can be resumed.

        Raises:
            DivergedError: a loss or prediction is not finite. On a GPU the losses are checked every
                ``config.sync_steps`` steps and before anything is saved, so the weights have been updated by then, but
                no saved ones have.
            TrainingError: a task has a single class in the validation split, a tracker cannot be opened, or the memory
                does not suffice.
            IndexError: on a GPU, an id was out of range in a step since the last check.
            CheckpointError: a checkpoint or snapshot cannot be written.
        """
        if not self._resumed:
            self._start_logger([])
            torch.manual_seed(self.config.seed)
            if self.ranks is not None:
                restore(self.model, [], self.ranks.tensors_from_rank_zero(capture(self.model, [])))
        try:
            if self._ends_again:
                self._publish(self.progress.epochs[-1])
            interrupted = self._train()
        except BaseException:
            self.logger.close(failed=True)
            raise
        finally:
            if self.snapshots is not None:
                self.snapshots.close()
        if interrupted:
            self.logger.close(failed=True)
        result = Result(self.progress.epochs, self.progress.best_epoch, interrupted)
        self._restore_best(result)
        return result

    def _train(self) -> int:
        """Trains until ``fit`` ends; returns the number of the signal that ended training, or 0."""
        with deferred_interrupt() as interrupt:
            if self.ranks is not None:
                interrupt = SharedInterrupt(interrupt, self.ranks)
            while not self._is_done() and not interrupt:
                record = self.train_epoch(self.progress.epoch, interrupt)
                if not interrupt:
                    self._end_epoch(record)
                    interrupt.synchronize()
            if interrupt:
                self._save_progress()
        return interrupt.signum or 0

    def _is_done(self) -> bool:
        done, per_epoch = len(self.progress.epochs), self.config.validations
        best = round(self.progress.best_epoch * per_epoch)
        return done >= self.config.max_epochs * per_epoch or done - best >= self.config.patience * per_epoch

    def _last_step(self) -> int:
        """Returns the step of this epoch after which the model is validated next."""
        per_epoch = self.config.validations
        number = len(self.progress.epochs) % per_epoch + 1
        return self._steps_per_epoch * number // per_epoch

    @property
    def _steps_per_epoch(self) -> int:
        return len(self.train) // self.config.batch_size

    def train_epoch(self, epoch: int, interrupt: Interrupt) -> dict[str, Any]:
        """Trains an epoch, or until the next validation in it, from the step where it stands.

        Returns:
            The record of this time, with mean losses and speed.
        """
        self.model.train()
        progress = self.progress
        size = self.config.batch_size
        last = self._last_step()
        if self._batches is None:
            order = {"seed": self.config.seed, "window": self.config.shuffle_rows}
            self._batches = self.train.shuffled(size, epoch=epoch, first_batch=progress.step, share=self.share, **order)
        before = progress.seconds
        start = time.perf_counter()
        self._checked = progress.step
        with self.logger.progress_bar(epoch, self._steps_per_epoch * size, progress.step * size) as bar:
            for batch in to_device(islice(self._batches, last - progress.step), self.stepper.device):
                self.means.add(self.train_step(batch, epoch, progress.step + 1))
                progress.step += 1
                progress.total_steps += 1
                progress.seconds = before + time.perf_counter() - start
                bar.update(size)
                if progress.step % self.config.sync_steps == 0:
                    interrupt.synchronize()
                    bar.set_postfix_str(shown(self._checked_means()), refresh=False)
                if interrupt:
                    break
                if self._is_due():
                    self._save_progress(continues=True)
        if progress.step == self._steps_per_epoch:
            self._batches = None
        interrupt.synchronize()
        means = self._checked_means()
        progress.seconds = before + time.perf_counter() - start  # now that the device has done all steps
        speed = progress.new_steps * size / progress.seconds
        trained = epochs_after(len(progress.epochs) + 1, self.config.validations)
        return {"epoch": trained, "seconds": progress.seconds, "samples_per_s": speed, "train": means}

    def train_step(self, batch: Batch, epoch: int, step: int) -> dict[str, Tensor]:
        """Updates every parameter once; returns the loss terms."""
        try:
            done = self.progress.total_steps
            return self.stepper.step(batch, done + 1, done / self._steps_per_epoch)
        except TrainingError as error:
            raise type(error)(f"epoch {epoch}, step {step}: {error}") from error
        except IndexError as error:
            first = step if self.stepper.reads_losses else self._checked + 1  # a GPU reports it some steps later
            raise IndexError(f"{_steps(epoch, first, step)}: {error}") from error

    def _checked_means(self) -> dict[str, float]:
        """Returns the mean losses of the epoch after checking the steps since the last check.

        Raises:
            DivergedError: a loss is not finite. A sum stays so, whatever is added to it.
            IndexError: an id was out of range on a GPU.
        """
        means = self.means.means()
        first = self._checked + 1
        last = self.progress.step
        steps = _steps(self.progress.epoch, first, last)
        try:
            raise_bad_ids(self.stepper.device)  # the device has run the look-ups, since the means are read
        except IndexError as error:
            raise IndexError(f"{steps}: {error}") from error
        if not all(map(math.isfinite, means.values())):
            raise DivergedError(f"{steps}: {not_finite(means)}")
        self._checked = last
        return means

    def _end_epoch(self, record: dict[str, Any]) -> None:
        """Validates and saves. If the run is killed between any two lines, it does the rest on resuming."""
        with memory_errors(self.stepper.device, "lower training.eval_batch_size"):
            self._validate(record)
        self.progress.add(record, ends_epoch=self.progress.step == self._steps_per_epoch)
        self.means = RunningMean()
        if mean_auc(record["validation"]) > self.progress.best_auc:
            self.progress.best_epoch = record["epoch"]
            self.progress.best_auc = mean_auc(record["validation"])
        self._save_progress()  # first, so that an earlier run's results are removed only after this run's are saved
        self._publish(record)

    def _publish(self, record: dict[str, Any]) -> None:
        """Logs the last validation, saves its weights if they are the best, and calls ``on_epoch``."""
        self._log(record)
        if self.progress.best_epoch == record["epoch"]:
            self._save_best()
        if self.on_epoch is None:
            return
        try:
            self.on_epoch(record)
        except StopRun:
            self.logger.close()
            raise

    def _validate(self, record: dict[str, Any]) -> None:
        """Adds the validation metrics and the quantiles of the diagnostics to an epoch's record."""
        size = self.config.eval_batch_size
        record["validation"] = evaluate(self.model, self.validation, size, self.ranks)
        for task, metrics in record["validation"].items():
            if np.isnan(metrics["auc"]):
                raise TrainingError(f"task {task}: expected two classes in the validation split, got a single class")
        values = diagnose(self.model, self.validation, size, self.ranks)
        record["diagnostics"] = {name: spread(each) for name, each in values.items()}

    def _is_due(self) -> bool:
        """Returns whether to save a snapshot now. Sharded tables are saved by all ranks, at synchronization points."""
        if self.snapshots is None or (self.is_sharded and self.progress.step % self.config.sync_steps):
            return False
        return self.snapshots.due()

    def _save_progress(self, continues: bool = False) -> None:
        """Saves a snapshot, which is on disk on return, or later if training ``continues``.

        At the end of an epoch it is not in the background, because the log and the best weights must come after it.
        """
        self._checked_means()  # a snapshot never holds the weights after a loss that is not finite
        if self.snapshots is not None:
            save = self.snapshots.start if continues else self.snapshots.save
            model, optimizers = self.model, self.stepper.optimizers
            save(self.progress, capture(model, optimizers), self.means.sums, sharded_state(model, optimizers))

    def _save_best(self) -> None:
        self.best_weights.save(record_of(self.progress.epochs, self.progress.best_epoch)["validation"])

    def _restore_best(self, result: Result) -> None:
        if not result.best_epoch:  # interrupted before the first validation
            return
        self.best_weights.restore()
        best = record_of(result.epochs, result.best_epoch)["validation"]
        result.dead_tasks = [task for task, each in best.items() if abs(each["auc"] - 0.5) < DEAD_MARGIN]
        for task in result.dead_tasks if self.is_rank_zero else ():
            warnings.warn(
                f"task {task}: validation AUC {best[task]['auc']:.4f} is close to 0.5: its tower may be dead, "
                "try another training.seed",
                RuntimeWarning,
                stacklevel=3,
            )

    def _start_logger(self, logged: list[dict[str, Any]]) -> None:
        """Opens the trackers, to which an interrupted process has logged some records. All ranks raise an error."""
        on_rank_zero(self.ranks, lambda: self.logger.start(self._parameters, self._resumed, logged))

    def _log(self, record: dict[str, Any]) -> None:
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            if len(self.progress.epochs) == 1:  # an earlier run's results would look like this run's
                for name in (TEST, REPORT, PICTURE):
                    (self.folder / name).unlink(missing_ok=True)
                remove_checkpoint(self.folder / BEST)
        self.logger.log_epoch(self.progress.epochs, self.progress.best_epoch)


def _steps(epoch: int, first: int, last: int) -> str:
    return f"epoch {epoch}, steps {first} to {last}" if first < last else f"epoch {epoch}, step {last}"


def _share(config: TrainingConfig, ranks: Ranks | None, model: MultiTaskModel) -> Share | None:
    """Returns this rank's rows of a batch: an equal share of each part, so a part has the same rows as on one rank."""
    size = 1 if ranks is None else ranks.size
    run, rest = divmod(config.batch_size, size * config.accumulate)
    if rest:
        raise TrainingError(
            f"training.batch_size: expected a multiple of {size} ranks times training.accumulate = "
            f"{config.accumulate}, got {config.batch_size}"
        )
    if size * config.accumulate > 1 and run % model.rows_together:
        raise TrainingError(
            f"training.batch_size: expected a multiple of {size} ranks times training.accumulate = {config.accumulate} "
            f"times {model.rows_together} rows that the loss reads together (model.contrast_rows), "
            f"got {config.batch_size}"
        )
    return None if ranks is None else Share(ranks.rank, ranks.size, run)
