"""The commands of the README, from raw files to scores, on small files."""

import numpy as np
import pyarrow.csv as csv
import pyarrow.parquet as pq
import torch

from adaftr_fast.cli import main
from adaftr_fast.training.evaluation import predict
from adaftr_fast.training.trained import load_trained
from tests.logs import shop_log

SHOP = """
name = "shop"
group = "user"
labels = { click = "click", conversion = "buy" }
split = { train = {}, validation = {}, test = {} }
fields = { user = "categorical", item = "categorical" }
"""
TRAINING = "--training.batch_size 128 --training.max_epochs 1 --training.progress false"


def run(command):
    assert main(command.split()) == 0


def test_raw_aliccp_to_bids(tmp_path):
    rates = '{"click":0.3,"conversion":0.1}'
    log, data, trained, model, scores = (
        tmp_path / name for name in ("log", "data", "run", "model", "scores.parquet")
    )
    run(f"synthesize --rows 3000 --rates {rates} --raw true --out {log}")
    train, test = (
        f"{log}/sample_skeleton_{split}.csv {log}/common_features_{split}.csv"
        for split in ("train", "test")
    )
    run(f"prepare --dataset aliccp --files {train} {test} --out {data}")
    run(f"train --data.folder {data} --out {trained} {TRAINING}")
    run(f"export --run {trained} --out {model}")
    run(
        f"predict --model {model} --files {test} --out {scores} --keep sample_id --bid 20 "
        "--bid_weight 0.9"
    )
    table = pq.read_table(scores)
    assert table.column_names == ["sample_id", "p_ctr", "p_ctcvr", "p_cvr", "bid"]
    best = load_trained(trained)
    expected = (
        torch.from_numpy(predict(best.model, best.data().load("test"), 100).logits)
        .sigmoid()
        .numpy()
    )
    found = np.stack([table["p_ctr"], table["p_ctcvr"]], 1)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
    bids = 0.9 * 20 * np.minimum(found[:, 0], found[:, 1])
    np.testing.assert_allclose(table["bid"], bids, rtol=1e-5)


def test_daily_training_to_a_served_model(tmp_path, capsys):
    log = shop_log(2000, users=90, conversion="buy")
    daily = tmp_path / "daily"
    scores = tmp_path / "scores.parquet"
    first, second, today = (tmp_path / name for name in ("day1.csv", "day2.csv", "today.csv"))
    csv.write_csv(log.slice(0, 1000), first)
    csv.write_csv(log.slice(1000), second)
    csv.write_csv(log.slice(1000).drop_columns(["click", "buy", "time"]), today)
    schema = tmp_path / "shop.toml"
    schema.write_text(SHOP)
    run(f"daily --dataset {schema} --files {first} {second} --out {daily} {TRAINING}")
    lines = capsys.readouterr().out.splitlines()
    shown = [line for line in lines if line.startswith("day ")]
    assert "before training: the first day" in shown[0]
    assert "before training: click AUC" in shown[1]
    run(f"export --run {daily}/day-0002/run --out {tmp_path}/model")
    files = f"--files {today} {second} --keep user item"
    run(f"predict --model {tmp_path}/model --out {scores} {files}")
    assert "2,000 rows, p_ctr, p_ctcvr, p_cvr" in capsys.readouterr().out
    table = pq.read_table(scores)
    assert table.column_names == ["user", "item", "p_ctr", "p_ctcvr", "p_cvr"]
    assert table.slice(0, 1000).equals(table.slice(1000))  # with and without labels
