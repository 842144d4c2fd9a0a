"""The HTTP server with real clients: scores, errors, metrics, and a model that is replaced
meanwhile.
"""

import asyncio
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from adaftr_fast.serving.export import export_run
from adaftr_fast.serving.scorer import load_scorer
from tests.forks import COMMAND, Script, wait_for
from tests.serving.conftest import make_log
from tests.serving.test_reload import other, replace  # noqa: F401  # a fixture

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
pytest.importorskip("prometheus_client")

from adaftr_fast.extras.server import app as server
from adaftr_fast.extras.server.app import application
from adaftr_fast.extras.server.batching import score_each
from adaftr_fast.extras.server.body import Budget
from adaftr_fast.serving.reload import ReloadingScorer

FEATURES = ["weekday", "item", "place", "heat", "user", "tags"]
CLIENTS = 200


class Served:
    """A server in a process of its own."""

    def __init__(self, folder, *options):
        self.process = Script(COMMAND, "serve", folder, "--port", 0, *options)
        self.port = int(wait_for(lambda: re.search(r":(\d+)/score, ", self.process.printed()))[1])

    def ask(self, path, content=None):
        """Returns the status and the body of an answer."""
        client = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        body = (
            content
            if content is None or isinstance(content, bytes)
            else json.dumps(content).encode()
        )
        client.request("GET" if content is None else "POST", path, body)
        answer = client.getresponse()
        text = answer.read().decode()
        client.close()
        return answer.status, json.loads(text) if answer.headers[
            "content-type"
        ] == "application/json" else text

    def stop(self):
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.communicate(timeout=30)


@pytest.fixture
def served(exported, tmp_path):
    replace(tmp_path / "model", exported[0])
    server = Served(tmp_path / "model", "--bid", "price")
    yield server
    server.stop()


def test_answers_have_the_scores_of_the_model(served, exported):
    rows = make_log(40, seed=3).select([*FEATURES, "price"]).to_pylist()
    scorer = load_scorer(exported[0], bid="price")
    expected = scorer.score(rows).to_pylist()
    assert list(expected[0]) == ["p_ctr", "p_ctcvr", "p_cvr", "bid"]
    digest = scorer.about.sha256["model.pt2"]
    assert served.ask("/score", rows) == (200, {"model": digest, "scores": expected})
    assert served.ask("/score", rows[7]) == (200, {"model": digest, "scores": [expected[7]]})
    assert served.ask("/score", []) == (200, {"model": digest, "scores": []})
    same = served.ask("/score", {**rows[7], "user": float(rows[7]["user"])})
    assert same == (200, {"model": digest, "scores": [expected[7]]})
    status, about = served.ask("/health")
    assert (status, about["status"], about["model"]) == (200, "ok", digest)
    assert sorted(about["reads"]) == sorted([*FEATURES, "price"])
    assert about["returns"] == list(expected[0])

    wrong = [
        (b"{", 400, "expected JSON"),
        (b"[1]", 400, "expected a row as a JSON object, or an array of them"),
        ({**rows[0], "itme": 1}, 422, "rows[0]: column 'itme' is not in the schema"),
        (
            {**rows[0], "usr": 1},
            422,
            'score(..., extra="ignore") in Python, --extra ignore of serve',
        ),
        ([rows[0], {}], 422, "rows[1]: no column"),
        (
            [rows[0], {**rows[1], "user": 2.0**60}],
            422,
            "rows[1]: column 'user': the float 1.152921504606847e+18",
        ),
        ([{}] * 10_001, 413, "expected at most 10,000 rows, got 10,001"),
        ({}, 422, "which the model reads; got no columns"),
        ({**rows[0], "price": -5}, 422, "column price: expected finite prices >= 0, got -5"),
        (b'[{"user": 1, "user": 2}]', 400, "an object has the key 'user' 2 times"),
        (b'{"price": NaN}', 400, "NaN is not a number of JSON; a missing value is null"),
        (b'{"price": -Infinity}', 400, "-Infinity is not a number of JSON"),
        (b'{"price": 1e400}', 400, "the number 1e400 is beyond the range of float64"),
        ({"x" * 100_000: 1, "\ud800": 1}, 422, "rows[0]: no column '"),
        (b"[" + b"{}," * (1 << 22) + b"{}]", 413, "expected rows that take at most 512 MiB"),
    ]
    for content, status, message in wrong:
        found, answer = served.ask("/score", content)
        assert (found, message in answer["error"]) == (status, True), answer
        assert len(answer["error"]) < 500
    assert served.ask("/score/", rows[0]) == (404, {"error": "Not Found"})
    assert served.ask("/score") == (405, {"error": "Method Not Allowed"})
    assert served.ask("/scores") == (404, {"error": "Not Found"})

    text = served.ask("/metrics")[1]
    assert 'adaftr_fast_requests_total{status="200"} 4.0' in text
    assert 'adaftr_fast_requests_total{status="422"} 7.0' in text
    assert "adaftr_fast_rows_total 42.0" in text
    assert f'adaftr_fast_model{{sha256="{digest}"}} 1.0' in text


