"""The trackers of a run: opens them, remembers their runs for resuming, and outlives their
failures.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adaftr_fast.errors import TrainingError, extras_needed
from adaftr_fast.extras.trackers.packages import CLASSES, Opening, Tracker
from adaftr_fast.files.whole import make_folder, read_json, write_json
from adaftr_fast.training.trained import TRACKERS


@dataclass
class Known:
    """What trackers.json holds about a tracker.

    Attributes:
        run: what identifies the run in the tracker.
        epoch: the number of validations that it logged.
    """

    run: str
    epoch: int = 0


class Trackers:
    """Logs to several trackers. One that fails is left out from then on, with a warning.

    Args:
        names: the trackers.
        folder: the run folder.
        parameters: the options of the run as ``section.option`` -> value.
        resumed: whether to continue the runs of an interrupted process.
        records: the records of the validations so far, as in metrics.jsonl. A tracker gets those
            that it has not logged, because it was added later, left out for a while or had failed,
            and none twice.

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
        self._path = folder / TRACKERS
        self._known = _known(self._path) if resumed else {}
        try:
            for name in names:
                before = self._known.get(name, Known(""))
                opening = Opening(folder, parameters, before.epoch + 1, before.run or None)
                self._open[name] = _opened(name, opening)
                self._known[name] = Known(self._open[name].known, before.epoch)
                for number, record in enumerate(records, 1):  # those that it lacks
                    self._log(name, record, number)
            self._save()
        except BaseException:
            self.close(failed=True)
            raise

    def log(self, record: dict[str, Any], number: int) -> None:
        """Logs the record of a validation, the ``number``-th."""
        for name in list(self._open):
            self._log(name, record, number)

    def _log(self, name: str, record: dict[str, Any], number: int) -> None:
        # of before, and the last one, which the trainer publishes again on resuming
        if number <= self._known[name].epoch:
            return
        self._do(name, "log", dict(numbers(record)), number)
        if name in self._open:
            self._known[name].epoch = number
            self._save()

    def _save(self) -> None:
        if self._known:
            make_folder(self._path.parent)
            write_json(self._path, self._known)
        else:  # an earlier run's trackers are not this run's
            self._path.unlink(missing_ok=True)

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
            failed = self._open.pop(name)
            if method != "close":
                with suppress(Exception):
                    failed.close(True)
            text = (
                f"training.trackers: {name} failed, and training goes on without it: {_line(error)}"
            )
            warnings.warn(text, RuntimeWarning, stacklevel=4)


def numbers(record: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Yields the numbers of a record by the path of their keys."""
    for name, value in record.items():
        if isinstance(value, dict):
            yield from numbers(value, f"{prefix}{name}/")
        else:
            yield prefix + name, value


def _opened(name: str, opening: Opening) -> Tracker:
    try:
        with extras_needed("training.trackers: "):
            return CLASSES[name](opening)
    except ImportError:
        raise
    except Exception as error:  # the packages raise errors of many kinds
        raise TrainingError(
            f"training.trackers: {name} cannot be opened: {_line(error)}"
        ) from error


def _known(path: Path) -> dict[str, Known]:
    """Returns the runs of an interrupted process by tracker."""
    if not path.exists():
        return {}
    try:
        return read_json(dict[str, Known], path)
    except ValueError as error:
        raise TrainingError(
            f"{path}: damaged: {error}; remove it to begin new runs in the trackers"
        ) from error


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
