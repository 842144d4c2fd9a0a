"""An S3 server on loopback, moto's, behind a layer that injects failures."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from adaftr_fast.stores.filesystems import filesystem

BUCKET = "bucket"


@dataclass
class Faults:
    """What goes wrong with requests.

    Attributes:
        errors, cuts, slow: the shares of requests that are answered by a 500 error, whose answer
            ends early, or whose answer comes in small parts; of those of ``methods``.
        denied: the end of the paths whose requests are answered by a 403 error; "" for none.
        unlisted: whether the user may not list: S3 then answers a listing by a 403 error, and what
            is absent, too.
        after: the number of requests that pass, and the rest fail; None for no limit.
        requests: method and path of each request.
    """

    errors: float = 0.0
    cuts: float = 0.0
    slow: float = 0.0
    methods: tuple[str, ...] = ("GET", "PUT", "POST", "HEAD", "DELETE")
    denied: str = ""
    unlisted: bool = False
    after: int | None = None
    requests: list[tuple[str, str]] = field(default_factory=list)
    random: random.Random = field(default_factory=lambda: random.Random(7))

    def fate(self, method: str, path: str) -> str:
        self.requests.append((method, path))
        if self.after is not None and len(self.requests) > self.after:
            return "error"
        if self.denied and path.endswith(self.denied):
            return "denied"
        if method not in self.methods:
            return "none"
        drawn = self.random.random()
        for name, share in (("error", self.errors), ("cut", self.cuts), ("slow", self.slow)):
            if drawn < share:
                return name
            drawn -= share
        return "none"


class Injecting:
    """A WSGI application with failures."""

    def __init__(self, application, faults):
        self.application = application
        self.faults = faults

    def __call__(self, environ, start_response):
        fate = self.faults.fate(environ["REQUEST_METHOD"], environ["PATH_INFO"])
        if self.faults.unlisted and "list-type=2" in environ["QUERY_STRING"]:
            fate = "denied"
        if fate in ("error", "denied"):
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            status = "500 Internal Server Error" if fate == "error" else "403 Forbidden"
            start_response(status, [("Content-Length", "0")])
            return [b""]

        def started(status, *rest):
            return start_response(
                "403 Forbidden" if self.faults.unlisted and status[:3] == "404" else status, *rest
            )

        body = self.application(environ, started)
        if fate == "none":
            return body
        content = b"".join(body)
        return _cut(content) if fate == "cut" else _slow(content)


def _cut(content):
    yield content[: len(content) // 2]
    if content:
        raise ConnectionError("injected")


def _slow(content):
    step = max(1, len(content) // 20)
    for start in range(0, len(content), step):
        threading.Event().wait(0.01)
        yield content[start : start + step]


@pytest.fixture(scope="session")
def s3_server() -> Iterator[Faults]:
    moto = pytest.importorskip("moto.server", reason="needs moto (pip install moto[server])")
    import pyarrow.fs
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Quiet(WSGIRequestHandler):
        protocol_version = "HTTP/1.1"

        def log(self, *_):
            pass

    os.environ |= {
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    os.environ["AWS_DEFAULT_REGION"] = "us-east-1"
    faults = Faults()
    application = moto.DomainDispatcherApplication(moto.create_backend_app)
    server = make_server(
        "127.0.0.1", 0, Injecting(application, faults), threaded=True, request_handler=Quiet
    )
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    os.environ["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{server.server_port}"
    store = pyarrow.fs.S3FileSystem(
        endpoint_override=f"127.0.0.1:{server.server_port}",
        scheme="http",
        allow_bucket_creation=True,
    )
    store.create_dir(BUCKET)
    yield faults
    server.shutdown()
    thread.join()


@pytest.fixture
def faults(s3_server, monkeypatch, tmp_path) -> Iterator[Faults]:
    """The failures of the server, none at first; and a cache folder of the test's own."""
    monkeypatch.setenv("ADAFTR_FAST_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("adaftr_fast.stores.filesystems.FIRST_PAUSE", 0.01)
    monkeypatch.setattr("adaftr_fast.stores.filesystems.SDK_ATTEMPTS", 1)
    # one that an earlier test made has five attempts, with pauses of seconds
    filesystem.cache_clear()
    s3_server.__init__()
    yield s3_server
    s3_server.__init__()


@pytest.fixture
def few_attempts(faults, monkeypatch):
    """A request is given up after two attempts."""
    monkeypatch.setattr("adaftr_fast.stores.filesystems.ATTEMPTS", 2)


@pytest.fixture
def url(faults, tmp_path) -> str:
    """A folder of the test's own."""
    return f"s3://{BUCKET}/{tmp_path.name}"
