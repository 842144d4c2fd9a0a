"""Training, to be read from top to bottom: fit, train_epoch, train_step.

The trainer knows of a model: ``loss(batch)`` gives already weighted terms whose sum is minimised, ``model(ids)``
gives logits [B, T], ``task_names`` names the columns. It never asks which model it holds.
"""

from __future__ import annotations

import time
import warnings
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from adaftr_fast._json import dumps
from adaftr_fast.data.batch import Batch
from adaftr_fast.data.loader import Split
from adaftr_fast.training.checkpoint import Description, remove_checkpoint, save_checkpoint
from adaftr_fast.training.config import OptimizerConfig, TrainingConfig
from adaftr_fast.training.errors import TrainingError
from adaftr_fast.training.evaluation import TaskMetrics, diagnose, evaluate, mean_auc, spread
from adaftr_fast.training.interrupt import Interrupt, deferred_interrupt
from adaftr_fast.training.optimizers import build_optimizers

METRICS, BEST, TEST = "metrics.jsonl", "best", "test.json"  # inside a run's folder
DEAD_MARGIN = 0.005  # an AUC this close to 0.5 on validation: the tower predicts a constant, or noise


@dataclass
class Result:
    """What ``fit`` leaves besides the model, which holds the best weights.

    Attributes:
        epochs: one record an epoch, as in metrics.jsonl.
        best_epoch: the epoch the weights are of, from 1; 0 when training was interrupted within the first, which
            leaves nothing: no epoch, no checkpoint.
        interrupted: whether Ctrl-C ended it.
        dead_tasks: tasks whose validation AUC is that of guessing.
    """

    epochs: list[dict[str, Any]] = field(default_factory=list)
    best_epoch: int = 0
    interrupted: bool = False
    dead_tasks: list[str] = field(default_factory=list)


