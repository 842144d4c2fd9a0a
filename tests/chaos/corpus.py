"""Whole files of every kind, small, from which the parsers' cases are made."""

import functools
import io
import json
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import torch

from adaftr_fast.config import RunConfig
from adaftr_fast.data.dataset.loader import PreparedData
from adaftr_fast.data.prepare.run import prepare
from adaftr_fast.data.schema.parse import load_schema, shipped_schemas
from adaftr_fast.data.synthetic.log import LogConfig
from adaftr_fast.data.synthetic.write import write_raw
from adaftr_fast.runs.run import train_one
from adaftr_fast.training.checkpoint.snapshots import save_snapshot

ROWS = 60
SCHEMA = b"""name = "log"
attribution = "made up"
group = "user"
weight = "weight"
[labels]
click = "click"
conversion = [["click", "==", 1], ["buy", "==", 1]]
[split]
train = { where = [["time", "<", 40]] }
validation = { where = [["time", ">=", 40]], rows = "even" }
test = { where = [["time", ">=", 40]], rows = "odd" }
[defaults]
min_count = 2
buckets = 4
[truth]
place = "place"
[columns]
dear = "price * 2 > 50"
phase = "time % 7"
letters = "length(city) + 1"
[types]
price = "number"
time = "integer"
[fields]
user = "categorical"
item = "categorical"
price = "numeric"
dear = "categorical"
phase = "categorical"
letters = "categorical"
city_item = { cross = ["city", "item"] }
device = { kind = "categorical", hashed = 16 }
tags = { kind = "categorical", tokens = "all", separator = "|" }
last_tag = { kind = "categorical", column = "tags", tokens = "last", separator = "|" }
"""
DAY = b"""name = "day"
group = "user"
[labels]
click = "click"
conversion = "buy"
[split]
train = {}
validation = {}
test = {}
[fields]
user = "categorical"
item = "categorical"
price = { kind = "numeric", buckets = 4 }
"""
CONFIGS = [
    b"""[model]
embedding_dim = 4
num_experts = 2
expert_hidden = [8]
tower_hidden = [8]
relatedness_hidden = [4]
beta = 0.3
[optimizer]
lr = 0.03
[training]
batch_size = 20
max_epochs = 2
seed = 1
progress = false
""",
    b"""[model]
name = "ple"
[optimizer]
tables = "rowwise_adagrad"
tables_lr = 0.05
schedule = "cosine"
decay_steps = 20
clip_norm = 1.0
[training]
accumulate = 2
""",
]
SCORES = {"click": {"auc": 0.75, "logloss": 0.6, "calibration": 1.1, "gauc": None}}
DAYS = [
    {
        "day": 1,
        "file": "day1.csv.gz",
        "rows": 250,
        "ids": 60,
        "before_training": None,
        "validation": SCORES,
    },
    {
        "day": 2,
        "file": "day2.csv.gz",
        "rows": 250,
        "ids": 60,
        "before_training": SCORES,
        "validation": SCORES,
    },
]


@functools.cache
def log():
    """Returns a log as text, which has rows of every split of ``SCHEMA``."""
    random = np.random.default_rng(7)
    user = random.integers(0, 20, ROWS)
    item = random.integers(0, 15, ROWS)
    click = random.random(ROWS) < 0.5

    def text(prefix, values):
        return [None if value == 0 else f"{prefix}{value}" for value in values]

    columns = {
        "time": np.arange(ROWS),
        "user": text("u", user),
        "item": text("i", item),
        "city": text("c", random.integers(0, 4, ROWS)),
        "device": text("d", random.integers(0, 60, ROWS)),
        "price": pa.array(random.integers(1, 400, ROWS) / 4, mask=random.random(ROWS) < 0.1),
        "tags": [
            "|".join(f"t{tag}" for tag in random.integers(0, 9, random.integers(0, 4)))
            for _ in range(ROWS)
        ],
        "place": random.integers(1, 5, ROWS),
        "weight": random.integers(1, 5, ROWS) / 2,
        "click": click.astype(int),
        "buy": (click & (random.random(ROWS) < 0.5)).astype(int),
    }
    file = io.BytesIO()
    pyarrow.csv.write_csv(pa.table(columns), file)
    return file.getvalue()


