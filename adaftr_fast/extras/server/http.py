"""How the server keeps to HTTP: errors as JSON, connections that close, and a clean end."""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable, Mapping
from types import FrameType

import h11
import uvicorn
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

SHOWN = 200  # characters at either end of a long error
CLOSE = {"connection": "close"}


def error_response(
    status: int, message: str, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    """Returns an error as JSON, in one line. Of a long message, which quotes the request, both ends
    are kept.
    """
    # half a surrogate pair is no UTF-8
    text = " ".join(message.encode(errors="backslashreplace").decode().split())
    if len(text) > 2 * SHOWN:
        text = f"{text[:SHOWN]} ... {text[-SHOWN:]}"
    return JSONResponse({"error": text}, status, headers)


class Closing:
    """Middleware that closes the connection after an answer while the server ends, and where a
    request has two lengths: a proxy before the server may have gone by the other one (RFC 9112,
    section 6.1).

    Args:
        app: the application.
        is_ending: whether the server ends.
    """

    def __init__(self, app: ASGIApp, is_ending: Callable[[], bool]) -> None:
        self._app = app
        self._is_ending = is_ending

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        has_both = {"content-length", "transfer-encoding"} <= set(Headers(scope=scope))

        async def send_closing(message: Message) -> None:
            if message["type"] == "http.response.start" and (has_both or self._is_ending()):
                MutableHeaders(scope=message).update(CLOSE)
            await send(message)

        await self._app(scope, receive, send_closing)


class Protocol(H11Protocol):  # type: ignore[misc]  # uvicorn's types are not read
    """HTTP/1.1 whose errors are JSON."""

    def send_400_response(self, msg: str) -> None:
        """Answers what is not HTTP, unless another answer has begun, and closes the connection."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            answer = error_response(400, msg, CLOSE)
            head = h11.Response(status_code=400, reason=b"Bad Request", headers=answer.raw_headers)
            for event in (head, h11.Data(data=bytes(answer.body)), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event))
        self.transport.close()


class Process(uvicorn.Server):  # type: ignore[misc]
    """Runs an application until SIGINT or SIGTERM.

    Args:
        config: the configuration of uvicorn.
        end: is called when the end begins, before connections are closed.
    """

    def __init__(self, config: uvicorn.Config, end: Callable[[], None]) -> None:
        super().__init__(config)
        self._end = end
        self._is_asked = False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begins the end; a second Ctrl-C does not wait for requests in progress.

        uvicorn raises the signal again after the end, which would look like a kill.
        """
        self.force_exit = self._is_asked and sig == signal.SIGINT
        self.should_exit = self._is_asked = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Ends the server."""
        self._end()
        await super().shutdown(sockets)
