"""The log of a small shop, prepared and trained on once by the Python API."""

import numpy as np
import pyarrow as pa
import pyarrow.csv as csv
import pytest

import adaftr_fast as af

MODEL = {"name": "adaftr", "expert_hidden": [8], "tower_hidden": [16, 8], "relatedness_hidden": [4]}
OPTIMIZER = {"lr": 0.01}
TRAINING = {"batch_size": 128, "max_epochs": 2, "progress": False}
ROLES = {"labels": ["click", "conversion"], "group": "user", "time": "time"}


@pytest.fixture(scope="session")
def shop(tmp_path_factory):
    """A folder with ``log.csv``."""
    folder = tmp_path_factory.mktemp("shop")
    random, rows = np.random.default_rng(0), 1200
    item = random.integers(0, 40, rows)
    click = random.random(rows) < 1 / (1 + np.exp(-(item - 20) / 6))
    columns = {
        "time": np.arange(rows),
        "user": [f"u{i}" for i in random.integers(0, 30, rows)],
        "item": item,
        "price": random.random(rows).round(2),
        "click": click.astype(np.int8),
        "conversion": (click & (random.random(rows) < 0.4)).astype(np.int8),
    }
    csv.write_csv(pa.table(columns), folder / "log.csv")
    return folder


@pytest.fixture(scope="session")
def data(shop):
    return af.prepare(shop / "log.csv", shop / "data", **ROLES, progress=False)


@pytest.fixture(scope="session")
def run(shop, data):
    return af.train(data, shop / "run", model=MODEL, optimizer=OPTIMIZER, training=TRAINING)


@pytest.fixture(scope="session")
def model(shop, run):
    return af.export(run, shop / "model")
