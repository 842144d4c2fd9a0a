"""The log of a small shop, prepared and trained on once by the Python API."""

import pyarrow.csv as csv
import pytest

import adaftr_fast as af
from tests.logs import shop_log

MODEL = {"name": "adaftr", "expert_hidden": [8], "tower_hidden": [16, 8], "relatedness_hidden": [4]}
OPTIMIZER = {"lr": 0.01}
TRAINING = {"batch_size": 128, "max_epochs": 2, "progress": False}
ROLES = {"labels": ["click", "conversion"], "group": "user", "time": "time"}


@pytest.fixture(scope="session")
def shop(tmp_path_factory):
    """A folder with ``log.csv``."""
    folder = tmp_path_factory.mktemp("shop")
    csv.write_csv(shop_log(1200, users=30), folder / "log.csv")
    return folder


@pytest.fixture(scope="session")
def data(shop):
    return af.prepare(shop / "log.csv", shop / "data", **ROLES)


@pytest.fixture(scope="session")
def run(shop, data):
    options = {"model": MODEL, "optimizer": OPTIMIZER, "training": TRAINING}
    return af.train(data, shop / "run", preset="paper", **options)


@pytest.fixture(scope="session")
def model(shop, run):
    return af.export(run, shop / "model")
