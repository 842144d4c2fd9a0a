"""An HTTP server of an exported model: JSON rows to JSON scores, health and metrics."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import uvicorn
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from adaftr_fast.errors import ConfigError, DataError
from adaftr_fast.serving.batching import Batcher
from adaftr_fast.serving.reload import ReloadingScorer
from adaftr_fast.serving.rows import Extra, Row, needed_columns
from adaftr_fast.serving.scorer import PROGRAM, Scorer

LOG = logging.getLogger("uvicorn.error")
LOOK_SECONDS = 1.0  # between two looks for a new export
MOST_ROWS = 10_000  # of a request; more are a task for ``predict``
MOST_BYTES = 1 << 26
MOST_WAITING = 1 << 17  # rows of requests that wait
SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
REQUESTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


class Refused(Exception):
    """A request that is not scored.

    Attributes:
        status: the HTTP status of the answer.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Metrics:
    """What ``/metrics`` tells, in the text format of Prometheus."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        own: dict[str, Any] = {"namespace": "adaftr_fast", "registry": self.registry}
        self.requests = Counter(
            "requests", "Requests of scores, by the HTTP status of the answer.", ["status"], **own
        )
        self.rows = Counter("rows", "Scored rows.", **own)
        self.seconds = Histogram(
            "request_seconds", "Seconds from a request to its answer.", buckets=SECONDS, **own
        )
        self.batch = Histogram(
            "batch_requests", "Requests that were scored in one call.", buckets=REQUESTS, **own
        )
        self.model = Gauge(
            "model", "1 for the model in use, by the sha256 of its program.", ["sha256"], **own
        )

    def text(self, model: str) -> bytes:
        """Returns all metrics; ``model`` is the model in use."""
        self.model.clear()
        self.model.labels(model).set(1)
        return bytes(generate_latest(self.registry))


class Server:
    """The answers of the server.

    Args:
        models: the model.
        extra: what to do with a column that the schema does not know: "error" or "ignore".
    """

    def __init__(self, models: ReloadingScorer, extra: Extra) -> None:
        self.models = models
        self.metrics = Metrics()
        self.is_running = False
        self.batcher = Batcher(lambda: models.scorer, extra, self.metrics.batch.observe)

    async def score(self, request: Request) -> Response:
        """POST /score: the scores of one row, a JSON object, or of several, an array of objects."""
        start = time.perf_counter()
        try:
            rows = _rows(await _body(request))
            if not self.is_running:
                raise Refused(503, "the lifespan of the application is not running")
            if self.batcher.waiting() > MOST_WAITING:
                raise Refused(503, f"{MOST_WAITING:,} rows wait already")
            table, scorer = await self.batcher.score(rows)
            response = JSONResponse({"model": _digest(scorer), "scores": table.to_pylist()})
            self.metrics.rows.inc(len(rows))
        except ClientDisconnect:
            response = JSONResponse({"error": "the client is gone"}, 499)
        except Refused as error:
            response = JSONResponse({"error": str(error)}, error.status)
        except DataError as error:
            response = JSONResponse({"error": str(error)}, 422)
        # a score that is not finite, or no memory left: the next request may be served
        except Exception as error:
            LOG.exception("a request could not be scored")
            response = JSONResponse({"error": f"{type(error).__name__}: {error}"}, 500)
        self.metrics.requests.labels(str(response.status_code)).inc()
        self.metrics.seconds.observe(time.perf_counter() - start)
        return response

    async def health(self, _: Request) -> Response:
        """GET /health: the model in use, the columns that it reads, and those that it returns."""
        scorer = self.models.scorer
        reads = needed_columns(scorer.schema, scorer.columns.inputs())
        about = {
            "status": "ok",
            "model": _digest(scorer),
            "reads": reads,
            "returns": scorer.columns.names(),
        }
        return JSONResponse(about)

    async def metrics_text(self, _: Request) -> Response:
        """GET /metrics."""
        return Response(
            self.metrics.text(_digest(self.models.scorer)), media_type=CONTENT_TYPE_LATEST
        )

    @asynccontextmanager
    async def running(self, _: Starlette) -> AsyncIterator[None]:
        """Scores requests and follows the exports meanwhile."""
        tasks = [asyncio.create_task(each) for each in (self.batcher.run(), self._follow())]
        self.is_running = True
        try:
            yield
        finally:
            self.is_running = False
            for task in tasks:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            before = self.models.scorer
            try:
                # loads in its thread, while others score
                latest = await asyncio.to_thread(self.models.latest)
                if latest is not before:
                    print(
                        f"{self.models.folder}: loaded model {_digest(latest)}, {time.ctime()}",
                        flush=True,
                    )
            except Exception:  # the next look may succeed
                LOG.exception("the folder could not be looked at")


def application(models: ReloadingScorer, extra: Extra = "error") -> Starlette:
    """Returns the ASGI application, for a server of one's own: ``POST /score``, ``GET /health``,
    ``GET /metrics``.

    Args:
        models: the model; requests are answered by its newest export.
        extra: what to do with a column of a row that the schema does not know: "error" or "ignore".
    """
    server = Server(models, extra)
    routes = [
        Route("/score", server.score, methods=["POST"]),
        Route("/health", server.health),
        Route("/metrics", server.metrics_text),
    ]
    return Starlette(
        routes=routes, lifespan=server.running, exception_handlers={HTTPException: _refuse}
    )


def serve(
    folder: str | Path,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    extra: Extra = "error",
    **options: Any,
) -> None:
    """Serves an exported folder over HTTP until SIGINT or SIGTERM; requests in progress are
    answered before it ends.

    Args:
        folder: the exported folder, on this machine.
        host: the address to listen at; "0.0.0.0" for those of all networks.
        port: the port; 0 for a free one.
        extra: as for ``application``.
        options: those of ``load_scorer``.

    Raises:
        DataError, ServingError: as ``load_scorer``.
        ConfigError: the port is out of range.
        OSError: the port is in use.
    """
    if not 0 <= port < 1 << 16:
        raise ConfigError(f"port: expected 0 to 65535, got {port}")
    models = ReloadingScorer(folder, **options)
    with socket.create_server(
        (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET
    ) as listening:
        place = f"[{host}]" if ":" in host else host
        print(
            f"{folder}: http://{place}:{listening.getsockname()[1]}/score, /health, /metrics",
            flush=True,
        )
        print(f"{folder}: loaded model {_digest(models.scorer)}, {time.ctime()}", flush=True)
        config = uvicorn.Config(
            application(models, extra),
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=30,
        )
        uvicorn.Server(config).run(sockets=[listening])


def _digest(scorer: Scorer) -> str:
    return scorer.about.sha256[PROGRAM]


async def _refuse(_: Request, error: Exception) -> Response:
    """Answers a request for another path or by another method."""
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)


async def _body(request: Request) -> bytearray:
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > MOST_BYTES:
            raise Refused(413, f"expected at most {MOST_BYTES:,} bytes")
    return body


def _rows(body: bytearray) -> list[Row]:
    try:
        found = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Refused(400, f"expected JSON: {error}") from error
    rows = found if isinstance(found, list) else [found]
    if not all(isinstance(row, dict) for row in rows):
        raise Refused(400, "expected a row as a JSON object, or an array of them")
    if len(rows) > MOST_ROWS:
        raise Refused(413, f"expected at most {MOST_ROWS:,} rows, got {len(rows):,}")
    return rows
