"""Micro-batching: requests that wait at the same time are scored in one call."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pyarrow as pa

from adaftr_fast.serving.rows import Extra, Row
from adaftr_fast.serving.scorer import ROWS, Scorer


@dataclass(eq=False)
class Request:
    """Rows that wait for their scores; ``scored`` gets the table and the scorer that made it."""

    rows: Sequence[Row]
    scored: asyncio.Future[tuple[pa.Table, Scorer]] = field(default_factory=lambda: asyncio.Future())


class Batcher:
    """Scores the rows of concurrent requests. While one call runs, the requests of the next one gather.

    A request is answered by one scorer, with the scores that it would have alone. It is made within an event loop.

    Args:
        scorer: returns the scorer of a call.
        extra: as for ``Scorer.score``.
        called: is told the number of requests of each call.
    """

    def __init__(self, scorer: Callable[[], Scorer], extra: Extra, called: Callable[[int], object] = int) -> None:
        self._scorer = scorer
        self._extra = extra
        self._called = called
        self._waiting: list[Request] = []
        self._arrived = asyncio.Event()

    async def score(self, rows: Sequence[Row]) -> tuple[pa.Table, Scorer]:
        """Returns the scores of rows and the scorer that made them.

        Raises:
            DataError, ServingError: as ``Scorer.score``.
        """
        request = Request(rows)
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
            found = await asyncio.to_thread(score_each, scorer, [each.rows for each in requests], self._extra)
            for request, result in zip(requests, found):
                if request.scored.done():  # cancelled: the client is gone
                    continue
                if isinstance(result, Exception):
                    request.scored.set_exception(result)
                else:
                    request.scored.set_result((result, scorer))

    def _take(self) -> list[Request]:
        """Takes the first requests whose rows fit in one call, and at least one."""
        count, rows = 1, len(self._waiting[0].rows)
        while count < len(self._waiting) and rows + len(self._waiting[count].rows) <= ROWS:
            rows += len(self._waiting[count].rows)
            count += 1
        taken, self._waiting = self._waiting[:count], self._waiting[count:]
        if not self._waiting:
            self._arrived.clear()
        return taken


def score_each(scorer: Scorer, requests: Sequence[Sequence[Row]], extra: Extra) -> list[pa.Table | Exception]:
    """Returns the scores of each request, or its error. If the rows of one are wrong, each is scored alone."""
    try:
        table = scorer.score([row for rows in requests for row in rows], extra=extra)
    except Exception as error:  # whatever it is, it belongs to the request
        if len(requests) == 1:
            return [error]
        return [found for rows in requests for found in score_each(scorer, [rows], extra)]
    found: list[pa.Table | Exception] = []
    first = 0
    for rows in requests:
        found.append(table.slice(first, len(rows)))
        first += len(rows)
    return found
