"""Snapshots that a thread writes while training continues."""

import threading

import pytest
import torch

from adaftr_fast import _memory
from adaftr_fast.errors import CheckpointError
from adaftr_fast.training.checkpoint import snapshots
from adaftr_fast.training.checkpoint.snapshots import (
    StateCopy,
    available_memory,
    load_snapshot,
    save_snapshot,
)
from tests.training.conftest import trainer


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_copies_from_a_gpu_are_those_of_their_moment():
    state = torch.ones(1 << 24, device="cuda")
    copy = StateCopy()
    copied = copy.take({"state": state})["state"]
    state.zero_()
    copy.wait()
    assert copied.is_pinned()
    assert torch.equal(copied, torch.ones(1 << 24))


def test_ranks_of_a_machine_share_its_memory(monkeypatch):
    monkeypatch.setattr(_memory, "available", lambda: 5000)
    assert available_memory() == 5000
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert available_memory() == 1250
    monkeypatch.setattr(_memory, "available", lambda: None)
    assert available_memory() == 0


def names(folder):
    return sorted(path.name[:12] for path in folder.glob("*.safetensors"))


def test_a_snapshot_holds_the_state_of_its_step(model, splits, tmp_path, monkeypatch):
    """The write starts only when training has gone on; no further snapshot starts before it has
    ended.
    """
    release = threading.Event()
    saved = []

    def late(folder, position, tensors, run, *shards):
        if threading.current_thread() is not threading.main_thread():
            release.wait(60)
        save_snapshot(folder, position, tensors, run, *shards)
        saved.append((position, threading.current_thread() is threading.main_thread()))

    monkeypatch.setattr(snapshots, "save_snapshot", late)
    run = trainer(model, splits, tmp_path / "slow", max_epochs=1, checkpoint_seconds=0)
    step = run.train_step
    expected = []

    def watched(*arguments):
        if run.progress.step == 1:
            expected.extend(value.detach().clone() for value in model.parameters())
        if run.progress.step == 30:
            release.set()
            run.files.snapshots.wait()
            found, _ = load_snapshot(tmp_path / "slow/last")
            assert names(tmp_path / "slow/last") == ["000000000002"]  # of step 1
            for (name, _), value in zip(model.named_parameters(), expected, strict=True):
                assert torch.equal(found[f"model/{name}"], value)
        return step(*arguments)

    run.train_step = watched
    run.fit()
    assert (2, False) in saved
    assert saved[-1] == (42, True)  # the end of the epoch


def test_an_error_of_the_thread_is_raised_by_training(model, splits, tmp_path, monkeypatch):
    def full(*_):
        raise CheckpointError("cannot write a snapshot")

    monkeypatch.setattr(snapshots, "save_snapshot", full)
    run = trainer(model, splits, tmp_path, checkpoint_seconds=0)
    with pytest.raises(CheckpointError, match="cannot write a snapshot"):
        run.fit()
    assert 1 <= run.progress.step <= 40


def test_training_that_fails_waits_for_the_thread(model, splits, tmp_path):
    run = trainer(model, splits, tmp_path, checkpoint_seconds=0)
    step = run.train_step
    run.train_step = lambda *arguments: 1 / 0 if run.progress.step == 1 else step(*arguments)
    with pytest.raises(ZeroDivisionError):
        run.fit()
    assert names(tmp_path / "last") == ["000000000002"]


def test_without_memory_for_a_copy_snapshots_are_written_at_once(
    model, splits, tmp_path, monkeypatch
):
    threads = []
    monkeypatch.setattr(snapshots, "available_memory", lambda: 100)
    monkeypatch.setattr(
        snapshots, "save_snapshot", lambda *_: threads.append(threading.current_thread())
    )
    run = trainer(model, splits, tmp_path, max_epochs=1, checkpoint_seconds=0)
    run._log = run._save_best = lambda *_: None
    run._restore_best = lambda result: None
    run.fit()
    assert set(threads) == {threading.main_thread()}
    assert len(threads) == 41  # one per step, and the end of the epoch
