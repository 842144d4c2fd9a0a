"""What a run keeps: its log, its best weights, and the snapshots from which it resumes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Protocol, Self

import torch
from torch import Tensor
from tqdm import tqdm

from adaftr_fast.config import TrainingConfig
from adaftr_fast.display.progress import progress_bar
from adaftr_fast.distributed.ranks import ALONE, Ranks
from adaftr_fast.errors import TrainingError
from adaftr_fast.files.json import dumps
from adaftr_fast.files.whole import replace_file
from adaftr_fast.models.base import MultiTaskModel
from adaftr_fast.training.checkpoint.files import check_shared_folder, read_local_rows
from adaftr_fast.training.checkpoint.progress import Progress, RunningMean
from adaftr_fast.training.checkpoint.snapshots import RunSnapshots
from adaftr_fast.training.checkpoint.state import capture, restore, sharded_state, sharded_weights
from adaftr_fast.training.checkpoint.weights import (
    Description,
    open_checkpoint,
    open_on_all_ranks,
    remove_checkpoint,
    save_checkpoint,
)
from adaftr_fast.training.evaluation import TaskMetrics
from adaftr_fast.training.trained import BEST, DOUBTS, METRICS, PICTURE, REPORT, TEST, Run

# the least length of an epoch after which the curves are drawn, which takes about a second
PICTURE_SECONDS = 60


def shown(means: dict[str, float]) -> str:
    """Formats mean losses for a progress bar."""
    return ", ".join(f"{name} {mean:.4f}" for name, mean in means.items())


def _summary(record: dict[str, Any]) -> str:
    """Formats an epoch as one line, with AUC and GAUC in percent."""
    parts = [
        f"epoch {record['epoch']:g}: {record['seconds']:.1f} s, {record['samples_per_s']:,.0f} "
        "samples/s"
    ]
    for task, metrics in record["validation"].items():
        group = f", GAUC {100 * metrics['gauc']:.2f}" if "gauc" in metrics else ""
        parts.append(
            f"{task} AUC {100 * metrics['auc']:.2f}{group}, log-loss {metrics['logloss']:.4f}"
        )
    return " | ".join(parts)


class Trackers(Protocol):
    """Where a run logs its validations besides its folder."""

    def log(self, record: dict[str, Any], number: int) -> None:
        """Logs the record of a validation, the ``number``-th."""

    def log_test(self, metrics: Mapping[str, Any]) -> None:
        """Logs the metrics on the test split."""

    def close(self, failed: bool = False) -> None:
        """Ends the logs, once."""


class OpenTrackers(Protocol):
    """Opens the trackers of a run, as ``extras.trackers.log.Trackers`` does."""

    def __call__(
        self,
        names: Sequence[str],
        folder: Path,
        parameters: Mapping[str, Any],
        *,
        resumed: bool,
        records: Sequence[dict[str, Any]],
    ) -> Trackers: ...


class RunFiles:
    """Keeps the log, the best weights and the snapshots of a run. Rank 0 writes, and each rank its
    sharded rows.

    The log is lines on the terminal, metrics.jsonl, the picture of a long run and the trackers.
    Leaving this object as a context closes the trackers.

    Args:
        model: the model.
        config: the training options.
        folder: the run folder, for metrics.jsonl, the checkpoint ``best/`` and, until ``finish``,
            the snapshots ``last/``. The results of an earlier run in it are removed when this run
            has been validated for the first time. None writes no files and keeps the best weights
            in memory.
        about: the description of the run in checkpoints and snapshots; required with ``folder``.
        rows: the number of rows of the training split; required with ``folder``.
        ranks: the ranks that train together. A run may resume on another number of ranks.
        saved: called after each snapshot, which is then never written in the background.
        open_trackers: opens ``config.trackers``.

    Raises:
        CheckpointError: the tables are sharded and a rank does not see ``folder``.
        TrainingError: the tables are sharded and there is no folder for their best weights, a
            folder is given without ``about`` or ``rows``, or ``config`` names trackers and there is
            no ``open_trackers``.
    """

    def __init__(
        self,
        model: MultiTaskModel,
        config: TrainingConfig,
        folder: Path | None = None,
        about: Description | None = None,
        *,
        rows: int | None = None,
        ranks: Ranks = ALONE,
        saved: Callable[[], None] | None = None,
        open_trackers: OpenTrackers | None = None,
    ) -> None:
        if config.trackers and open_trackers is None:
            names = ", ".join(config.trackers)
            raise TrainingError(
                f"training.trackers: expected none without open_trackers, got {names}"
            )
        self.model = model
        self._open_trackers = open_trackers
        self._saved = saved
        self.ranks = ranks
        self.is_rank_zero = ranks.is_rank_zero
        self.name = "" if about is None else about.config.model.name
        self._parameters = {} if about is None else about.config.flat()
        self._is_sharded = config.tables == "torchrec"  # all ranks write files of the state
        if self._is_sharded:
            if folder is None:
                raise TrainingError("trainer: sharded tables need a folder for the best weights")
            check_shared_folder(
                folder, ranks, "with training.tables = torchrec every rank writes its rows"
            )
        if not self.is_rank_zero:
            config = replace(config, progress=False)
        self.config = config
        self.folder = folder if self.is_rank_zero else None
        self.trackers: Trackers | None = None
        self.about = about
        self.snapshots: RunSnapshots | None = None
        self.best: Path | None = None  # the folder of the best weights, where this rank writes some
        self._in_memory: dict[str, Tensor] | None = None
        if folder is None:
            return
        if about is None or rows is None:
            raise TrainingError("trainer: files in a folder need about and rows, got None")
        if self.is_rank_zero or self._is_sharded:
            writers = ranks if self._is_sharded else ALONE
            self.snapshots = RunSnapshots(folder, about, rows, config.checkpoint_seconds, writers)
            self.best = folder / BEST

    def load(
        self, optimizers: Sequence[torch.optim.Optimizer]
    ) -> tuple[Progress, RunningMean] | None:
        """Restores the newest snapshot, on all ranks. Returns its progress and running means; None
        without one.

        Raises:
            CheckpointError: the unfinished run has other options or data, or no snapshot can be
                read.
        """
        found: tuple[Progress, Mapping[str, Tensor]] | None
        if not self.ranks.is_alone and not self._is_sharded:
            found = self._from_rank_zero()
        else:
            own = None if self.snapshots is None else self.snapshots.load()
            if own is not None:
                read_local_rows(own[1], sharded_state(self.model, optimizers))
            found = own
        if found is None:
            return None
        progress, tensors = found
        restore(self.model, optimizers, tensors)
        return progress, RunningMean(tensors, progress.new_steps)

    def _from_rank_zero(self) -> tuple[Progress, dict[str, Tensor]] | None:
        """Returns what the newest snapshot holds, which rank 0 reads and sends to the others."""
        tensors: dict[str, Tensor] | None = None  # on rank 0

        def load() -> dict[str, Any] | None:
            nonlocal tensors
            found = None if self.snapshots is None else self.snapshots.load()
            if found is None:
                return None
            tensors = dict(found[1])
            return asdict(found[0])

        progress = self.ranks.from_rank_zero(load)
        if progress is None:
            return None
        return Progress(**progress), self.ranks.tensors_from_rank_zero(tensors)

    def start(self, logged: list[dict[str, Any]], *, resumed: bool) -> None:
        """Opens the trackers, to which an interrupted process has logged some records. All ranks
        raise an error.
        """

        def start() -> None:
            if self.folder is not None and self._open_trackers is not None:
                names = self.config.trackers
                self.trackers = self._open_trackers(
                    names, self.folder, self._parameters, resumed=resumed, records=logged
                )

        self.ranks.from_rank_zero(start)

    def is_due(self, step: int) -> bool:
        """Returns whether to save a snapshot now. Sharded tables are saved by all ranks, at
        synchronization points.
        """
        if self.snapshots is None or (self._is_sharded and step % self.config.sync_steps):
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
            in_background = continues and self._saved is None
            save = self.snapshots.start if in_background else self.snapshots.save
            tensors = capture(self.model, optimizers) | means.state()
            save(progress, tensors, sharded_state(self.model, optimizers))
            if self._saved is not None:
                self._saved()

    def log(self, run: Run) -> None:
        """Logs the last validation of a run, the first one in place of an earlier run's results."""
        records = run.epochs
        if self.config.progress:
            tqdm.write(_summary(records[-1]))
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        if len(records) == 1:  # an earlier run's results would look like this run's
            for name in (TEST, DOUBTS, REPORT, PICTURE):
                (self.folder / name).unlink(missing_ok=True)
            remove_checkpoint(self.folder / BEST)
        lines = "".join(dumps(each) + "\n" for each in records)
        # rewritten as a whole, so a resumed run repeats no line
        replace_file(self.folder / METRICS, lines.encode())
        if records[-1]["seconds"] * self.config.validations >= PICTURE_SECONDS:
            from adaftr_fast.training.curves import draw  # imports matplotlib

            draw([run]).save(self.folder / PICTURE)
        if self.trackers is not None:
            self.trackers.log(records[-1], len(records))

    def log_test(self, metrics: TaskMetrics) -> None:
        """Logs the metrics on the test split to the trackers."""
        if self.trackers is not None:
            self.trackers.log_test(metrics)

    def close_trackers(self, failed: bool = False) -> None:
        """Closes the trackers, once."""
        if self.trackers is not None:
            self.trackers.close(failed)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        self.close_trackers(failed=kind is not None)

    def progress_bar(self, epoch: int, total: int, done: int) -> tqdm:
        """Returns a progress bar over the rows of an epoch, with rows per second and the remaining
        time.
        """
        return progress_bar(
            total=total,
            initial=done,
            desc=f"epoch {epoch}",
            unit=" samples",
            unit_scale=True,
            leave=False,
            disable=not self.config.progress,
        )

    def save_best(self, metrics: TaskMetrics) -> None:
        """Saves the model's weights with their validation metrics. All ranks must call it."""
        if self.best is not None:
            assert self.about is not None  # required with a folder
            about = replace(self.about, metrics=metrics)
            save_checkpoint(self.best, self.model, about, sharded_weights(self.model), self.ranks)
        elif self.is_rank_zero:
            self._in_memory = {
                name: value.clone() for name, value in self.model.state_dict().items()
            }

    def restore_best(self) -> None:
        """Loads the saved weights into the model. All ranks must call it."""
        sharded = sharded_weights(self.model)
        if sharded:
            assert self.best is not None  # sharded tables need a folder
            saved = open_on_all_ranks(self.best, self.ranks)
            read_local_rows(saved, sharded)
            weights = {name: saved[name] for name in saved if name not in sharded}
        else:
            own = self._in_memory if self.best is None else dict(open_checkpoint(self.best)[0])
            weights = self.ranks.tensors_from_rank_zero(own)
        self.model.load_state_dict(weights)

    def close(self) -> None:
        """Ends the thread that writes snapshots, when it is idle."""
        if self.snapshots is not None:
            self.snapshots.close()

    def finish(self) -> None:
        """Ends the log and removes the snapshots, after all results have been written or to restart
        the run.
        """
        self.close_trackers()
        if self.snapshots is not None:
            self.snapshots.discard()