@functools.cache
def tables():
    """Returns delimited texts."""
    plain = log().replace(b'"', b"")
    return [
        log(),
        plain,
        plain.replace(b"\n", b"\r\n"),
        plain.replace(b",", b"\t"),
        plain.replace(b",", b";"),
    ]


@functools.cache
def parquets():
    """Returns the log as parquet, written in several ways."""
    table = pyarrow.csv.read_csv(io.BytesIO(log()))
    listed = table.set_column(
        6, "tags", pa.array([["a", None], [], None, ["b"]] * ROWS).slice(0, len(table))
    )
    coded = table.set_column(1, "user", table["user"].dictionary_encode())
    ways = [
        (table, {}), (table, {"compression": "none", "use_dictionary": False, "write_page_checksum": True}),
        (table, {"compression": "zstd", "data_page_version": "2.0", "row_group_size": 13}), (listed, {}),
        (table, {"compression": "gzip", "store_schema": False}), (coded, {"version": "1.0", "row_group_size": 30}),
    ]  # fmt: skip
    return [_parquet(each, **options) for each, options in ways]


def _parquet(table, **options):
    file = io.BytesIO()
    pq.write_table(table, file, **options)
    return file.getvalue()


@functools.cache
def messages():
    """Returns the log as messages of a topic, one in each line."""
    rows = pyarrow.csv.read_csv(io.BytesIO(log())).to_pylist()
    return b"\n".join(json.dumps(row, default=str).encode() for row in rows)


@functools.cache
def json_lines():
    """Returns the log as JSON lines whose tags are lists: with nulls, and without the keys of
    missing values.
    """
    rows = pyarrow.csv.read_csv(io.BytesIO(log())).to_pylist()
    listed = [row | {"tags": (row["tags"] or "").split("|")} for row in rows]
    short = [{key: value for key, value in row.items() if value is not None} for row in listed]
    return [b"\n".join(json.dumps(row).encode() for row in each) for each in (listed, short)]


@functools.cache
def schemas():
    """Returns schema files: those of the log, and those that ship, as values of JSON where they
    need a base.
    """
    folder = Path(load_schema.__code__.co_filename).parent / "shipped"
    shipped = [(folder / f"{name}.toml").read_bytes() for name in shipped_schemas()]
    return [SCHEMA, SCHEMA, DAY, *shipped]


@functools.cache
def prepared():
    """Returns the files of a folder that is prepared from the log."""
    return _made(_prepare)


def _prepare(folder):
    (folder / "log.csv").write_bytes(log())
    (folder / "log.toml").write_bytes(SCHEMA)
    prepare(load_schema(str(folder / "log.toml")), [folder / "log.csv"], folder / "data")
    return folder / "data"


@functools.cache
def run():
    """Returns the files of a finished run on the log."""
    return _made(_train)


def _train(folder):
    (folder / "small.toml").write_bytes(CONFIGS[0])
    train_one(
        PreparedData(_prepare(folder)), RunConfig.from_toml(folder / "small.toml"), folder / "run"
    )
    return folder / "run"


@functools.cache
def snapshot():
    """Returns a snapshot."""
    tensors = {
        "model/weight": torch.ones(3, 2),
        "rng/cpu": torch.get_rng_state(),
        "mean/loss": torch.tensor(0.5),
    }
    run = {
        "identity": {"settings": {"model.name": "mmoe"}, "data": "", "rows": 6},
        "progress": {"total_steps": 1},
    }

    def save(folder):
        save_snapshot(folder / "last", 1, tensors, run)
        return folder / "last"

    (content,) = _made(save).values()
    return content


@functools.cache
def aliccp():
    """Returns a skeleton file and its common features."""
    files = _made(
        lambda folder: (
            write_raw(LogConfig(30, users=4, items=5, list_scale=0.01), folder / "raw")[0].parent
        )
    )
    skeleton, common = (
        next(files[name] for name in files if word in name)
        for word in ("skeleton_train", "common_features_train")
    )
    return skeleton, common


def _made(make):
    """Returns the files of the folder that ``make`` makes, by their paths in it."""
    with tempfile.TemporaryDirectory() as folder:
        made = make(Path(folder))
        paths = sorted(path for path in made.rglob("*") if path.is_file())
        return {str(path.relative_to(made)): path.read_bytes() for path in paths}
