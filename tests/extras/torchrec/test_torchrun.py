"""``train`` with sharded tables under torchrun: nothing is pickled, and failed ranks are named."""

import pytest

from tests.distributed.test_torchrun import (
    arguments,
    by_hand,
    check_that_nothing_is_pickled,
    data,
    rendezvous,
)

pytest.importorskip("torchrec", reason="make test-torchrec installs it")

__all__ = ["data", "rendezvous"]  # the fixtures
ROW_WISE = {
    "training__tables": "torchrec", "training__sharding": "row_wise",
    "optimizer__tables": "adagrad", "optimizer__tables_lr": 0.05,
}  # fmt: skip


def test_ranks_pickle_nothing(data, tmp_path, rendezvous):
    check_that_nothing_is_pickled(data, tmp_path, rendezvous, **ROW_WISE)
    files = ["best", "doubts.json", "metrics.jsonl", "report.md", "report.png", "test.json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == files


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
    fitted, _, error = err.partition("\n")
    assert fitted.startswith("options that fit 3,200 training rows: ")
    assert error == (
        "adaftr-fast train: rank 0 stopped: rank 1 failed: TrainingError: epoch 1, step 1: this "
        "rank fails\n"
    )
    assert rank_zero.returncode == 2
