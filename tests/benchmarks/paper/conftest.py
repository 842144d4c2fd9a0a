"""Small logs, on which an epoch takes a fraction of a second."""

import pyarrow.parquet as pq
import pytest

from adaftr_fast.config import ModelConfig, OptimizerConfig, RunConfig, TrainingConfig
from adaftr_fast.data.dataset.loader import PreparedData
from adaftr_fast.data.prepare.run import prepare
from adaftr_fast.data.schema.parse import load_schema, parse_schema
from tests.logs import by_hash, shop_log

SCHEMA = {
    "name": "tiny",
    "labels": {
        "click": "click",
        "view": [["click", "==", 1], ["price", ">", 0.3]],
        "conversion": "conversion",
    },
    "group": "user",
    "split": by_hash(0.7, 0.8),
    "fields": {"user": "categorical", "item": "categorical", "time": "numeric"},
}

BUDGET = RunConfig(
    model=ModelConfig(
        embedding_dim=4, expert_hidden=[8], tower_hidden=[8, 4], relatedness_hidden=[4]
    ),
    optimizer=OptimizerConfig(lr=0.01),
    training=TrainingConfig(batch_size=200, max_epochs=2, progress=False),
)


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A prepared log with three tasks."""
    place = tmp_path_factory.mktemp("tiny")
    pq.write_table(shop_log(3000, users=30), place / "log.parquet")
    prepare(parse_schema(SCHEMA), [place / "log.parquet"], place / "data")
    return place / "data"


@pytest.fixture(scope="session")
def generated(tmp_path_factory):
    """A prepared log with true probabilities."""
    source = load_schema("synthetic").source
    sizes = {
        "rows": 12_000,
        "users": 200,
        "items": 60,
        "rates": {"click": 0.3, "conversion": 0.15},
        "spread": 2.0,
    }
    schema = parse_schema(source | {"generate": source["generate"] | sizes})
    folder = tmp_path_factory.mktemp("generated") / "data"
    prepare(schema, [], folder)
    return folder


@pytest.fixture
def data(folder):
    return PreparedData(folder)


@pytest.fixture
def budget():
    return BUDGET
