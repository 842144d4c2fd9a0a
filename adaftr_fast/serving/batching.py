"""Micro-batching: requests that wait at the same time are scored in one call."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from adaftr_fast.serving.rows import Extra, Row
from adaftr_fast.serving.scorer import ROWS, Read, Scorer

T = TypeVar("T")


@dataclass(eq=False)
class PendingRequest:
    """Rows that wait for their scores; ``scored`` gets the table and the scorer that made it."""

    rows: Sequence[Row]
    scored: asyncio.Future[tuple[pa.Table, Scorer]] = field(
        default_factory=lambda: asyncio.Future()
    )


class Batcher:
    """Scores the rows of concurrent requests. While one call runs, the requests of the next one
    gather.

    A request is answered by one scorer. Its values mean what they would mean alone; its scores are
    equal to those that it would have alone up to the rounding of the program's products.

    Args:
        scorer: returns the scorer of a call.
        extra: as for ``Scorer.score``.
        called: is told the number of requests of each call.
    """

    def __init__(
        self, scorer: Callable[[], Scorer], extra: Extra, called: Callable[[int], object] = int
    ) -> None:
        self._scorer = scorer
        self._extra = extra
        self._called = called
        self._waiting: list[PendingRequest] = []
        self._arrived = asyncio.Event()

    def waiting(self) -> int:
        """Returns the number of rows that wait."""
        return sum(len(each.rows) for each in self._waiting)

    async def score(self, rows: Sequence[Row]) -> tuple[pa.Table, Scorer]:
        """Returns the scores of rows and the scorer that made them.

        Raises:
            DataError, ServingError: as ``Scorer.score``.
        """
        request = PendingRequest(rows)
        self._waiting.append(request)
        self._arrived.set()
        return await request.scored

    async def run(self) -> None:
        """Answers requests until it is cancelled."""
        while True:
            await self._arrived.wait()
            requests = self._take()
            self._called(len(requests))
            scorer = self._scorer()
            found: list[pa.Table | Exception]
            try:
                found = await asyncio.to_thread(
                    score_each, scorer, [each.rows for each in requests], self._extra
                )
            except Exception as error:  # no thread can be started
                found = [error] * len(requests)
            for request, result in zip(requests, found):
                if request.scored.done():  # cancelled: the client is gone
                    continue
                if isinstance(result, Exception):
                    request.scored.set_exception(result)
                else:
                    request.scored.set_result((result, scorer))

    def _take(self) -> list[PendingRequest]:
        """Takes the first requests whose rows fit in one call, and at least one."""
        count, rows = 1, len(self._waiting[0].rows)
        while count < len(self._waiting) and rows + len(self._waiting[count].rows) <= ROWS:
            rows += len(self._waiting[count].rows)
            count += 1
        taken, self._waiting = self._waiting[:count], self._waiting[count:]
        if not self._waiting:
            self._arrived.clear()
        return taken


def score_each(
    scorer: Scorer, requests: Sequence[Sequence[Row]], extra: Extra
) -> list[pa.Table | Exception]:
    """Returns the scores of each request, or its error.

    Each request is read by itself: the type of a column, and so the meaning of a value, depends on
    its rows alone. The program then runs on the rows of all of them.
    """
    read = [_outcome(scorer.read, rows, extra) for rows in requests]
    good = [each for each in read if not isinstance(each, Exception)]
    try:
        scores = iter(_scores(scorer, good))
    except Exception as error:  # whatever it is, it belongs to one of the requests
        if len(requests) == 1:
            return [error]
        half = len(requests) // 2
        return [
            *score_each(scorer, requests[:half], extra),
            *score_each(scorer, requests[half:], extra),
        ]
    # the table of a request may fail, too: a price that is no number
    return [
        each if isinstance(each, Exception) else _outcome(scorer.table, next(scores), each[0])
        for each in read
    ]


def _outcome(call: Callable[..., T], *arguments: Any) -> T | Exception:
    """Returns what a call returns, or the error that it raises."""
    try:
        return call(*arguments)
    except Exception as error:
        return error


def _scores(scorer: Scorer, read: Sequence[Read]) -> list[np.ndarray]:
    """Returns the probabilities [n, T] of the rows of each request."""
    if not read:
        return []
    encoded = {name: pa.concat_arrays([each[name] for _, each in read]) for name in read[0][1]}
    ends = np.cumsum([batch.num_rows for batch, _ in read])
    return np.split(scorer.probabilities(scorer.features(encoded)), ends[:-1])
