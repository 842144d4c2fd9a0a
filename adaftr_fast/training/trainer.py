"""The training loop. Read it from top to bottom: fit, train_epoch, train_step.

The trainer works with any model that has ``loss(batch)``, which returns the weighted terms of the
loss to minimize, ``model(ids)``, which returns logits [B, T], and ``task_names``, the names of the
T tasks.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from adaftr_fast.config import OptimizerConfig, TrainingConfig
from adaftr_fast.data.dataset.batch import Batch
from adaftr_fast.data.dataset.loader import Split
from adaftr_fast.distributed.ranks import ALONE, Ranks
from adaftr_fast.errors import CheckpointError, DivergedError, TrainingError
from adaftr_fast.models.base import MultiTaskModel
from adaftr_fast.ops.embedding.lookup import raise_bad_ids
from adaftr_fast.training.checkpoint.progress import Progress, RunningMean, epochs_after
from adaftr_fast.training.checkpoint.state import capture, restore
from adaftr_fast.training.device import memory_errors, to_device
from adaftr_fast.training.evaluation import (
    check_defined,
    check_monitor,
    examine,
    monitored,
    spread,
)
from adaftr_fast.training.files import RunFiles, shown
from adaftr_fast.training.interrupt import Interrupt, deferred_interrupt
from adaftr_fast.training.sharding import check_sharding, share_of
from adaftr_fast.training.stepper import Stepper, not_finite
from adaftr_fast.training.trained import Run

OnEpoch = Callable[[dict[str, Any]], bool | None]


class StopRun(Exception):
    """Raised by ``on_epoch`` to end a run early, which is not a failure in its trackers."""


class Trainer:
    """Minimizes a model's loss on ``train`` and keeps the weights with the best metric on
    ``validation``.

    The metric is ``config.monitor``, by default the mean AUC over tasks.

    Args:
        model: the model to train.
        train: the training split.
        validation: the validation split.
        optimizer: the optimizer options.
        config: the training options.
        files: what the run keeps. By default, the best weights in memory.
        ranks: the ranks that train together, each on its rows of every batch.
        on_epoch: a function that is called with the record of every validation once it is saved,
            and again with that of the last one if a run resumes after it. If it returns True (of
            several ranks: on rank 0), training stops as if it no longer improved. ``fit`` raises
            what it raises, and the run can be resumed; ``StopRun`` ends its trackers as finished.
        needs_metrics: whether it is an error if an AUC or the metric is undefined on
            ``validation``, as an AUC is if the rows have a single class. Otherwise the weights of
            the last validation are the best where the metric is undefined.

    Raises:
        ConfigError: ``config.monitor`` names a task that the model does not have.
        TrainingError: the training split is smaller than a batch, an epoch has fewer steps than
            validations, a batch cannot be divided equally among ranks and parts, or the validation
            split cannot have the metric ``config.monitor``.
    """

    def __init__(
        self,
        model: MultiTaskModel,
        train: Split,
        validation: Split,
        *,
        optimizer: OptimizerConfig,
        config: TrainingConfig,
        files: RunFiles | None = None,
        ranks: Ranks = ALONE,
        on_epoch: OnEpoch | None = None,
        needs_metrics: bool = True,
    ) -> None:
        check_sharding(optimizer, config, ranks)
        check_monitor(config.monitor, model.task_names, validation)
        self.share = share_of(config, len(train), ranks)
        self.model = model
        self.train = train
        self.validation = validation
        self.ranks = ranks
        self.files = files or RunFiles(model, config, ranks=ranks)
        self.stepper = Stepper(model, optimizer, config, ranks)
        self.config = config
        self.on_epoch = on_epoch
        self.needs_metrics = needs_metrics
        self.progress = Progress()
        self.means = RunningMean()
        self._resumed = False
        self._ends_again = False
        self._is_stopped = False  # by on_epoch
        self._batches: Iterator[Batch] | None = None  # the rest of this epoch's
        self._checked = 0  # steps of this epoch whose losses are known to be finite

    def resume(self) -> bool:
        """Resumes the unfinished run of ``files``. ``fit`` then ends with the bits of an
        uninterrupted run.

        Returns:
            Whether there is an unfinished run.

        Raises:
            CheckpointError: the unfinished run has other options or data, or no snapshot can be
                read.
            TrainingError: a tracker cannot be opened.
        """
        found = self.files.load(self.stepper.optimizers)
        if found is None:
            return False
        self.progress, self.means = found
        if self.progress.step > self._steps_per_epoch:
            raise CheckpointError(
                f"{self.files.folder}: the unfinished run must be at a step of its epoch, 0 to "
                f"{self._steps_per_epoch}, got {self.progress.step}"
            )
        self._resumed = True
        # it may have been killed before
        self._ends_again = not self.progress.new_steps and bool(self.progress.epochs)
        logged = self.progress.epochs[:-1] if self._ends_again else self.progress.epochs
        self.files.start(logged, resumed=True)
        return True

    @property
    def result(self) -> Run:
        """The validations so far. The model holds the best weights when ``fit`` has returned."""
        progress, files = self.progress, self.files
        return Run(files.name, progress.epochs, progress.best_epoch, folder=files.folder)

    def fit(self) -> Run:
        """Trains until validation stops improving, for ``max_epochs``, or until Ctrl-C or SIGTERM.

        Returns the result, with the signal that interrupted training. An interrupted run can be
        resumed.

        Raises:
            DivergedError: a loss or prediction is not finite. On a GPU the losses are checked every
                ``config.sync_steps`` steps and before anything is saved, so the weights have been
                updated by then, but no saved ones have.
            TrainingError: a metric is undefined that ``needs_metrics`` asks for, a tracker cannot
                be opened, or the memory does not suffice.
            IndexError: on a GPU, an id was out of range in a step since the last check.
            CheckpointError: a checkpoint or snapshot cannot be written.
        """
        if not self._resumed:
            self.files.start([], resumed=False)
            torch.manual_seed(self.config.seed)
            if not self.ranks.is_alone:
                restore(self.model, [], self.ranks.tensors_from_rank_zero(capture(self.model, [])))
        try:
            if self._ends_again:
                self._publish(self.progress.epochs[-1])
            interrupted = self._train()
        except BaseException:
            self.files.close_trackers(failed=True)
            raise
        finally:
            self.files.close()
        if interrupted:
            self.files.close_trackers(failed=True)
        if self.progress.best_epoch:  # not interrupted before the first validation
            self.files.restore_best()
            self._warn_of_dead_tasks()
        return replace(self.result, interrupted=interrupted)

    def _train(self) -> int:
        """Trains until ``fit`` ends; returns the number of the signal that ended training, or 0."""
        with deferred_interrupt(self.ranks) as interrupt:
            while not self._is_done() and not interrupt:
                record = self.train_epoch(self.progress.epoch, interrupt)
                if not interrupt:
                    self._end_epoch(record)
                    interrupt.synchronize()
            if interrupt:
                self._save_progress()
        return interrupt.signum or 0

    def _is_done(self) -> bool:
        done = len(self.progress.epochs)
        per_epoch = self.config.validations
        best = round(self.progress.best_epoch * per_epoch)
        return (
            self._is_stopped
            or done >= self.config.max_epochs * per_epoch
            or done - best >= self.config.patience * per_epoch
        )

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
            self._batches = self.train.shuffled(
                size,
                seed=self.config.seed,
                epoch=epoch,
                window=self.config.shuffle_rows,
                first_batch=progress.step,
                share=self.share,
            )
        before = progress.seconds
        start = time.perf_counter()
        self._checked = progress.step
        batches = islice(self._batches, last - progress.step)
        rows = self._steps_per_epoch * size
        with self.files.progress_bar(epoch, rows, progress.step * size) as bar:
            for batch in to_device(batches, self.stepper.device):
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
                if self.files.is_due(progress.step):
                    self._save_progress(continues=True)
        if progress.step == self._steps_per_epoch:
            self._batches = None
        interrupt.synchronize()
        means = self._checked_means()
        # now that the device has done all steps
        progress.seconds = before + time.perf_counter() - start
        return {
            "epoch": epochs_after(len(progress.epochs) + 1, self.config.validations),
            "seconds": progress.seconds,
            "samples_per_s": progress.new_steps * size / progress.seconds,
            "train": means,
        }

    def train_step(self, batch: Batch, epoch: int, step: int) -> dict[str, Tensor]:
        """Updates every parameter once; returns the loss terms."""
        try:
            done = self.progress.total_steps
            return self.stepper.step(batch, done + 1, done / self._steps_per_epoch)
        except TrainingError as error:
            raise type(error)(f"epoch {epoch}, step {step}: {error}") from error
        except IndexError as error:
            # a GPU reports it some steps later
            first = step if self.stepper.reads_losses else self._checked + 1
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
            # the device has run the look-ups, since the means are read
            raise_bad_ids(self.stepper.device)
        except IndexError as error:
            raise IndexError(f"{steps}: {error}") from error
        if not all(map(math.isfinite, means.values())):
            raise DivergedError(f"{steps}: {not_finite(means)}")
        self._checked = last
        return means

    def _end_epoch(self, record: dict[str, Any]) -> None:
        """Validates and saves. A run that is killed before the save repeats the steps since the
        last snapshot. If it is killed later, ``fit`` of the resumed run publishes the validation.
        """
        with memory_errors(self.stepper.device, "lower training.eval_batch_size"):
            self._validate(record)
        self.progress.add(record, ends_epoch=self.progress.step == self._steps_per_epoch)
        self.means = RunningMean()
        reached = monitored(record["validation"], self.config.monitor)
        if not reached <= self.progress.best_auc:  # also true for nan
            self.progress.best_epoch = record["epoch"]
            self.progress.best_auc = reached
        # first, so that an earlier run's results are removed only after this run's are saved
        self._save_progress()
        self._publish(record)

    def _publish(self, record: dict[str, Any]) -> None:
        """Logs the last validation, saves its weights if they are the best, and calls
        ``on_epoch``.
        """
        run = self.result
        self.files.log(run)
        if run.best_epoch == record["epoch"]:
            self.files.save_best(run.validation)
        if self.on_epoch is None:
            return
        try:
            stops = bool(self.on_epoch(record))
        except StopRun:
            self.files.close_trackers()
            raise
        self._is_stopped = self.ranks.from_rank_zero(lambda: stops)

    def _validate(self, record: dict[str, Any]) -> None:
        """Adds the validation metrics and the quantiles of the diagnostics to an epoch's record."""
        size = self.config.eval_batch_size
        record["validation"], values = examine(
            self.model, self.validation, size, self.ranks, self.config.gauc_weights
        )
        if self.needs_metrics:
            check_defined(record["validation"], self.config.monitor)
        record["diagnostics"] = {name: spread(each) for name, each in values.items()}

    def _save_progress(self, continues: bool = False) -> None:
        """Saves a snapshot, which is on disk on return, or later if training ``continues``.

        At the end of an epoch it is not in the background, because the log and the best weights
        must come after it.
        """
        self._checked_means()  # a snapshot never holds the weights after a loss that is not finite
        self.files.save(self.progress, self.means, self.stepper.optimizers, continues=continues)

    def _warn_of_dead_tasks(self) -> None:
        run = self.result
        for task in run.dead_tasks if self.files.is_rank_zero else ():
            warnings.warn(
                f"task {task}: validation AUC {run.validation[task]['auc']:.4f} is close to 0.5: "
                "its tower may be "
                "dead, try another training.seed",
                RuntimeWarning,
                stacklevel=3,
            )


def _steps(epoch: int, first: int, last: int) -> str:
    return (
        f"epoch {epoch}, steps {first} to {last}" if first < last else f"epoch {epoch}, step {last}"
    )
