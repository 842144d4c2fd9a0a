"""Signals end a command with a message, and the same command goes on."""

import signal
from datetime import datetime

import pytest

from adaftr_fast.cli import main
from adaftr_fast.data.schema.parse import load_schema

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


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_same_command_resumes_an_interrupted_run(
    config, tmp_path, capsys, monkeypatch, signum, code
):
    arguments = f"train --config {config} --training.max_epochs 3 --out".split()
    assert main([*arguments, str(tmp_path / "whole")]) == 0
    with monkeypatch.context() as patch:
        interrupting(patch, at_epoch=2, signum=signum)
        assert main([*arguments, str(tmp_path / "stopped")]) == code
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


def test_ctrl_c_interrupts_the_demo(schema, log, tmp_path, capsys, monkeypatch):
    schema.write_text(schema.read_text().replace("name =", 'shipped = "log.parquet"\nname =', 1))
    monkeypatch.setattr(
        "adaftr_fast.data.schema.parse.load_schema", lambda name: load_schema(str(schema))
    )
    monkeypatch.setattr("adaftr_fast.data.raw.source.SHIPPED", log.parent)
    begun = interrupting(monkeypatch, 2)
    arguments = [
        "--training.batch_size=100",
        "--training.max_epochs=2",
        "--training.progress=false",
    ]
    assert main([*f"demo --out {tmp_path}/demo".split(), *arguments]) == 130
    assert begun == [1, 2]  # of the first model only
    error = capsys.readouterr().err
    assert (
        f"adaftr-fast demo: interrupted; run the same command to resume from {tmp_path / 'demo'}"
        in error
    )
    assert "prepare" not in error  # no progress bar
    assert not (tmp_path / "demo/report.md").exists()
