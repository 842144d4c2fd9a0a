"""An HTTP server of an exported model: JSON rows to JSON scores, health and metrics."""

from __future__ import annotations

import asyncio
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
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from adaftr_fast.errors import ConfigError, DataError
from adaftr_fast.extras.server.batching import Batcher
from adaftr_fast.extras.server.body import MOST_BYTES, Budget, Refused, Take, read_body
from adaftr_fast.extras.server.http import CLOSE, Closing, Process, Protocol, error_response
from adaftr_fast.serving.reload import ReloadingScorer
from adaftr_fast.serving.rows import Extra, needed_columns
from adaftr_fast.serving.scorer import PROGRAM, Scorer

LOG = logging.getLogger("uvicorn.error")
LOOK_SECONDS = 1.0  # between two looks for a new export
BODY_SECONDS = 30.0  # in which the body of a request must arrive
END_SECONDS = 1.0  # the same once the server ends
ANSWER_SECONDS = 30  # in which requests are answered once the server ends
SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
REQUESTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


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
        self.is_ending = False
        self._budget = Budget()
        self._deadlines: set[asyncio.Timeout] = set()  # of bodies that are being read
        self.batcher = Batcher(lambda: models.scorer, extra, self.metrics.batch.observe)

    async def score(self, request: Request) -> Response:
        """POST /score: the scores of one row, a JSON object, or of several, an array of objects."""
        start = time.perf_counter()
        try:
            with self._budget.share() as take:
                rows = read_body(await self._body(request, take), take)
                if not self.is_running:
                    raise Refused(503, "the lifespan of the application is not running")
                table, scorer = await self.batcher.score(rows)
                response = JSONResponse({"model": _digest(scorer), "scores": table.to_pylist()})
                self.metrics.rows.inc(len(rows))
        except ClientDisconnect:
            response = error_response(499, "the client is gone")
        except Refused as error:
            # the rest of a late body is not waited for
            headers = CLOSE if error.status == 408 else None
            response = error_response(error.status, str(error), headers)
        except DataError as error:
            response = error_response(422, str(error))
        except asyncio.CancelledError:
            if not self.is_ending:
                raise
            response = error_response(503, f"the server ends, after {ANSWER_SECONDS} seconds")
        # a score that is not finite, or no memory left: the next request may be served
        except Exception as error:
            LOG.exception("a request could not be scored")
            response = _failed(error)
        self.metrics.requests.labels(str(response.status_code)).inc()
        self.metrics.seconds.observe(time.perf_counter() - start)
        return response

    async def _body(self, request: Request, take: Take) -> bytearray:
        """Returns the body of a request. Raises Refused if it is too large or too late."""
        body = bytearray()
        deadline = asyncio.timeout(END_SECONDS if self.is_ending else BODY_SECONDS)
        try:
            async with deadline:
                self._deadlines.add(deadline)
                async for part in request.stream():
                    take(len(part))
                    body += part
                    if len(body) > MOST_BYTES:
                        raise Refused(413, f"expected at most {MOST_BYTES:,} bytes")
        except TimeoutError as error:
            if self.is_ending:
                raise Refused(503, "the server ends, and the body has not arrived") from error
            raise Refused(408, f"expected the body within {BODY_SECONDS:g} seconds") from error
        finally:
            self._deadlines.discard(deadline)
        return body

    def end(self) -> None:
        """Begins the end: bodies must arrive soon, and answers close their connections."""
        self.is_ending = True
        soon = asyncio.get_running_loop().time() + END_SECONDS
        for deadline in self._deadlines:
            if not deadline.expired():
                deadline.reschedule(soon)

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
    return _application(Server(models, extra))


def _application(server: Server) -> Starlette:
    made = Starlette(
        routes=[
            Route("/score", server.score, methods=["POST"]),
            Route("/health", server.health),
            Route("/metrics", server.metrics_text),
        ],
        lifespan=server.running,
        middleware=[Middleware(Closing, is_ending=lambda: server.is_ending)],
        exception_handlers={HTTPException: _refuse, Exception: _fail},
    )
    made.router.redirect_slashes = False
    return made


def serve(
    folder: str | Path,
    *,
    name: str = "",
    host: str = "127.0.0.1",
    port: int = 8000,
    extra: Extra = "error",
    **options: Any,
) -> None:
    """Serves an exported folder over HTTP until SIGINT or SIGTERM, and returns. Requests in
    progress are answered before.

    Args:
        folder: the exported folder.
        name: what the lines that it prints call the folder; "" for its path.
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
    name = name or str(folder)
    models = ReloadingScorer(folder, **options)
    with socket.create_server(
        (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET
    ) as listening:
        place = f"[{host}]" if ":" in host else host
        print(
            f"{name}: http://{place}:{listening.getsockname()[1]}/score, /health, /metrics",
            flush=True,
        )
        print(f"{name}: loaded model {_digest(models.scorer)}, {time.ctime()}", flush=True)
        server = Server(models, extra)
        config = uvicorn.Config(
            _application(server),
            http=Protocol,
            ws="none",
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=ANSWER_SECONDS,
        )
        Process(config, server.end).run(sockets=[listening])


def _digest(scorer: Scorer) -> str:
    return scorer.about.sha256[PROGRAM]


async def _refuse(_: Request, error: Exception) -> Response:
    """Answers a request for another path or by another method."""
    assert isinstance(error, HTTPException)
    return error_response(error.status_code, error.detail, error.headers)


async def _fail(_: Request, error: Exception) -> Response:
    """Answers a request after an error that is not expected."""
    return _failed(error)


def _failed(error: Exception) -> JSONResponse:
    return error_response(500, f"{type(error).__name__}: {error}")
