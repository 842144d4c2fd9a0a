import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from adaftr_fast.config import OptimizerConfig, RunConfig, TrainingConfig
from adaftr_fast.errors import CheckpointError
from adaftr_fast.training.checkpoint.snapshots import load_snapshot, save_snapshot
from adaftr_fast.training.checkpoint.weights import Description, load_checkpoint
from adaftr_fast.training.files import RunFiles
from adaftr_fast.training.trainer import Trainer

ABOUT = Description(
    config=RunConfig(training=TrainingConfig(max_epochs=4), optimizer=OptimizerConfig(lr=0.01)),
    fingerprint="f", num_embeddings=[50, 20, 3], tasks=["click", "conversion"], metrics={},
)  # fmt: skip


def trainer(model, splits, folder, about=ABOUT, **config):
    config = TrainingConfig(**{"batch_size": 100, "max_epochs": 4, "progress": False} | config)
    files = RunFiles(model, config, folder, about, rows=len(splits[0]))
    return Trainer(model, *splits, optimizer=OptimizerConfig(lr=0.01), config=config, files=files)


def stop_after(run, steps, monkeypatch):
    """Runs ``fit`` and requests a stop after ``steps`` steps."""
    done = run.train_step

    def step(*arguments):
        if run.progress.total_steps + 1 == steps:
            run.interrupt.request()
        return done(*arguments)

    monkeypatch.setattr(run, "train_step", step)
    original = run.train_epoch

    def train_epoch(epoch, interrupt):
        run.interrupt = interrupt
        return original(epoch, interrupt)

    monkeypatch.setattr(run, "train_epoch", train_epoch)
    result = run.fit()
    assert result.interrupted


def records(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in ("seconds", "samples_per_s")} for line in lines]


def assert_same_run(a: Path, b: Path):
    assert records(a) == records(b)
    weights, other = load_checkpoint(a / "best")[0], load_checkpoint(b / "best")[0]
    assert all(torch.equal(weights[name], other[name]) for name in weights)
    last, same = load_snapshot(a / "last")[0], load_snapshot(b / "last")[0]
    different = [name for name in last if not torch.equal(last[name], same[name])]
    assert different == []


def test_kills_at_random_points_do_not_change_bits(tmp_path):
    """Kills happen during steps, snapshots (one per step), validation and startup."""
    script = Path(__file__).with_name("killed_run.py")
    done = subprocess.run([sys.executable, script, tmp_path], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 3
    assert_same_run(tmp_path / "whole", tmp_path / "killed")


@pytest.mark.parametrize("at", [1, 17, 40, 41, 95])
def test_an_interruption_between_steps_does_not_change_bits(model, splits, tmp_path, monkeypatch, at):
    start = {name: value.clone() for name, value in model.state_dict().items()}
    trainer(model, splits, tmp_path / "whole").fit()
    model.load_state_dict(start)
    stop_after(trainer(model, splits, tmp_path / "stopped"), at, monkeypatch)
    other = type(model)()
    run = trainer(other, splits, tmp_path / "stopped")
    assert run.resume()
    assert run.progress.total_steps == at
    run.fit()
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")


def test_resuming_a_finished_run_only_restores_the_best_weights(model, splits, tmp_path):
    first = trainer(model, splits, tmp_path).fit()
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    other = type(model)()
    run = trainer(other, splits, tmp_path)
    assert run.resume()
    again = run.fit()
    assert (again.epochs, again.best_epoch) == (first.epochs, first.best_epoch)
    assert all(torch.equal(weights[name], value) for name, value in other.state_dict().items())
    run.files.finish()
    assert not trainer(model, splits, tmp_path).resume()


def test_resuming_saves_best_weights_that_a_killed_run_did_not_save(model, splits, tmp_path, monkeypatch):
    run = trainer(model, splits, tmp_path, max_epochs=1)
    monkeypatch.setattr(run.files, "save_best", lambda metrics: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run.fit()
    again = trainer(type(model)(), splits, tmp_path, max_epochs=1)
    assert again.resume()
    assert again.fit().best_epoch == 1


def test_other_options_or_data_raise_except_when_to_stop(model, splits, tmp_path, monkeypatch):
    stop_after(trainer(model, splits, tmp_path), 5, monkeypatch)
    other_seed = replace(ABOUT, config=ABOUT.config.with_options(training={"seed": 1}))
    with pytest.raises(CheckpointError, match=r"unfinished run with training\.seed = 0, this run has 1.*--restart"):
        trainer(model, splits, tmp_path, other_seed).resume()
    with pytest.raises(CheckpointError, match="unfinished run on other data"):
        trainer(model, splits, tmp_path, replace(ABOUT, fingerprint="g")).resume()
    longer = replace(ABOUT, config=ABOUT.config.with_options(training={"max_epochs": 9}))
    assert trainer(model, splits, tmp_path, longer).resume()


def test_missing_options_of_a_snapshot_have_their_defaults(model, splits, tmp_path, monkeypatch):
    with monkeypatch.context() as before:
        known = {name: value for name, value in ABOUT.config.flat().items() if name != "optimizer.tables"}
        before.setattr(RunConfig, "flat", lambda self: known)
        stop_after(trainer(model, splits, tmp_path), 5, before)
    assert trainer(model, splits, tmp_path).resume()
    since = replace(ABOUT, config=ABOUT.config.with_options(optimizer={"tables": "adagrad"}))
    with pytest.raises(CheckpointError, match=r"run with optimizer\.tables = adam, this run has adagrad"):
        trainer(model, splits, tmp_path, since).resume()


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("progress", {"step": "7"}, "progress.step: expected int, got '7'"),
        ("progress", {"steps": 7}, "unknown key 'progress.steps'"),
        ("progress", {"epochs": [1]}, r"progress.epochs\[0\]: expected dict"),
        ("identity", {"settings": None}, "identity.settings: expected dict"),
        ("identity", {"rows": "many"}, "identity.rows: expected int, got 'many'"),
        ("progress", None, "progress: expected an object, got None"),
        ("identity", None, "identity: expected an object, got None"),
    ],
)
def test_metadata_of_another_type_are_named(model, splits, tmp_path, monkeypatch, part, change, message):
    stop_after(trainer(model, splits, tmp_path), 7, monkeypatch)
    tensors, run = load_snapshot(tmp_path / "last")
    run[part] = None if change is None else run[part] | change
    save_snapshot(tmp_path / "last", 10**6, dict(tensors), run)
    with pytest.raises(CheckpointError, match=f"last: not a snapshot of a run: {message}"):
        trainer(model, splits, tmp_path).resume()


def test_without_a_folder_resume_returns_false(model, splits):
    assert not trainer(model, splits, None).resume()
