"""What a new user has: one CSV of clicks with tags, prices, gaps and ids, and no schema."""

import random

import numpy as np
import pyarrow.csv as csv
import pytest

import adaftr_fast as af
from tests.logs import shop_log

from .conftest import MODEL

ROWS = 1500
ONE_EPOCH = {"batch_size": 64, "max_epochs": 1, "progress": False}
TAGS = ["sale", "new", "vegan", "local", "gift", "eco"]


@pytest.fixture
def log(tmp_path):
    """A log with gaps in prices and tags, a blank line at its end and a line that is cut off."""
    draw = random.Random(0)
    table = shop_log(ROWS, users=40)
    price = [None if draw.random() < 0.1 else each for each in table["price"].to_pylist()]
    tags = ["|".join(draw.sample(TAGS, draw.choice([0, 1, 2, 3]))) or None for _ in range(ROWS)]
    table = table.set_column(table.column_names.index("price"), "price", [price]).append_column(
        "tags", [tags]
    )
    csv.write_csv(table, tmp_path / "log.csv")
    with (tmp_path / "log.csv").open("a") as file:
        file.write('1500,"u1",3\n\n')
    return tmp_path / "log.csv"


def test_one_csv_becomes_scores_and_every_line_is_accounted_for(log, tmp_path):
    whole = csv.ParseOptions(invalid_row_handler=lambda row: "skip")
    table = csv.read_csv(
        log, parse_options=whole, convert_options=csv.ConvertOptions(strings_can_be_null=True)
    )
    roles = {"labels": ["click", "conversion"], "group": "user", "time": "time"}
    with pytest.warns(UserWarning, match=r"tags: read as lists separated by '\|'"):
        data = af.prepare(log, tmp_path / "data", **roles, bad_rows=0.01, progress=False)
    train = table.slice(0, 1200)
    missing = [f"{100 * np.mean(train[name].is_null()):.2f} %" for name in ("price", "tags")]
    assert data.fields().rows == [
        ["user", "categorical", "41", "0.00 %"],
        ["item", "categorical", "41", "0.00 %"],
        ["price", "numeric", "21", missing[0]],
        ["tags", "categorical, lists separated by '|'", str(len(TAGS) + 1), missing[1]],
    ]
    account = "Read: 1,502 lines below the header = 1,500 rows kept + 1 left out + 1 blank"
    assert account in data.notes()
    assert sum(split.rows for split in data.manifest.splits.values()) == ROWS

    run = af.train(data, tmp_path / "run", model=MODEL, optimizer={"lr": 0.05}, training=ONE_EPOCH)
    assert run.test["click"]["auc"] > 0.6
    model = af.export(run, tmp_path / "model")
    scores = af.predict(
        model,
        log,
        tmp_path / "scores.parquet",
        keep=["user", "time"],
        bad_rows=0.01,
        progress=False,
    )
    assert repr(scores).splitlines()[1] == account
    found = scores.read()
    # text, as it is written
    assert found["time"].to_pylist() == table["time"].cast("string").to_pylist()
    assert all(0 < each < 1 for each in found["p_ctr"].to_pylist())
    in_memory = af.predict(
        model, table, tmp_path / "again.parquet", keep="user", progress=False
    ).read()
    assert in_memory["p_ctr"].equals(found["p_ctr"])
