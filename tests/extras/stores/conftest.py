"""Two stores: a folder of this machine by fsspec's scheme ``local``, and moto's S3 server on
loopback, for which s3fs must be installed.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import pytest

from adaftr_fast.extras.stores.filesystems import filesystem, put

BUCKET = "bucket"


@dataclass
class Store:
    """A folder of a test's own.

    Attributes:
        url: its URL.
    """

    url: str

    def put(self, file, name):
        """Uploads a file as other programs do. Returns its URL."""
        fs, path = filesystem(f"{self.url}/{name}")
        put(fs, Path(file), path)
        return f"{self.url}/{name}"

    def names(self):
        """Returns the paths of all objects."""
        fs, path = filesystem(self.url)
        return sorted(each.removeprefix(f"{path}/") for each in fs.find(path))

    def remove(self, name):
        fs, path = filesystem(f"{self.url}/{name}")
        fs.rm_file(path)


@pytest.fixture(scope="session")
def s3_server():
    pytest.importorskip("s3fs", reason="needs s3fs (pip install s3fs)")
    moto = pytest.importorskip("moto.server", reason="needs moto (pip install moto[server])")
    server = moto.ThreadedMotoServer(port=0, verbose=False)
    server.start()
    os.environ |= {
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": "http://{}:{}".format(*server.get_host_and_port()),
    }
    filesystem(f"s3://{BUCKET}")[0].mkdir(BUCKET)
    yield
    server.stop()


@pytest.fixture(params=["local", "s3"])
def store(request, monkeypatch, tmp_path):
    monkeypatch.setenv("ADAFTR_FAST_CACHE", str(tmp_path / "cache"))
    if request.param == "local":
        return Store(f"local://{tmp_path}/store")
    request.getfixturevalue("s3_server")
    return Store(f"s3://{BUCKET}/{tmp_path.name}")


@pytest.fixture
def elsewhere(monkeypatch, tmp_path):
    """Returns a function that goes to another machine, whose cache is empty."""
    machines = iter(range(100))
    return lambda: monkeypatch.setenv("ADAFTR_FAST_CACHE", str(tmp_path / f"m{next(machines)}"))
