"""The trackers of a run: opens them, remembers their runs for resuming, and outlives their failures."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from adaftr_fast._files import make_folder, replace_file
from adaftr_fast._json import dumps, from_json, loads
from adaftr_fast.errors import TrainingError, extras_needed
from adaftr_fast.training.trackers.base import Opening, Tracker

KNOWN = "trackers.json"  # in the run folder
CLASSES = {"tensorboard": "TensorBoard", "wandb": "WeightsAndBiases", "mlflow": "MLflow"}
"""The class of each tracker, in the file of its name, which imports a package of an extra."""


class Trackers:
    """Logs to several trackers. One that fails is left out from then on, with a warning.

    Args:
        names: the trackers.
        folder: the run folder.
        parameters: the options of the run as ``section.option`` -> value.
        resumed: whether to continue the runs of an interrupted process.
        records: the records of the epochs that it logged, as in metrics.jsonl. A tracker that it did not have begins a
            run with them.

    Raises:
        MissingPackageError: a tracker is not installed.
        TrainingError: a tracker cannot be opened, for example because its server does not answer.
    """

    def __init__(
        self,
        names: Sequence[str],
        folder: Path,
        parameters: Mapping[str, Any],
        *,
        resumed: bool = False,
        records: Sequence[dict[str, Any]] = (),
    ) -> None:
        self._open: dict[str, Tracker] = {}
        known = _known(folder / KNOWN) if resumed else {}
        for name in names:
            first_epoch = len(records) + 1 if name in known else 1
            self._open[name] = _opened(name, Opening(folder, parameters, first_epoch, known.get(name)))
            for record in records[first_epoch - 1 :]:
                self._do(name, "log", dict(numbers(record)), record["epoch"])
        if names:
            make_folder(folder)
            ids = known | {name: each.known for name, each in self._open.items()}
            replace_file(folder / KNOWN, (dumps(ids, indent=2) + "\n").encode())

    def log(self, record: dict[str, Any]) -> None:
        """Logs the record of an epoch."""
        for name in list(self._open):
            self._do(name, "log", dict(numbers(record)), record["epoch"])

    def log_test(self, metrics: Mapping[str, Any]) -> None:
        """Logs the metrics on the test split."""
        for name in list(self._open):
            self._do(name, "log_test", dict(numbers(metrics, "test/")))

    def close(self, failed: bool = False) -> None:
        """Closes the trackers, once."""
        for name in list(self._open):
            self._do(name, "close", failed)
        self._open = {}

    def _do(self, name: str, method: str, *arguments: Any) -> None:
        try:
            if name in self._open:
                getattr(self._open[name], method)(*arguments)
        except Exception as error:  # whatever the package raises must not end hours of training
            del self._open[name]
            text = f"training.trackers: {name} failed, and training goes on without it: {_line(error)}"
            warnings.warn(text, RuntimeWarning, stacklevel=4)


def numbers(record: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Yields the numbers of a record by the path of their keys, without the epoch."""
    for name, value in record.items():
        if isinstance(value, dict):
            yield from numbers(value, f"{prefix}{name}/")
        elif f"{prefix}{name}" != "epoch":
            yield prefix + name, value


def _opened(name: str, opening: Opening) -> Tracker:
    try:
        with extras_needed("training.trackers: "):
            made: Callable[[Opening], Tracker] = getattr(import_module(f"{__package__}.{name}"), CLASSES[name])
        return made(opening)
    except ImportError:
        raise
    except Exception as error:  # the packages raise errors of many kinds
        raise TrainingError(f"training.trackers: {name} cannot be opened: {_line(error)}") from error


def _known(path: Path) -> dict[str, str]:
    """Returns what identifies the runs of an interrupted process, by tracker."""
    try:
        return from_json(dict[str, str], loads(path.read_text(encoding="utf-8"))) if path.exists() else {}
    except ValueError as error:
        raise TrainingError(f"{path}: damaged: {error}; remove it to begin new runs in the trackers") from error


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
