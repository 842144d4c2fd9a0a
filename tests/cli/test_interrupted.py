"""Signals end a command with a message, and the same command goes on."""

import signal
from datetime import datetime

from adaftr_fast.cli import main

from .conftest import fails, interrupting


def test_ctrl_c_in_the_first_epoch_keeps_the_earlier_run(config, run, capsys, monkeypatch):
    old = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    interrupting(monkeypatch, at_epoch=1)
    capsys.readouterr()
    assert main(f"train --config {config} --training.seed 1 --out {run}".split()) == 130
    shown = capsys.readouterr()
    assert shown.out == ""
    replaces, interrupted = shown.err.splitlines()
    at = datetime.fromtimestamp((run / "test.json").stat().st_mtime)
    assert (
        replaces == f"{run}: replaces the finished run of {at:%Y-%m-%d %H:%M} after the first epoch"
    )
    assert (
        interrupted == f"adaftr-fast train: interrupted; run the same command to resume from {run}"
    )
    found = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert {path: content for path, content in found.items() if path.parent.name != "last"} == old
    monkeypatch.undo()
    assert main(f"train --config {config} --out {run} --restart --optimizer.lr 0.1".split()) == 0
    assert "resuming" not in capsys.readouterr().err


def test_the_same_command_resumes_a_run_that_sigterm_ended(config, tmp_path, capsys, monkeypatch):
    arguments = f"train --config {config} --training.max_epochs 3 --out".split()
    assert main([*arguments, str(tmp_path / "whole")]) == 0
    with monkeypatch.context() as patch:
        interrupting(patch, at_epoch=2, signum=signal.SIGTERM)
        assert main([*arguments, str(tmp_path / "stopped")]) == 143
    assert not (tmp_path / "stopped/test.json").exists()
    capsys.readouterr()
    assert "lr = 0.0005, this run has 0.1" in fails(
        [*arguments, *f"{tmp_path}/stopped --optimizer.lr 0.1".split()], capsys
    )
    assert main([*arguments, str(tmp_path / "stopped")]) == 0
    assert "resuming in epoch 2 after step 1" in capsys.readouterr().err
    for name in ("test.json", "best/checkpoint.json"):
        assert (tmp_path / "stopped" / name).read_text() == (tmp_path / "whole" / name).read_text()
    assert not (tmp_path / "stopped/last").exists()
