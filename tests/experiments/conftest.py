"""A small prepared log with three tasks, on which an epoch takes a fraction of a second."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from adaftr_fast.config import ModelConfig, OptimizerConfig, RunConfig, TrainingConfig
from adaftr_fast.data.dataset.loader import PreparedData
from adaftr_fast.data.prepare.run import prepare
from adaftr_fast.data.schema.parse import parse_schema
from tests.logs import by_day

SCHEMA = {
    "name": "tiny",
    "labels": {
        "click": "click",
        "view": [["click", "==", 1], ["depth", ">", 0]],
        "conversion": [["click", "==", 1], ["depth", ">", 1]],
    },
    "group": "user",
    "split": by_day(7),
    "fields": {"user": "categorical", "item": "categorical", "heat": "numeric"},
}


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    random = np.random.default_rng(0)
    rows, place = 3000, tmp_path_factory.mktemp("tiny")
    item = random.integers(0, 40, rows)
    columns = {
        "day": 1 + np.arange(rows) * 9 // rows,
        "user": random.integers(0, 30, rows),
        "item": item,
        "heat": random.normal(size=rows),
        "click": (random.random(rows) < 1 / (1 + np.exp(-(item - 20) / 6))).astype(np.int8),
        "depth": random.integers(0, 4, rows),
    }
    pq.write_table(pa.table(columns), place / "log.parquet")
    prepare(parse_schema(SCHEMA), [place / "log.parquet"], place / "data")
    return place / "data"


@pytest.fixture
def data(folder):
    return PreparedData(folder)


@pytest.fixture
def budget():
    return RunConfig(
        model=ModelConfig(
            embedding_dim=4, expert_hidden=[8], tower_hidden=[8, 4], relatedness_hidden=[4]
        ),
        optimizer=OptimizerConfig(lr=0.01),
        training=TrainingConfig(batch_size=200, max_epochs=2, progress=False),
    )
