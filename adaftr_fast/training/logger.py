"""Progress bars, per-epoch lines, metrics.jsonl and TensorBoard."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from adaftr_fast._files import replace_file
from adaftr_fast._json import dumps
from adaftr_fast.config import TrainingConfig
from adaftr_fast.errors import TrainingError

METRICS, TENSORBOARD = "metrics.jsonl", "tensorboard"  # names in the run folder


class EpochLogger:
    """Logs each epoch to the terminal, metrics.jsonl and TensorBoard.

    Args:
        folder: the run folder. None writes no files.
        config: the training options; ``progress`` and ``tensorboard`` select the outputs.

    Raises:
        TrainingError: ``config.tensorboard`` is set and TensorBoard is not installed.
    """

    def __init__(self, folder: Path | None, config: TrainingConfig) -> None:
        self.folder, self.config = folder, config
        if config.tensorboard and importlib.util.find_spec("tensorboard") is None:
            raise TrainingError("training.tensorboard: not installed: pip install adaftr-fast[tensorboard]")

    def log_epoch(self, records: list[dict[str, Any]]) -> None:
        """Logs the last of ``records``, the records of all epochs so far."""
        if self.config.progress:
            tqdm.write(_summary(records[-1]))
        if self.folder is None:
            return
        lines = "".join(dumps(each) + "\n" for each in records)
        replace_file(self.folder / METRICS, lines.encode())  # rewritten as a whole, so a resumed run repeats no line
        if self.config.tensorboard:
            _write_tensorboard(self.folder / TENSORBOARD, records[-1])

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


def _write_tensorboard(folder: Path, record: dict[str, Any]) -> None:
    from torch.utils.tensorboard import SummaryWriter  # an extra

    # purge_step discards what a killed run had logged for an epoch that is trained again.
    with SummaryWriter(str(folder), purge_step=record["epoch"]) as writer:
        for name, value in _scalars(record):
            writer.add_scalar(name, value, record["epoch"])


def _scalars(record: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for name, value in record.items():
        if isinstance(value, dict):
            yield from _scalars(value, f"{prefix}{name}/")
        elif f"{prefix}{name}" != "epoch":
            yield prefix + name, value


def _summary(record: dict[str, Any]) -> str:
    """Formats an epoch as one line, with AUC and GAUC in percent."""
    parts = [f"epoch {record['epoch']}: {record['seconds']:.1f} s, {record['samples_per_s']:,.0f} samples/s"]
    for task, metrics in record["validation"].items():
        group = f", GAUC {100 * metrics['gauc']:.2f}" if "gauc" in metrics else ""
        parts.append(f"{task} AUC {100 * metrics['auc']:.2f}{group}, log-loss {metrics['logloss']:.4f}")
    return " | ".join(parts)
