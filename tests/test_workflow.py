"""The commands of the README, from raw files to scores, on small files."""

import numpy as np
import pyarrow.csv as csv
import pyarrow.parquet as pq
import torch

from adaftr_fast.cli import main
from adaftr_fast.runs.trained import load_trained
from adaftr_fast.training.evaluation import predict
from tests.logs import shop_log

TRAINING = ["--training.batch_size", "128", "--training.max_epochs", "1", "--training.progress", "false"]


def run(*arguments):
    assert main([str(argument) for argument in arguments]) == 0


def test_raw_aliccp_to_bids(tmp_path):
    log, data = tmp_path / "log", tmp_path / "data"
    run("synthesize", "--rows", 3000, "--rates", '{"click": 0.3, "conversion": 0.1}', "--raw", "true", "--out", log)
    train, test = ([log / f"{name}_{split}.csv" for name in ("sample_skeleton", "common_features")]
                   for split in ("train", "test"))  # fmt: skip
    run("prepare", "--dataset", "aliccp", "--files", *train, *test, "--out", data)
    run("train", "--data.folder", data, "--out", tmp_path / "run", *TRAINING)
    run("export", "--run", tmp_path / "run", "--out", tmp_path / "model")
    run("predict", "--model", tmp_path / "model", "--files", *test, "--out", tmp_path / "scores.parquet",
        "--keep", "sample_id", "--bid", "20", "--bid_weight", "0.9")  # fmt: skip
    table = pq.read_table(tmp_path / "scores.parquet")
    assert table.column_names == ["sample_id", "p_ctr", "p_ctcvr", "p_cvr", "bid"]
    trained = load_trained(tmp_path / "run")
    expected = torch.from_numpy(predict(trained.model, trained.data().load("test"), 100).logits).sigmoid().numpy()
    found = np.stack([table["p_ctr"], table["p_ctcvr"]], 1)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
    bids = 0.9 * 20 * np.minimum(found[:, 0], found[:, 1])
    np.testing.assert_allclose(table["bid"], bids, rtol=1e-5)


def test_daily_training_to_a_served_model(tmp_path, capsys):
    log = shop_log(2000, users=90, conversion="buy")
    days = [tmp_path / f"day{day}.csv" for day in range(2)]
    for day, path in enumerate(days):
        csv.write_csv(log.slice(1000 * day, 1000), path)
    schema = tmp_path / "shop.toml"
    schema.write_text(
        'name = "shop"\ngroup = "user"\n[labels]\nclick = "click"\nconversion = "buy"\n'
        '[split]\ntrain = {}\nvalidation = {}\ntest = {}\n[fields]\nuser = "categorical"\nitem = "categorical"\n'
    )
    run("daily", "--dataset", schema, "--files", *days, "--out", tmp_path / "daily", *TRAINING)
    shown = capsys.readouterr().out.splitlines()[-2:]
    assert "before training: the first day" in shown[0]
    assert "before training: click AUC" in shown[1]
    run("export", "--run", tmp_path / "daily/day-0002/run", "--out", tmp_path / "model")
    today = tmp_path / "today.csv"
    csv.write_csv(csv.read_csv(days[1]).drop_columns(["click", "buy", "time"]), today)
    run("predict", "--model", tmp_path / "model", "--files", today, days[1], "--out", tmp_path / "scores.parquet",
        "--keep", "user", "item", "--conversion", "buy")  # fmt: skip
    assert "2,000 rows, p_ctr, p_ctcvr, p_cvr" in capsys.readouterr().out
    table = pq.read_table(tmp_path / "scores.parquet")
    assert table.column_names == ["user", "item", "p_ctr", "p_ctcvr", "p_cvr"]
    assert table.slice(0, 1000).equals(table.slice(1000))  # with and without labels
    run("train", "--data.folder", tmp_path / "daily/day-0002/data", "--out", tmp_path / "next", *TRAINING,
        "--warm_start", tmp_path / "daily/day-0001/run")  # fmt: skip
    assert "132 of 132 embedding rows copied\n26 of 26 dense weights copied" in capsys.readouterr().err
