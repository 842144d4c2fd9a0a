"""A small prepared log with three tasks, on which an epoch takes a fraction of a second."""

import pyarrow.parquet as pq
import pytest

from adaftr_fast.config import ModelConfig, OptimizerConfig, RunConfig, TrainingConfig
from adaftr_fast.data.dataset.loader import PreparedData
from adaftr_fast.data.prepare.run import prepare
from adaftr_fast.data.schema.parse import parse_schema
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


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("tiny")
    pq.write_table(shop_log(3000, users=30), place / "log.parquet")
    prepare(parse_schema(SCHEMA), [place / "log.parquet"], place / "data")
    return place / "data"


@pytest.fixture
def config(tmp_path):
    """A file with the options of small models."""
    path = tmp_path / "base.toml"
    path.write_text(
        "[model]\nembedding_dim = 2\nexpert_hidden = [4]\ntower_hidden = [4]\nrelatedness_hidden "
        "= [4]\n"
        "[training]\nbatch_size = 200\nmax_epochs = 1\nprogress = false\n"
    )
    return path


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
