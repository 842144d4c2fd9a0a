"""What a run keeps: its log, its best weights, and the snapshots from which it resumes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adaftr_fast.config import TrainingConfig
from adaftr_fast.distributed.ranks import Ranks
from adaftr_fast.errors import TrainingError
from adaftr_fast.models.base import MultiTaskModel
from adaftr_fast.training.checkpoint.files import check_shared_folder, on_rank_zero, read_local_rows
from adaftr_fast.training.checkpoint.progress import Progress, RunningMean
from adaftr_fast.training.checkpoint.run_snapshots import Found, RunSnapshots
from adaftr_fast.training.checkpoint.state import capture, restore, sharded_state, sharded_weights
from adaftr_fast.training.checkpoint.weights import (
    Description,
    open_checkpoint,
    open_on_all_ranks,
    remove_checkpoint,
    save_checkpoint,
)
from adaftr_fast.training.evaluation import TaskMetrics
from adaftr_fast.training.logger import EpochLogger
from adaftr_fast.training.result import PICTURE, REPORT, TrainedRun

BEST, TEST = "best", "test.json"  # names in the run folder


class RunFiles:
    """Keeps the log, the best weights and the snapshots of a run. Rank 0 writes, and each rank its sharded rows.

    Args:
        model: the model.
        config: the training options.
        folder: the run folder, for metrics.jsonl, the checkpoint ``best/`` and, until ``finish``, the snapshots
            ``last/``. The results of an earlier run in it are removed when this run has been validated for the first
            time. None writes no files and keeps the best weights in memory.
        about: the description of the run in checkpoints and snapshots; required with ``folder``.
        rows: the number of rows of the training split; required with ``folder``.
        ranks: the ranks that train together. A run may resume on another number of ranks.

    Raises:
        CheckpointError: the tables are sharded and a rank does not see ``folder``.
        TrainingError: the tables are sharded and there is no folder for their best weights, or a folder is given
            without ``about`` or ``rows``.
    """

    def __init__(
        self,
        model: MultiTaskModel,
        config: TrainingConfig,
        folder: Path | None = None,
        about: Description | None = None,
        *,
        rows: int | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        self.model = model
        self.ranks = ranks
        self.is_rank_zero = ranks is None or ranks.is_rank_zero
        self.name = "" if about is None else about.config.model.name
        self._parameters = {} if about is None else about.config.flat()
        self._sharding = ranks if config.tables == "torchrec" else None  # the ranks that share the files of the state
        if self._sharding is not None:
            if folder is None:
                raise TrainingError("trainer: sharded tables need a folder for the best weights")
            check_shared_folder(folder, self._sharding, "with training.tables = torchrec every rank writes its rows")
        if not self.is_rank_zero:
            config = replace(config, progress=False)
        self._sync_steps = config.sync_steps
        self.folder = folder if self.is_rank_zero else None
        self.logger = EpochLogger(self.folder, config)
        self.about = about
        self.snapshots: RunSnapshots | None = None
        self.best: Path | None = None  # the folder of the best weights, where this rank writes some
        self._in_memory: dict[str, Tensor] | None = None
        if folder is None:
            return
        if about is None or rows is None:
            raise TrainingError("trainer: files in a folder need about and rows, got None")
        if self.is_rank_zero or self._sharding is not None:
            self.snapshots = RunSnapshots(folder, about, rows, config.checkpoint_seconds, self._sharding)
            self.best = folder / BEST

    def load(self, optimizers: Sequence[torch.optim.Optimizer]) -> tuple[Progress, RunningMean] | None:
        """Restores the newest snapshot, on all ranks. Returns its progress and running means; None without one.

        Raises:
            CheckpointError: the unfinished run has other options or data, or no snapshot can be read.
        """
        found: tuple[Progress, Mapping[str, Tensor], dict[str, Tensor]] | None
        if self.ranks is not None and self._sharding is None:
            found = self._from_rank_zero(self.ranks)
        else:
            own = self._newest()
            if own is not None:
                read_local_rows(own[1], sharded_state(self.model, optimizers))
            found = own
        if found is None:
            return None
        progress, tensors, sums = found
        restore(self.model, optimizers, tensors)
        return progress, RunningMean(sums, progress.new_steps)

    def _newest(self) -> Found | None:
        return None if self.snapshots is None else self.snapshots.load()

    def _from_rank_zero(self, ranks: Ranks) -> tuple[Progress, dict[str, Tensor], dict[str, Tensor]] | None:
        """Returns what the newest snapshot holds, which rank 0 reads and sends to the others."""
        found: Found | None = None  # on rank 0

        def load() -> dict[str, Any] | None:
            nonlocal found
            found = self._newest()
            return found and asdict(found[0])

        progress = ranks.from_rank_zero(load)
        if progress is None:
            return None
        tensors = ranks.tensors_from_rank_zero(found and dict(found[1]))
        return Progress(**progress), tensors, ranks.tensors_from_rank_zero(found and found[2])

    def start(self, logged: list[dict[str, Any]], *, resumed: bool) -> None:
        """Opens the trackers, to which an interrupted process has logged some records. All ranks raise an error."""
        on_rank_zero(self.ranks, lambda: self.logger.start(self._parameters, resumed, logged))

    def is_due(self, step: int) -> bool:
        """Returns whether to save a snapshot now. Sharded tables are saved by all ranks, at synchronization points."""
        if self.snapshots is None or (self._sharding is not None and step % self._sync_steps):
            return False
        return self.snapshots.due()

    def save(
        self,
        progress: Progress,
        means: RunningMean,
        optimizers: Sequence[torch.optim.Optimizer],
        *,
        continues: bool = False,
    ) -> None:
        """Saves a snapshot, which is on disk on return, or later if training ``continues``."""
        if self.snapshots is not None:
            save = self.snapshots.start if continues else self.snapshots.save
            save(progress, capture(self.model, optimizers), means.sums, sharded_state(self.model, optimizers))

    def log(self, run: TrainedRun) -> None:
        """Logs the last validation of a run, the first one in place of an earlier run's results."""
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            if len(run.epochs) == 1:  # an earlier run's results would look like this run's
                for name in (TEST, REPORT, PICTURE):
                    (self.folder / name).unlink(missing_ok=True)
                remove_checkpoint(self.folder / BEST)
        self.logger.log_epoch(run)

    def save_best(self, metrics: TaskMetrics) -> None:
        """Saves the model's weights with their validation metrics. All ranks must call it."""
        if self.best is not None:
            assert self.about is not None  # required with a folder
            about = replace(self.about, metrics=metrics)
            save_checkpoint(self.best, self.model, about, sharded_weights(self.model), self.ranks)
        elif self.is_rank_zero:
            self._in_memory = {name: value.clone() for name, value in self.model.state_dict().items()}

    def restore_best(self) -> None:
        """Loads the saved weights into the model. All ranks must call it."""
        weights: Mapping[str, Tensor] | None
        sharded = sharded_weights(self.model)
        if sharded:
            assert self.best is not None  # sharded tables need a folder
            assert self.ranks is not None
            saved = open_on_all_ranks(self.best, self.ranks)
            read_local_rows(saved, sharded)
            weights = {name: saved[name] for name in saved if name not in sharded}
        else:
            weights = self._in_memory if self.best is None else dict(open_checkpoint(self.best)[0])
            if self.ranks is not None:
                weights = self.ranks.tensors_from_rank_zero(weights)
        assert weights is not None  # saved before
        self.model.load_state_dict(weights)

    def close(self) -> None:
        """Ends the thread that writes snapshots, when it is idle."""
        if self.snapshots is not None:
            self.snapshots.close()

    def finish(self) -> None:
        """Ends the log and removes the snapshots, after all results have been written or to restart the run."""
        self.logger.close()
        if self.snapshots is not None:
            self.snapshots.discard()