class Trainer:
    """Minimises a model's loss on ``train`` and keeps the weights with the best mean AUC on ``validation``.

    Args:
        folder: where metrics.jsonl and the checkpoint ``best/`` go; None writes nothing. A run that is already there
            stays whole until the first epoch of this one is measured, and is then removed, its test.json too.
        about: what the checkpoint says of the run.
    """

    def __init__(
        self,
        model: nn.Module,
        train: Split,
        validation: Split,
        *,
        optimizer: OptimizerConfig,
        config: TrainingConfig,
        folder: Path | None = None,
        about: Description | None = None,
    ) -> None:
        if len(train) < config.batch_size:
            raise TrainingError(f"trainer: {len(train)} training rows are fewer than a batch of {config.batch_size}")
        self.model, self.train, self.validation = model, train, validation
        self.optimizers = build_optimizers(model, optimizer)
        self.config, self.folder, self.about = config, folder, about
        self.best_auc = -np.inf
        self.best_weights: dict[str, Tensor] | None = None

    def fit(self) -> Result:
        """Trains until validation stops improving, ``max_epochs`` or Ctrl-C.

        Raises:
            TrainingError: a loss or prediction that is not finite, or a validation split with a single class of a task.
        """
        torch.manual_seed(self.config.seed)
        result = Result()
        with deferred_interrupt() as interrupt:
            for epoch in range(1, self.config.max_epochs + 1):
                record = self.train_epoch(epoch, interrupt)
                if interrupt:
                    break
                self._validate(record)
                result.epochs.append(record)
                if mean_auc(record["validation"]) > self.best_auc:
                    self._keep(record["validation"])
                    result.best_epoch = epoch
                if epoch - result.best_epoch >= self.config.patience:
                    break
            result.interrupted = bool(interrupt)
        self._restore_best(result)
        return result

    def train_epoch(self, epoch: int, interrupt: Interrupt) -> dict[str, Any]:
        """One pass over the training rows; returns the epoch's record with mean losses and speed."""
        self.model.train()
        steps = len(self.train) // self.config.batch_size
        batches = self.train.shuffled(self.config.batch_size, seed=self.config.seed, epoch=epoch)
        total, start, step = RunningMean(), time.perf_counter(), 0
        with self._progress_bar(epoch, steps) as bar:
            for step, batch in enumerate(batches, start=1):
                total.add(self.train_step(batch, epoch, step))
                bar.update(len(batch))
                if step % 20 == 0:
                    bar.set_postfix_str(total.text(), refresh=False)
                if interrupt:
                    break
        seconds = time.perf_counter() - start
        speed = step * self.config.batch_size / seconds
        return {"epoch": epoch, "seconds": seconds, "samples_per_s": speed, "train": total.means()}

    def train_step(self, batch: Batch, epoch: int, step: int) -> dict[str, Tensor]:
        """Moves every parameter once; returns the loss terms."""
        try:
            terms = self.model.loss(batch)
        except RuntimeError as error:
            diverged = self._not_finite(batch)
            if diverged is None:
                raise
            reason = f"epoch {epoch}, step {step}: {diverged} is not finite; lower optimizer.lr"
            raise TrainingError(reason) from error
        loss = torch.stack(tuple(terms.values())).sum()
        if not loss.isfinite():
            values = ", ".join(f"{name} {term.item():g}" for name, term in terms.items())
            raise TrainingError(f"epoch {epoch}, step {step}: the loss is not finite ({values}); lower optimizer.lr")
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        loss.backward()
        for optimizer in self.optimizers:
            optimizer.step()
        return terms

    @torch.no_grad()
    def _not_finite(self, batch: Batch) -> str | None:
        """Something of the model that is not finite, by which a loss that an op refused to compute is explained."""
        values = dict(self.model.named_parameters()) | {"a logit": self.model(batch.ids)}
        if hasattr(self.model, "diagnostics"):
            values |= self.model.diagnostics(batch)
        return next((name for name, value in values.items() if not value.isfinite().all()), None)

    def _validate(self, record: dict[str, Any]) -> None:
        """Adds validation metrics and the spread of diagnostics to an epoch's record, logs and shows it."""
        size = self.config.eval_batch_size
        record["validation"] = evaluate(self.model, self.validation, size)
        for task, metrics in record["validation"].items():
            if np.isnan(metrics["auc"]):
                raise TrainingError(f"task {task}: the validation split has a single class, so nothing to select by")
        values = diagnose(self.model, self.validation, size)
        record["diagnostics"] = {name: spread(each) for name, each in values.items()}
        self._log(record)
        if self.config.progress:
            tqdm.write(_summary(record))

    def _keep(self, metrics: TaskMetrics) -> None:
        self.best_auc = mean_auc(metrics)
        self.best_weights = {name: value.clone() for name, value in self.model.state_dict().items()}
        if self.folder is not None and self.about is not None:
            save_checkpoint(self.folder / BEST, self.model, replace(self.about, metrics=metrics))

    def _restore_best(self, result: Result) -> None:
        if self.best_weights is None:  # interrupted before the first validation
            return
        self.model.load_state_dict(self.best_weights)
        best = result.epochs[result.best_epoch - 1]["validation"]
        result.dead_tasks = [task for task, each in best.items() if abs(each["auc"] - 0.5) < DEAD_MARGIN]
        for task in result.dead_tasks:
            warnings.warn(
                f"task {task}: validation AUC {best[task]['auc']:.4f} is that of guessing; its tower may be dead, "
                "try another training.seed",
                RuntimeWarning,
                stacklevel=3,
            )

    def _log(self, record: dict[str, Any]) -> None:
        if self.folder is None:
            return
        if record["epoch"] == 1:  # an older run's results would pass for this one's
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / TEST).unlink(missing_ok=True)
            remove_checkpoint(self.folder / BEST)
            (self.folder / METRICS).unlink(missing_ok=True)
        with (self.folder / METRICS).open("a") as file:
            file.write(dumps(record) + "\n")

    def _progress_bar(self, epoch: int, steps: int) -> tqdm:
        return tqdm(
            total=steps * self.config.batch_size,
            desc=f"epoch {epoch}",
            unit=" samples",
            unit_scale=True,
            leave=False,
            disable=not self.config.progress,
        )


class RunningMean:
    """Means of named 0-dim tensors over steps, summed where they are and read only when asked."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._steps = 0

    def add(self, terms: dict[str, Tensor]) -> None:
        for name, term in terms.items():
            value = term.detach().double()
            self._sums[name] = self._sums[name] + value if name in self._sums else value
        self._steps += 1

    def means(self) -> dict[str, float]:
        return {name: total.item() / self._steps for name, total in self._sums.items()}

    def text(self) -> str:
        return ", ".join(f"{name} {mean:.4f}" for name, mean in self.means().items())


def _summary(record: dict[str, Any]) -> str:
    """One line an epoch, AUC and GAUC in points of 100."""
    parts = [f"epoch {record['epoch']}: {record['seconds']:.1f} s, {record['samples_per_s']:,.0f} samples/s"]
    for task, metrics in record["validation"].items():
        group = f", GAUC {100 * metrics['gauc']:.2f}" if "gauc" in metrics else ""
        parts.append(f"{task} AUC {100 * metrics['auc']:.2f}{group}, log-loss {metrics['logloss']:.4f}")
    return " | ".join(parts)
