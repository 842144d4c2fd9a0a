"""Daily logs of a small shop; each day has new items."""

from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from adaftr_fast.config import DataConfig, ModelConfig, OptimizerConfig, RunConfig, TrainingConfig
from adaftr_fast.data.dataset.loader import PreparedData
from adaftr_fast.data.prepare.run import prepare
from adaftr_fast.data.schema.parse import parse_schema
from adaftr_fast.extras.trackers.log import Trackers
from adaftr_fast.extras.trackers.packages import CLASSES
from adaftr_fast.runs.output import Output
from tests.logs import by_hash

SOURCE = {
    "name": "shop",
    "group": "user",
    "labels": {"click": "click", "conversion": "buy"},
    "split": by_hash(0.8, 0.9),
    "fields": {
        "item": "categorical",
        "user": "categorical",
        "heat": {"kind": "numeric", "buckets": 4},
        "place": {"kind": "categorical", "column": "user", "hashed": 20},
    },
}


def write_day(folder, day, rows=800):
    random = np.random.default_rng(day)
    item = random.integers(10 * day, 10 * day + 40, rows)
    chance = 1 / (1 + np.exp(-((item * 7919) % 23 - 11) / 3))
    click = random.random(rows) < chance
    columns = {
        "item": item,
        "user": [f"u{i}" for i in random.integers(0, 60, rows)],
        "heat": random.normal(day, 1, rows),
        "click": click.astype(np.int8),
        "buy": (click & (random.random(rows) < 0.5)).astype(np.int8),
    }
    path = folder / f"day{day}.parquet"
    pq.write_table(pa.table(columns), path)
    return path


def keep_few_conversions(path, rows=20):
    """Removes the conversions of a day but those of the first rows, none of which is in the
    validation split.
    """
    log = pq.read_table(path)
    bought = log["buy"].to_numpy().copy()
    bought[rows:] = 0
    pq.write_table(log.set_column(log.column_names.index("buy"), "buy", pa.array(bought)), path)


def prepare_day(folder, day, name="data", grow=None, fields=None, labels=None):
    """Prepares a day in a folder, with optional changes to the schema, and opens it."""
    source = SOURCE | {"fields": fields or SOURCE["fields"], "labels": labels or SOURCE["labels"]}
    prepare(parse_schema(source), [write_day(folder, day)], folder / name, grow=grow)
    return PreparedData(folder / name)


@pytest.fixture
def prepared(tmp_path):
    """Returns a function that prepares a day in the test's folder."""
    return partial(prepare_day, tmp_path)


def settings(folder="", **model):
    sizes = {"expert_hidden": [8], "tower_hidden": [16, 16], "relatedness_hidden": [4]}
    return RunConfig(
        DataConfig(str(folder)),
        ModelConfig(**(sizes | model)),
        OptimizerConfig(lr=0.01),
        TrainingConfig(batch_size=64, max_epochs=2, progress=False),
    )


class FakeTracker:
    """Keeps what it gets; logging the step ``stops_at`` does not return, as in a process that is
    killed in it.

    Attributes:
        made: the trackers of all processes, in order.
        fails: whether it cannot be opened.
    """

    made: list["FakeTracker"]
    fails = False
    stops_at = 0

    def __init__(self, opening):
        if self.fails:
            raise ConnectionError("no route to host")
        # a tracker that is open may be returned for the next run
        assert all(each.closed for each in self.made)
        self.opening, self.known = opening, opening.known or "id"
        self.logged = {}
        self.closed = []
        self.made.append(self)

    def log(self, numbers, step):
        self.logged[step] = numbers
        if step == self.stops_at:
            raise KeyboardInterrupt

    def log_test(self, numbers):
        self.logged["test"] = numbers

    def close(self, failed):
        self.closed.append("failed" if failed else "finished")


TRACKED = Output(Path(), open_trackers=Trackers)


@pytest.fixture
def tracker(monkeypatch):
    """The class of the trackers named wandb."""
    kind = type("Fresh", (FakeTracker,), {"made": []})
    monkeypatch.setitem(CLASSES, "wandb", kind)
    return kind
