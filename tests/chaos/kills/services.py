"""An S3 server and a Kafka broker for the commands that are killed, in a process of their own.

The topic has the rows of three days, and after every 200 of them a message that cannot be read.
"""

import functools
import importlib.util
import itertools
import json
import os
import subprocess
import sys
import threading
import urllib.request

from tests.chaos.kills.processes import servers

BUCKET, TOPIC, BROKER = "bucket", "shop", "CHAOS_KAFKA"  # an environment variable
BETWEEN = 200  # rows between two messages that cannot be read
POISON = (
    b"", b"{", b"[]", b"null", b"\xff", b"[" * 5000, b'{"item": 1}', b'{"click": 2, '
b'"conversion": 0}',
    b'{"item": "\\ud800", "click": 0, '
b'"conversion": 0}', b'{"x": "warm", "click": 0, "conversion": 0}',
    b'{"x": {}, "click": 0, "conversion": 0}', b'{"click": null, "conversion": 0}',
)  # fmt: skip


def are_installed():
    return all(importlib.util.find_spec(name) for name in ("moto", "s3fs", "confluent_kafka"))


@functools.cache
def start(inputs):
    """Starts the servers, which end with this process, and sets the environment of the commands."""
    days = [str(inputs / f"day{day}.parquet") for day in (1, 2, 3)]
    script = "import sys; from tests.chaos.kills.services import serve; serve(sys.argv[1:])"
    command = [sys.executable, "-c", script, *days]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    servers.add(process.pid)
    places = json.loads(process.stdout.readline())
    os.environ |= {
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    os.environ |= {
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": places["s3"],
        BROKER: places["kafka"],
    }
    return process


def empty_store():
    """Removes all that the S3 server holds but the bucket."""
    for method, path in (("POST", "moto-api/reset"), ("PUT", BUCKET)):
        request = urllib.request.Request(
            f"{os.environ['AWS_ENDPOINT_URL']}/{path}", method=method, data=b""
        )
        urllib.request.urlopen(request).close()


def serve(days):
    """Runs the servers until stdin ends."""
    s3, (producer, broker) = serve_s3(), serve_topic(days)
    print(json.dumps({"s3": s3, "kafka": broker}), flush=True)
    sys.stdin.read()
    producer.flush(1)


def serve_s3():
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Quiet(WSGIRequestHandler):
        protocol_version = "HTTP/1.1"

        def log(self, *_):
            pass

    application = DomainDispatcherApplication(create_backend_app)
    server = make_server("127.0.0.1", 0, application, threaded=True, request_handler=Quiet)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_port}"


def serve_topic(days):
    import pyarrow.parquet as pq
    from confluent_kafka import Producer

    producer = Producer({"test.mock.num.brokers": 1, "bootstrap.servers": "none", "log_level": 0})
    (broker,) = producer.list_topics(TOPIC, timeout=10).brokers.values()
    poison = itertools.cycle(POISON)
    for number, row in enumerate(row for day in days for row in pq.read_table(day).to_pylist()):
        producer.produce(
            TOPIC, json.dumps(row | {"meta": {}}).encode(), partition=0, timestamp=1_700_000_000_000
        )
        if number % BETWEEN == BETWEEN - 1:
            producer.produce(TOPIC, next(poison), partition=0, timestamp=1_700_000_000_000)
    assert producer.flush(30) == 0
    return producer, f"{broker.host}:{broker.port}"
