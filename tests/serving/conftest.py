"""A small prepared log and checkpoints of untrained models, as inputs of an export."""

from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from adaftr_fast.config import DataConfig, ModelConfig, RunConfig
from adaftr_fast.data.dataset.loader import PreparedData
from adaftr_fast.data.dataset.manifest import FieldInfo
from adaftr_fast.data.prepare.run import prepare
from adaftr_fast.data.schema.parse import parse_schema
from adaftr_fast.models import build_model
from adaftr_fast.serving.export import export_run, random_rows
from adaftr_fast.training.checkpoint.weights import Description, save_checkpoint
from adaftr_fast.training.evaluation import predict
from tests.logs import by_day

SOURCE = {
    "name": "shop",
    "labels": {"click": "clicked", "conversion": [["paid", ">", 0.0]]},
    "split": by_day(9),
    "fields": {
        "item": "categorical",
        "place": "categorical",
        "heat": {"kind": "numeric", "buckets": 4},
        "item_place": {"cross": ["item", "place"]},
        "user": {"kind": "categorical", "hashed": 50},
        "tags": {"kind": "categorical", "tokens": "last", "separator": "|"},
        "day": {"kind": "categorical", "column": "weekday"},
    },
}
SIZES = {"expert_hidden": [16], "tower_hidden": [16, 8], "relatedness_hidden": [4]}


def scores(path):
    """Reads the scores of a file, [rows, 2]."""
    table = pq.read_table(path)
    return np.stack([table["p_ctr"], table["p_ctcvr"]], 1)


def scores_of_trainer(model, folder):
    """Computes the scores of the rows of all splits as the trainer does, [rows, 2]."""
    data = PreparedData(folder)
    splits = ("train", "validation", "test")
    logits = [predict(model, data.load(split), 100).logits for split in splits]
    return torch.from_numpy(np.concatenate(logits)).sigmoid().numpy()


def make_log(rows: int = 600, seed: int = 0) -> pa.Table:
    """Makes impressions of ten days with every kind of column; ``row`` numbers them."""
    random = np.random.default_rng(seed)
    click = random.random(rows) < 0.4
    return pa.table(
        {
            "row": np.arange(rows),
            "day": 1 + np.arange(rows) * 10 // rows,
            "weekday": [("mon", "tue", None)[i] for i in random.integers(0, 3, rows)],
            "item": random.integers(0, 30, rows),
            "place": [f"p{i}" for i in random.integers(0, 5, rows)],
            "heat": random.normal(size=rows).round(3),
            "user": random.integers(0, 200, rows),
            "tags": [
                "|".join(map(str, random.integers(0, 9, n))) for n in random.integers(1, 4, rows)
            ],
            "price": random.random(rows).round(2),
            "clicked": click.astype(np.int8),
            "paid": np.where(click & (random.random(rows) < 0.5), 1.5, 0.0),
        }
    )


@torch.no_grad()
def randomize(model, seed=1):
    """Draws weights that are large enough for scores to differ between rows."""
    torch.manual_seed(seed)
    for parameter in model.parameters():
        parameter.normal_(0, 0.7)


def drawing(sizes, *multiple):
    """Returns a function that draws rows of fields, of which those of ``multiple`` are
    multi-valued.
    """
    fields = [
        FieldInfo(str(f), "categorical", [], size, multiple=f in multiple)
        for f, size in enumerate(sizes)
    ]
    return partial(random_rows, fields, [])


def random_ids(sizes, rows):
    return drawing(sizes)(rows).ids


def save_run(folder, data: PreparedData, config: ModelConfig):
    """Writes a run with random weights; returns the model."""
    names = [field.name for field in data.manifest.fields]
    manifest = data.manifest
    model = build_model(config, manifest.num_embeddings, manifest.tasks, names, manifest.dense)
    randomize(model)
    settings = RunConfig(data=DataConfig(str(data.folder)), model=config)
    sizes = (manifest.fingerprint, manifest.num_embeddings, manifest.tasks)
    about = Description(settings, *sizes, {}, names, manifest.dense)
    save_checkpoint(folder / "best", model, about)
    return model.eval()


def make_export(folder, log):
    """Prepares a log and exports an AdaFTR of random weights to the folder ``model``; returns the
    model.
    """
    pq.write_table(log, folder / "log.parquet")
    prepare(parse_schema(SOURCE), [folder / "log.parquet"], folder / "data")
    model = save_run(folder / "run", PreparedData(folder / "data"), ModelConfig(**SIZES))
    export_run(folder / "run", folder / "model")
    return model


@pytest.fixture(scope="session")
def exported(tmp_path_factory):
    """The folder of an exported AdaFTR, and the model."""
    folder = tmp_path_factory.mktemp("shop")
    model = make_export(folder, make_log())
    return folder / "model", model


@pytest.fixture(scope="session")
def shop(exported):
    """A folder with ``log.parquet``, the prepared folder ``data`` and the run ``run``."""
    return exported[0].parent
