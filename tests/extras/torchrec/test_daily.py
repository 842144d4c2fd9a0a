"""``daily`` with sharded tables equals that of one process, and its last run is evaluated and
exported.
"""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from adaftr_fast.cli import main
from adaftr_fast.runs.daily import RECORDS
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
    arguments = ["-m", "adaftr_fast.cli", *command(folder, out, **OPTIONS)]
    shown, err = torchrun(2, arguments, source=FORKS).end()
    assert shown.count("before training") == 3  # one rank prints
    assert "warning" not in err.lower()
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


def test_one_process_evaluates_and_exports_the_last_run(folder, by_two, tmp_path, capsys):
    run = by_two / "day-0003/run"
    log = folder / "day2.parquet"

    def measured(*options: str) -> dict:
        capsys.readouterr()
        assert main(["evaluate", "--run", str(run), "--json", *options]) == 0
        return json.loads(capsys.readouterr().out)["metrics"]

    found = measured("--split", "validation")
    for task, values in read_records(by_two / RECORDS)[-1]["validation"].items():
        assert found[task] == pytest.approx(values, rel=1e-6)
    command = f"export --run {run} --out {tmp_path}/model"
    assert main(command.split()) == 0
    command = f"predict --model {tmp_path}/model --files {log} --out {tmp_path}/scores.parquet"
    assert main(command.split()) == 0
    click = pq.read_table(log)["click"].to_numpy()
    p_click = pq.read_table(tmp_path / "scores.parquet")["p_ctr"].to_numpy()
    # of all rows of the day
    assert auc(click, p_click) == pytest.approx(measured()["click"]["auc"], abs=1e-6)
