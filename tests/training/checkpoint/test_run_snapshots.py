import copy
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from adaftr_fast.errors import CheckpointError
from adaftr_fast.training.checkpoint.snapshots import load_snapshot, save_snapshot
from adaftr_fast.training.checkpoint.weights import load_checkpoint
from tests.forks import Script
from tests.logs import read_records
from tests.tolerances import assert_same_bits
from tests.training.conftest import ABOUT, before_step, interrupt, trainer


def stop_after(run, steps):
    """Runs ``fit`` and requests a stop after ``steps`` steps."""
    before_step(run, steps, interrupt)
    assert run.fit().interrupted


def records(folder):
    lines = read_records(folder / "metrics.jsonl")
    return [
        {key: value for key, value in line.items() if key not in ("seconds", "samples_per_s")}
        for line in lines
    ]


def assert_same_run(a: Path, b: Path):
    assert records(a) == records(b)
    assert_same_bits(*(load_checkpoint(each / "best")[0] for each in (a, b)))
    assert_same_bits(*(load_snapshot(each / "last")[0] for each in (a, b)))


KILLED = """
import os, sys, torch
from pathlib import Path
from tests.training.conftest import Logistic, before_step, make_split, trainer

torch.manual_seed(0)
splits = make_split(4000, 1), make_split(1000, 2)
run = trainer(Logistic(), splits, Path(sys.argv[1]), checkpoint_seconds=0)
run.resume()
before_step(run, int(sys.argv[2]), lambda: os.kill(os.getpid(), 9))
run.fit()
"""


def test_kills_do_not_change_bits(model, splits, tmp_path):
    """A thread may write a snapshot at each of them."""
    for at in (3, 41, 95):
        Script(KILLED, tmp_path / "killed", at).end(-signal.SIGKILL)
    run = trainer(type(model)(), splits, tmp_path / "killed")
    assert run.resume()
    run.fit()
    trainer(model, splits, tmp_path / "whole").fit()
    assert_same_run(tmp_path / "whole", tmp_path / "killed")


def test_resuming_a_finished_run_only_restores_the_best_weights(model, splits, tmp_path):
    first = trainer(model, splits, tmp_path).fit()
    weights = copy.deepcopy(model.state_dict())
    other = type(model)()
    run = trainer(other, splits, tmp_path)
    assert run.resume()
    again = run.fit()
    assert (again.epochs, again.best_epoch) == (first.epochs, first.best_epoch)
    assert_same_bits(weights, other.state_dict())
    run.files.finish()
    assert not trainer(model, splits, tmp_path).resume()


def test_other_options_or_data_raise_except_when_to_stop(model, splits, tmp_path):
    stop_after(trainer(model, splits, tmp_path), 5)
    other_seed = replace(ABOUT, config=ABOUT.config.with_options(training={"seed": 1}))
    with pytest.raises(
        CheckpointError, match=r"unfinished run with training\.seed = 0, this run has 1.*--restart"
    ):
        trainer(model, splits, tmp_path, other_seed).resume()
    with pytest.raises(CheckpointError, match="unfinished run on other data"):
        trainer(model, splits, tmp_path, replace(ABOUT, fingerprint="g")).resume()
    longer = replace(ABOUT, config=ABOUT.config.with_options(training={"max_epochs": 9}))
    assert trainer(model, splits, tmp_path, longer).resume()


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("progress", {"step": "7"}, "progress.step: expected an integer, got '7'"),
        ("progress", {"epochs": [1]}, r"progress.epochs\[0\]: expected a JSON object"),
        ("identity", {"settings": None}, "identity.settings: expected a JSON object"),
        ("progress", None, "progress: expected an object, got None"),
    ],
)
def test_metadata_of_another_type_are_named(model, splits, tmp_path, part, change, message):
    stop_after(trainer(model, splits, tmp_path), 7)
    tensors, run = load_snapshot(tmp_path / "last")
    run[part] = None if change is None else run[part] | change
    save_snapshot(tmp_path / "last", 10**6, dict(tensors), run)
    with pytest.raises(CheckpointError, match=f"last: not a snapshot of a run: {message}"):
        trainer(model, splits, tmp_path).resume()


def test_without_a_folder_resume_returns_false(model, splits):
    assert not trainer(model, splits, None).resume()
