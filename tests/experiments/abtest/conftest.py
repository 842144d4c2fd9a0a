"""A small generated log, on which an epoch takes a fraction of a second."""

import pytest

from adaftr_fast.data.dataset.loader import PreparedData
from adaftr_fast.data.prepare.run import prepare
from adaftr_fast.data.schema.parse import load_schema, parse_schema
from adaftr_fast.experiments.auctions import Auctions


@pytest.fixture(scope="session")
def generated(tmp_path_factory):
    """The prepared folder."""
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
def data(generated):
    return PreparedData(generated)


@pytest.fixture
def auctions(data):
    return Auctions(data, 5)


@pytest.fixture
def budget(budget):
    return budget.with_options(optimizer={"lr": 0.02}, training={"max_epochs": 1})
