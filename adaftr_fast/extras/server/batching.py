"""Micro-batching: requests that wait at the same time are scored in one call."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from adaftr_fast.serving.rows import Extra, Row
from adaftr_fast.serving.scorer import ROWS, Read, Scorer

T = TypeVar("T")


Scored = tuple[pa.Table, Scorer]  # the scores of a request, and the scorer that made them


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
        self, scorer: Callable[[], Scorer], extra: Extra, called: Callable[[int], object]
    ) -> None:
        self._scorer = scorer
        self._extra = extra
        self._called = called
        self._waiting: list[tuple[Sequence[Row], asyncio.Future[Scored]]] = []
        self._arrived = asyncio.Event()

    async def score(self, rows: Sequence[Row]) -> Scored:
        """Returns the scores of rows and the scorer that made them.

        Raises:
            DataError, ServingError: as ``Scorer.score``.
        """
        scored: asyncio.Future[Scored] = asyncio.Future()
        self._waiting.append((rows, scored))
        self._arrived.set()
        return await scored

    async def run(self) -> None:
        """Answers requests until it is cancelled."""
        while True:
            await self._arrived.wait()
            count = self._fitting()
            taken = self._waiting[:count]
            self._waiting = self._waiting[count:]
            if not self._waiting:
                self._arrived.clear()
            self._called(count)
            scorer = self._scorer()
            requests = [rows for rows, _ in taken]
            found: list[pa.Table | Exception]
            try:
                found = await asyncio.to_thread(score_each, scorer, requests, self._extra)
            except Exception as error:  # no thread can be started
                found = [error] * count
            for (_, scored), result in zip(taken, found):
                if scored.done():  # cancelled: the client is gone
                    continue
                if isinstance(result, Exception):
                    scored.set_exception(result)
                else:
                    scored.set_result((result, scorer))

    def _fitting(self) -> int:
        """Returns how many of the first requests fit in one call, at least one."""
        ends = accumulate(len(rows) for rows, _ in self._waiting)
        return max(1, sum(end <= ROWS for end in ends))


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
