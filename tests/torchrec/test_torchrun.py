"""``train`` with sharded tables under torchrun: killed and failed ranks, and serving the result."""

import json

import pyarrow.parquet as pq
import pytest

from adaftr_fast.cli import main
from adaftr_fast.training.metrics import auc
from tests.distributed.test_torchrun import (
    FORKS,
    arguments,
    by_hand,
    check_a_killed_rank,
    check_that_nothing_is_pickled,
    data,
    metrics,
    rendezvous,
    torchrun,
)

pytest.importorskip("torchrec", reason="make test-torchrec installs it")

__all__ = ["data", "rendezvous"]  # the fixtures
SETTINGS = {
    "training__tables": "torchrec",
    "optimizer__tables": "adagrad",
    "optimizer__tables_lr": 0.05,
}
ROW_WISE = SETTINGS | {"training__sharding": "row_wise"}


@pytest.fixture(scope="module")
def by_two(data, tmp_path_factory):
    """An uninterrupted run of two ranks."""
    out = tmp_path_factory.mktemp("two")
    table, err = torchrun(2, arguments(data, out, **ROW_WISE), source=FORKS).end()
    assert table.count("best epoch") == 1
    assert "warning" not in err.lower()
    return out


def test_run_equals_replicated_tables(data, by_two, tmp_path):
    replicated = ROW_WISE | {"training__tables": "replicated"}
    torchrun(2, arguments(data, tmp_path, **replicated), source=FORKS).end()
    assert metrics(by_two) == pytest.approx(metrics(tmp_path), rel=1e-3)
    assert sorted(path.name for path in by_two.iterdir()) == [
        "best",
        "metrics.jsonl",
        "report.md",
        "report.png",
        "test.json",
    ]


def test_ranks_pickle_nothing(data, by_two, tmp_path, rendezvous):
    check_that_nothing_is_pickled(data, tmp_path, rendezvous, **ROW_WISE)
    assert metrics(tmp_path) == metrics(by_two)


def test_killed_rank(data, by_two, tmp_path):
    check_a_killed_rank(data, by_two, tmp_path, source=FORKS, training__sync_steps=1, **ROW_WISE)


def test_evaluate_export_and_predict_by_one_process(data, by_two, tmp_path, capsys):
    assert main(["evaluate", "--run", str(by_two), "--data", str(data), "--json"]) == 0
    measured = json.loads(capsys.readouterr().out)["metrics"]
    expected = json.loads((by_two / "test.json").read_text())
    for task, values in expected.items():
        assert measured[task] == pytest.approx(values, rel=1e-6)
    log = data.parent / "log.parquet"
    model = tmp_path / "model"
    scores = tmp_path / "scores.parquet"
    assert main(["export", "--run", str(by_two), "--out", str(model)]) == 0
    assert main(["predict", "--model", str(model), "--files", str(log), "--out", str(scores)]) == 0
    click, p_click = (
        pq.read_table(path).column(name).to_numpy()
        for path, name in ((log, "click"), (scores, "p_click"))
    )
    test = slice(-len(click) // 10, None)  # the last tenth by time
    assert auc(click[test], p_click[test]) == pytest.approx(expected["click"]["auc"], abs=1e-3)


def test_incompatible_settings_end_all_ranks_with_one_line(data, tmp_path):
    """torchrun starts these ranks as a user does."""
    run = torchrun(2, arguments(data, tmp_path, **SETTINGS | {"optimizer__tables": "adam"}))
    _, err = run.end(1)
    assert "torchrec needs optimizer.tables = sgd, adagrad, rowwise_adagrad, got adam" in err
    assert not (tmp_path / "best").exists()


FAILING = """
import os, sys
from adaftr_fast.cli import main
from adaftr_fast.errors import TrainingError
from adaftr_fast.training.stepper import Stepper
def fail(*_):
    raise TrainingError("this rank fails")
if os.environ["RANK"] == "1":
    Stepper.step = fail
sys.exit(main(sys.argv[1:]))
"""


def test_rank_that_fails_before_its_first_step_is_named(data, tmp_path, rendezvous):
    command = arguments(data, tmp_path, training__rank_timeout=3600, **ROW_WISE)[2:]
    rank_zero, other = by_hand(FAILING, *command, **rendezvous, LOCAL_WORLD_SIZE=2)
    assert "epoch 1, step 1: this rank fails" in other.communicate(timeout=120)[1]
    # instead of the 3,600 s for a rank that does not respond
    _, err = rank_zero.communicate(timeout=120)
    assert err == (
        "adaftr-fast train: rank 0 stopped: rank 1 failed: TrainingError: epoch 1, step 1: this "
        "rank fails\n"
    )
    assert rank_zero.returncode == 2