SCORE = """
import json, sys
from adaftr_fast.serving.reload import ReloadingScorer
print(json.dumps(ReloadingScorer(sys.argv[1]).scorer.score(json.loads(sys.argv[2])).to_pylist()))
"""


def test_a_model_of_int8_tables_is_served(shop, tmp_path):
    """Its op is defined in a process that imports nothing else."""
    export_run(shop / "run", tmp_path / "model", int8=True)
    row = make_log(1, seed=3).select(FEATURES).to_pylist()[0]
    command = [sys.executable, "-c", SCORE, tmp_path / "model", json.dumps(row)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == load_scorer(tmp_path / "model").score(row).to_pylist()


def test_no_request_is_lost_while_the_model_is_replaced(served, exported, other, tmp_path):  # noqa: F811
    """200 clients ask at once, again and again; each answer is that of one of the two models, to
    the bit.
    """
    rows = make_log(CLIENTS, seed=9).select([*FEATURES, "price"]).to_pylist()
    models = [load_scorer(folder, bid="price") for folder in (exported[0], other)]
    expected = {each.about.sha256["model.pt2"]: each.score(rows).to_pylist() for each in models}
    assert len(expected) == 2
    end = time.monotonic() + 3
    seen = []

    def ask(number):
        while time.monotonic() < end or len(set(seen)) < 2:
            assert time.monotonic() < end + 60
            status, answer = served.ask("/score", rows[number])
            assert status == 200, answer
            assert answer["scores"] == [expected[answer["model"]][number]]
            seen.append(answer["model"])

    replacing = threading.Thread(target=lambda: [time.sleep(1), replace(tmp_path / "model", other)])
    replacing.start()
    with ThreadPoolExecutor(CLIENTS) as pool:
        for done in [pool.submit(ask, number) for number in range(CLIENTS)]:
            done.result()
    replacing.join()
    text = served.ask("/metrics")[1]
    calls = float(re.search(r"adaftr_fast_batch_requests_count (\S+)", text)[1])
    assert len(seen) > 2 * calls  # requests were scored together
    printed = served.process.printed()
    assert re.findall(r"model: loaded model (\w+), ", printed) == [*expected]


def test_requests_in_progress_are_answered_before_the_end(served):
    rows = make_log(5_000, seed=1).select([*FEATURES, "price"]).to_pylist()
    with ThreadPoolExecutor(4) as pool:
        answers = [pool.submit(served.ask, "/score", rows) for _ in range(4)]
        while "batch_requests_count 0.0" in served.ask("/metrics")[1]:
            time.sleep(0.01)
        os.kill(served.process.pid, signal.SIGTERM)
        assert [len(answer.result()[1]["scores"]) for answer in answers] == [5_000] * 4


def raw(port, *parts):
    """Sends bytes, and returns all that the server answers until it closes the connection."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        for part in parts:
            connection.sendall(part)
        return b"".join(iter(lambda: connection.recv(1 << 16), b"")).decode()


HEAD = b"POST /score HTTP/1.1\r\nHost: here\r\n"


def test_errors_of_the_protocol_are_json_and_two_lengths_close_the_connection(served):
    answer = raw(served.port, b"no HTTP\r\n\r\n")
    assert answer.startswith("HTTP/1.1 400 ")
    assert json.loads(answer.split("\r\n\r\n")[1]) == {"error": "Invalid HTTP request received."}
    lengths = b"Content-Length: 7\r\nTransfer-Encoding: chunked\r\n\r\n"
    smuggled = b"GET /health HTTP/1.1\r\nHost: here\r\n\r\n"
    answer = raw(served.port, HEAD + lengths + b"2\r\n[]\r\n0\r\n\r\n" + smuggled)
    assert answer.count("HTTP/1.1 ") == 1
    assert "\r\nconnection: close\r\n" in answer


def test_a_body_that_does_not_arrive_does_not_hold_up_the_end(served):
    unfinished = HEAD + b"Content-Length: 10\r\n\r\n["
    with ThreadPoolExecutor(3) as pool:
        answers = [pool.submit(raw, served.port, unfinished) for _ in range(3)]
        # all are accepted, and their heads are read before the next request
        wait_for(lambda: len(connections(served.process.pid)) >= 3)
        served.ask("/health")
        served.process.send_signal(signal.SIGTERM)
        for answer in answers:
            head, _, body = answer.result().partition("\r\n\r\n")
            assert head.startswith("HTTP/1.1 503 ")
            assert "\r\nconnection: close" in head
            assert json.loads(body) == {"error": "the server ends, and the body has not arrived"}
    _, errors = served.process.end(0)
    assert errors == ""


def connections(pid):
    """Returns the sockets of a process that are connected."""
    links = [os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir()]
    rows = [line.split() for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]]
    connected = {f"socket:[{row[9]}]" for row in rows if row[3] == "01"}
    return connected.intersection(links)


def test_a_port_in_use_and_a_folder_without_a_model_are_named(served, exported, tmp_path, capsys):
    from adaftr_fast.cli import main

    assert main(["serve", str(exported[0]), "--port", str(served.port)]) == 2
    assert "ddress already in use" in capsys.readouterr().err
    assert main(["serve", str(tmp_path / "none")]) == 2
    assert "none: not an exported model" in capsys.readouterr().err
    assert main(["serve", str(exported[0]), "--port", "70000"]) == 2
    assert "port: expected 0 to 65535, got 70000" in capsys.readouterr().err


def test_the_rows_of_other_requests_change_no_value(exported):
    """A column of text beside numbers would be text, and a price by the marks of the schema another
    one.
    """
    scorer = load_scorer(exported[0], bid="price")
    rows = make_log(4, seed=3).select([*FEATURES, "price"]).to_pylist()
    rows[0]["item"], rows[1]["item"] = 12345678901.5, "x"
    rows[0]["price"], rows[1]["price"] = "1.5", 2.0
    alone = [scorer.score([row]).to_pylist() for row in rows]
    wrong = [{**rows[2], "price": float("inf")}], [{**rows[3], "item": [1]}]
    found = score_each(scorer, [[rows[0]], wrong[0], [rows[1]], [], wrong[1], rows[2:]], "error")
    assert found[0].to_pylist() == alone[0]
    assert found[2].to_pylist() == alone[1]
    assert len(found[3]) == 0
    assert found[5].to_pylist() == alone[2] + alone[3]
    assert "expected finite prices >= 0, got inf" in str(found[1])
    assert "expected one value" in str(found[4])


async def asked(app, content, *, ends=True):
    """Returns the messages that an application sends in answer to /score; ``ends`` is whether the
    body does.
    """
    sent = []
    parts = [content]

    async def receive():
        if not parts:
            await asyncio.Event().wait()
        return {"type": "http.request", "body": parts.pop(), "more_body": not ends}

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/score",
        "headers": [],
        "query_string": b"",
        "root_path": "",
    }
    await app(scope, receive, send)
    return sent


def test_without_its_lifespan_an_application_refuses(exported):
    status, body = asyncio.run(asked(application(ReloadingScorer(exported[0])), b"{}"))
    assert status["status"] == 503
    assert b"lifespan" in body["body"]


def test_bodies_have_a_deadline_and_share_a_budget(exported, monkeypatch):
    monkeypatch.setattr(server, "BODY_SECONDS", 0.5)
    monkeypatch.setattr(server, "Budget", partial(Budget, 1050))
    app = application(ReloadingScorer(exported[0]))

    async def running():
        asking = [asked(app, b" " * 100, ends=False) for _ in range(12)]
        return await asyncio.wait_for(asyncio.gather(*asking), 60)

    answers = [sent[0] for sent in asyncio.run(running())]
    assert sorted(each["status"] for each in answers) == [408] * 10 + [503] * 2
    assert all(
        ((b"connection", b"close") in each["headers"]) == (each["status"] == 408)
        for each in answers
    )


def test_a_bid_that_is_not_finite_is_an_error_of_the_request(exported):
    app = application(ReloadingScorer(exported[0], bid="price", bid_weight=1e9))
    (row,) = make_log(1).select([*FEATURES, "price"]).to_pylist()
    content = json.dumps([row | {"price": 1e308}], default=str).encode()

    async def running():
        async with app.router.lifespan_context(app):
            return await asked(app, content)

    status, body = asyncio.run(running())
    assert (status["status"], "error" in json.loads(body["body"])) == (500, True)
