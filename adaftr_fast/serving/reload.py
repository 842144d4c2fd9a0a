"""A scorer for servers: reads an exported folder again when an export has replaced it."""

from __future__ import annotations

import threading
import time
import warnings
from pathlib import Path
from typing import Any

from adaftr_fast.files.publish import version
from adaftr_fast.serving.scorer import Scorer, load_scorer

RETRY_SECONDS = 30.0  # after which an export that could not be read is tried again


class ReloadingScorer:
    """The newest model of a folder that exports replace. It is thread-safe.

    Use one result of ``latest`` for a whole request, so that one export scores all of it. ::

        scores = models.latest().score(rows)

    Args:
        folder: the exported folder.
        options: those of ``load_scorer``.

    Attributes:
        scorer: the present scorer, without a look for a new export.

    Raises:
        ServingError, DataError: see ``load_scorer``.
    """

    def __init__(self, folder: str | Path, **options: Any) -> None:
        self.folder = Path(folder)
        self._lock = threading.Lock()
        self._version = version(self.folder)  # before reading, so that a later export is noticed
        self._options = options
        self.scorer = load_scorer(self.folder, **options)
        self._failed: object = None  # the version that could not be read last
        self._failed_at = 0.0

    def latest(self) -> Scorer:
        """Returns the present scorer, after loading a new export if there is one.

        One thread loads, while the others get the former scorer. An export that cannot be read, for
        whatever reason, is reported by a warning. The former scorer stays, and the export is tried
        again after half a minute.
        """
        if version(self.folder) != self._version and self._lock.acquire(blocking=False):
            try:
                self._reload()
            finally:
                self._lock.release()
        return self.scorer

    def _reload(self) -> None:
        found = version(self.folder)
        # another thread has loaded it, or there is none
        if found == self._version or found[1] is None:
            return
        if found == self._failed and time.monotonic() - self._failed_at < RETRY_SECONDS:
            return
        try:
            self.scorer = load_scorer(self.folder, **self._options)
            self._version = found
        # a request must not end because the process has no descriptor or memory left
        except Exception as error:
            self._failed = found
            self._failed_at = time.monotonic()
            kept = "the former export stays in use"
            warnings.warn(
                f"{self.folder}: {kept}: {error or type(error).__name__}",
                RuntimeWarning,
                stacklevel=3,
            )
