"""Progress bars, per-epoch lines, metrics.jsonl, the picture of a long run, and trackers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from tqdm import tqdm

from adaftr_fast._files import replace_file
from adaftr_fast._json import dumps
from adaftr_fast.config import TrainingConfig
from adaftr_fast.training.evaluation import TaskMetrics
from adaftr_fast.training.result import PICTURE, TrainedRun
from adaftr_fast.training.trackers.opened import Trackers

METRICS = "metrics.jsonl"  # name in the run folder
PICTURE_SECONDS = 60  # the least length of an epoch after which the curves are drawn, which takes about a second


class EpochLogger:
    """Logs each epoch to the terminal, metrics.jsonl and the trackers. Leaving it as a context closes the trackers.

    Args:
        folder: the run folder. None writes no files.
        config: the training options; ``progress`` and ``trackers`` select the outputs.
    """

    def __init__(self, folder: Path | None, config: TrainingConfig) -> None:
        self.folder = folder
        self.config = config
        self._trackers: Trackers | None = None

    def start(self, parameters: dict[str, Any], resumed: bool, records: Sequence[dict[str, Any]]) -> None:
        """Opens the trackers. The arguments and errors are those of ``Trackers``."""
        if self.folder is not None:
            names = self.config.trackers
            self._trackers = Trackers(names, self.folder, parameters, resumed=resumed, records=records)

    def log_epoch(self, run: TrainedRun) -> None:
        """Logs the last validation of a run."""
        records = run.epochs
        if self.config.progress:
            tqdm.write(_summary(records[-1]))
        if self.folder is None:
            return
        lines = "".join(dumps(each) + "\n" for each in records)
        replace_file(self.folder / METRICS, lines.encode())  # rewritten as a whole, so a resumed run repeats no line
        if records[-1]["seconds"] * self.config.validations >= PICTURE_SECONDS:
            from adaftr_fast.training.report import draw  # imports matplotlib

            draw([run]).save(self.folder / PICTURE)
        if self._trackers is not None:
            self._trackers.log(records[-1], len(records))

    def log_test(self, metrics: TaskMetrics) -> None:
        """Logs the metrics on the test split to the trackers."""
        if self._trackers is not None:
            self._trackers.log_test(metrics)

    def close(self, failed: bool = False) -> None:
        """Closes the trackers, once."""
        if self._trackers is not None:
            self._trackers.close(failed)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        self.close(failed=kind is not None)

    def progress_bar(self, epoch: int, total: int, done: int) -> tqdm:
        """Returns a progress bar over the rows of an epoch, with rows per second and the remaining time."""
        return tqdm(
            total=total,
            initial=done,
            desc=f"epoch {epoch}",
            unit=" samples",
            unit_scale=True,
            leave=False,
            disable=not self.config.progress,
        )


def shown(means: dict[str, float]) -> str:
    """Formats mean losses for a progress bar."""
    return ", ".join(f"{name} {mean:.4f}" for name, mean in means.items())


def _summary(record: dict[str, Any]) -> str:
    """Formats an epoch as one line, with AUC and GAUC in percent."""
    parts = [f"epoch {record['epoch']:g}: {record['seconds']:.1f} s, {record['samples_per_s']:,.0f} samples/s"]
    for task, metrics in record["validation"].items():
        group = f", GAUC {100 * metrics['gauc']:.2f}" if "gauc" in metrics else ""
        parts.append(f"{task} AUC {100 * metrics['auc']:.2f}{group}, log-loss {metrics['logloss']:.4f}")
    return " | ".join(parts)
