"""``daily`` with sharded tables equals that of one process, and its last run is evaluated, exported
and continued.
"""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from adaftr_fast.cli import main
from adaftr_fast.runs.daily import RECORDS
from adaftr_fast.training.checkpoint.weights import load_checkpoint
from adaftr_fast.training.metrics import auc
from tests.distributed.ranks import on_ranks
from tests.distributed.test_daily import (
    assert_same_days,
    check_a_killed_rank,
    command,
    daily,
    daily_by_rank,
    write_days,
)
from tests.distributed.test_torchrun import FORKS, torchrun
from tests.logs import read_records
from tests.tolerances import assert_same_bits

pytest.importorskip("torchrec", reason="make test-torchrec installs it")

ADAGRAD = {"tables": "adagrad", "tables_lr": 0.05, "clip_norm": 1.0}
OPTIONS = {
    "optimizer__tables": "adagrad", "optimizer__tables_lr": 0.05, "optimizer__clip_norm": 1.0,
    "training__tables": "torchrec", "training__sharding": "row_wise",
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Three days' files and the schema, and ``one``, the result of one process with replicas."""
    root = write_days(tmp_path_factory.mktemp("days"), rows=800)
    daily(root, "one", ADAGRAD, {})
    return root


@pytest.fixture(scope="module")
def by_two(folder) -> Path:
    """The result of the command on two ranks."""
    out = folder / "command"
    torchrun(2, ["-m", "adaftr_fast.cli", *command(folder, out, **OPTIONS)], source=FORKS).end()
    return out


def test_days_equal_those_of_one_process(folder, by_two):
    """By row on two ranks, and by table on four."""
    by_table = {"tables": "torchrec", "sharding": "table_wise"}
    on_ranks(daily_by_rank, 4, 4, str(folder), {"four": (ADAGRAD, by_table)})
    for out, size in ((by_two, 2), (folder / "four", 4)):
        assert len(list((out / "day-0003/run/best").glob("weights-*-*"))) == size
        assert_same_days(out, folder / "one")


def test_killed_rank(folder, by_two, tmp_path):
    check_a_killed_rank(1, folder, by_two, tmp_path, **OPTIONS)


def test_one_process_evaluates_exports_and_continues_the_last_run(folder, by_two, tmp_path, capsys):
    run, log = by_two / "day-0003/run", folder / "day2.parquet"
    assert main(["evaluate", "--run", str(run), "--split", "validation", "--json"]) == 0
    measured = json.loads(capsys.readouterr().out)["metrics"]
    for task, values in read_records(by_two / RECORDS)[-1]["validation"].items():
        assert measured[task] == pytest.approx(values, rel=1e-6)
    model, scores = tmp_path / "model", tmp_path / "scores.parquet"
    assert main(["export", "--run", str(run), "--out", str(model)]) == 0
    assert main(["predict", "--model", str(model), "--files", str(log), "--out", str(scores)]) == 0
    capsys.readouterr()
    assert main(["evaluate", "--run", str(run), "--json"]) == 0  # all rows of the day
    of_day = json.loads(capsys.readouterr().out)["metrics"]
    click, p_click = (
        pq.read_table(path).column(n).to_numpy() for path, n in ((log, "click"), (scores, "p_ctr"))
    )
    assert auc(click, p_click) == pytest.approx(of_day["click"]["auc"], abs=1e-6)
    command = f"train --data.folder {by_two}/day-0003/data --warm_start {run} --optimizer.lr 0"
    command += f" --out {tmp_path}/next --training.max_epochs 1 --training.batch_size 64"
    command += " --model.expert_hidden [8] --model.tower_hidden [16,16]"
    assert main([*command.split(), "--model.relatedness_hidden", "[4]"]) == 0
    ours, theirs = (load_checkpoint(each / "best")[0] for each in (tmp_path / "next", run))
    assert_same_bits(ours, theirs)
