"""A small generated log, on which an epoch takes a fraction of a second."""

import pytest

from adaftr_fast.config import ModelConfig, OptimizerConfig, RunConfig, TrainingConfig
from adaftr_fast.data.dataset.loader import PreparedData
from adaftr_fast.data.prepare.run import prepare
from adaftr_fast.data.schema.parse import load_schema, parse_schema
from adaftr_fast.experiments.auctions import Auctions


@pytest.fixture(scope="session")
def generated(tmp_path_factory):
    """The prepared folder."""
    source = load_schema("synthetic").source
    sizes = {"rows": 12_000, "users": 200, "items": 60, "rates": {"click": 0.3, "conversion": 0.15}, "spread": 2.0}
    schema = parse_schema(source | {"generate": source["generate"] | sizes})
    folder = tmp_path_factory.mktemp("generated") / "data"
    prepare(schema, [], folder)
    return folder


@pytest.fixture
def data(generated):
    return PreparedData(generated)


@pytest.fixture
def auctions(data):
    return Auctions(data, 5)


@pytest.fixture
def budget():
    return RunConfig(
        model=ModelConfig(embedding_dim=4, expert_hidden=[8], tower_hidden=[8, 4], relatedness_hidden=[4]),
        optimizer=OptimizerConfig(lr=0.02),
        training=TrainingConfig(batch_size=200, max_epochs=1, progress=False),
    )
