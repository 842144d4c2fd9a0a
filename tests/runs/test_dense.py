"""Runs on logs with dense fields: from raw rows to scores, and warm-started."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from adaftr_fast.config import WarmStartConfig
from adaftr_fast.data.dataset.loader import PreparedData
from adaftr_fast.data.prepare.run import prepare
from adaftr_fast.data.schema.parse import parse_schema
from adaftr_fast.models import build_model
from adaftr_fast.runs.run import build, train_one
from adaftr_fast.runs.warm_start import warm_start

from .conftest import SOURCE, settings

FIELDS = {
    "item": "categorical",
    "tags": {"kind": "categorical", "tokens": "all"},
    "heat": "dense",
    "spent": {"kind": "dense", "encoding": "log"},
    "depth": {"kind": "dense", "column": "spent", "encoding": "piecewise", "buckets": 8},
    "same": {"kind": "dense"},
}
TAGS = {"kind": "categorical", "tokens": "last"}
PARTS = {
    "train": [["row", "<", 640]],
    "validation": [["row", "in", list(range(640, 720))]],
    "test": [["row", ">=", 720]],
}
SCHEMA = SOURCE | {
    "fields": FIELDS,
    "split": {name: {"where": where} for name, where in PARTS.items()},
}


def log_of(rows=800, seed=0):
    """Returns impressions whose clicks follow ``heat`` and ``spent``, which is missing for every
    tenth.
    """
    random = np.random.default_rng(seed)
    heat = random.normal(5, 2, rows)
    spent = random.lognormal(3, 2, rows)
    spent[random.random(rows) < 0.1] = np.nan
    chance = 1 / (1 + np.exp(-(heat - 5) - (np.log1p(np.nan_to_num(spent)) - 3)))
    click = random.random(rows) < chance
    return pa.table(
        {
            "row": np.arange(rows),
            "item": random.integers(0, 20, rows),
            "user": [f"u{i}" for i in random.integers(0, 60, rows)],
            "tags": [random.integers(0, 9, n).tolist() for n in random.integers(0, 4, rows)],
            "heat": heat,
            "spent": pa.array(spent, from_pandas=True),
            "same": np.full(rows, 7),
            "click": click.astype(np.int8),
            "buy": (click & (random.random(rows) < 0.5)).astype(np.int8),
        }
    )


@pytest.fixture
def ready(tmp_path):
    """Returns a function that prepares a log with dense fields, and opens it."""

    def ready(name="data", log=None, grow=None, **changes):
        fields = {key: value for key, value in (FIELDS | changes).items() if value is not None}
        pq.write_table(log_of() if log is None else log, tmp_path / f"{name}.parquet")
        prepare(
            parse_schema(SCHEMA | {"fields": fields}),
            [tmp_path / f"{name}.parquet"],
            tmp_path / name,
            grow=grow,
        )
        return PreparedData(tmp_path / name)

    return ready


def test_every_model_reads_the_numbers(ready):
    data = ready(tags=TAGS)
    batch = next(data.load("train").batches(64))
    for name in ("single_dnn", "cross_stitch", "ple", "autoheri", "escm2_dr", "adaftr"):
        model = build(settings(name=name).model, data)
        assert not torch.equal(model(*batch.features), model(batch.ids, None, batch.dense + 1)), (
            name
        )
        torch.stack(tuple(model.loss(batch).values())).sum().backward()
        assert all(p.grad is not None for p in model.parameters() if p.dim() > 1), name
        with pytest.raises(ValueError, match=r"dense must be float32 \[B, 4\], got None"):
            model(batch.ids)
    plain = build_model(settings().model, data.manifest.num_embeddings, data.manifest.tasks)
    with pytest.raises(
        ValueError, match=r"dense must be None, without dense fields, got torch.float32 \[64, 4\]"
    ):
        plain(batch.ids, None, batch.dense)


def test_a_warm_start_copies_layers_if_the_encodings_are_the_same(ready, tmp_path):
    data = ready()
    train_one(data, settings(data.folder), tmp_path / "run")
    same = ready("same", log_of(seed=1), grow=data.folder)
    other = ready("other", log_of(seed=1))
    assert same.manifest.dense == data.manifest.dense != other.manifest.dense
    start = WarmStartConfig(str(tmp_path / "run"))
    assert warm_start(build(settings().model, same), same, start).fresh == {}
    fresh = warm_start(build(settings().model, other), other, start).fresh
    layers = [
        f"{layer}.{kind}" for layer in ("experts.first", "gates") for kind in ("weight", "bias")
    ]
    assert fresh == dict.fromkeys(layers, "the fields it reads differ")
