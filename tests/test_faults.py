"""Commands with full disks and damaged files: one error line, no lost files, and success after the cause is removed."""

import resource
import signal
from contextlib import contextmanager

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from adaftr_fast.cli import main

TRAINING = ["--training.batch_size", "100", "--training.max_epochs", "1", "--training.progress", "false"]


@contextmanager
def full_disk(size):
    """Limits files to ``size`` bytes, so that writes fail as on a full disk."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def run(*arguments):
    return main([str(argument) for argument in arguments])


def tree(folder):
    """Returns the content of every file in a folder."""
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def log(tmp_path):
    random = np.random.default_rng(0)
    item = random.integers(0, 500, 3000)
    click = random.random(3000) < 1 / (1 + np.exp(-(item - 250) / 60))
    columns = {"item": item, "user": random.integers(0, 900, 3000), "click": click, "buy": click & (item % 3 == 0)}
    pq.write_table(pa.table(columns | {"time": np.arange(3000)}), tmp_path / "log.parquet")
    return tmp_path / "log.parquet"


@pytest.fixture
def steps(log, tmp_path):
    """The four commands; each makes the input of the next one."""
    data, run, model, scores = (tmp_path / name for name in ("data", "run", "model", "scores.parquet"))
    return {
        "prepare": ["prepare", "--files", log, "--labels", "click", "buy", "--time", "time", "--out", data],
        "train": ["train", "--data.folder", data, "--out", run, *TRAINING],
        "export": ["export", "--run", run, "--out", model],
        "predict": ["predict", "--model", model, "--files", log, "--out", scores],
    }


def error_of(capsys, command):
    capsys.readouterr()
    assert run(*command) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("adaftr-fast")]
    assert len(lines) == 1
    return lines[0]


def test_a_full_disk_loses_nothing_in_any_command(steps, tmp_path, capsys):
    for command in steps.values():
        with full_disk(4096):
            line = error_of(capsys, command)
        assert "File too large" in line
        assert str(tmp_path) in line
        assert not any((tmp_path / name).exists() for name in ("scores.parquet", "model") if name in command)
        assert run(*command) == 0  # with enough space
        before = tree(tmp_path)
        if command[0] == "prepare":
            continue  # already prepared
        with full_disk(4096):
            error_of(capsys, command)
        after = tree(tmp_path)
        assert {path: after.get(path) for path in before} == before
        assert not [path for path in after.keys() - before.keys() if "last" not in path.parts]


def test_a_full_disk_under_a_synthetic_log(tmp_path, capsys):
    command = ["synthesize", "--rows", "2000", "--out", tmp_path / "log"]
    for size in (0, 4096):
        with full_disk(size):
            assert f"File too large: '{tmp_path / 'log'}/" in error_of(capsys, command)
    assert run(*command) == 0


def test_damaged_files_are_named_in_every_command(steps, log, tmp_path, capsys):
    whole = log.read_bytes()
    log.write_bytes(whole[: len(whole) // 2])
    assert "log.parquet: not readable" in error_of(capsys, steps["prepare"])
    log.write_bytes(whole)
    assert run(*steps["prepare"]) == 0
    train = tmp_path / "data/train.parquet"
    prepared = train.read_bytes()
    train.write_bytes(prepared[: len(prepared) // 2])
    assert "train.parquet: damaged: its sha256" in error_of(capsys, steps["train"])
    train.write_bytes(prepared[:1000] + b"\xff" * 200 + prepared[1200:])
    assert "train.parquet: damaged: its sha256" in error_of(capsys, steps["train"])
    assert not (tmp_path / "run").exists()
    train.write_bytes(prepared)
    for step in ("train", "export"):
        assert run(*steps[step]) == 0
    log.write_bytes(whole[: len(whole) // 2])
    assert "log.parquet: cannot be read" in error_of(capsys, steps["predict"])
    (tmp_path / "model/model.pt2").write_bytes(b"PK")
    assert "model.pt2: damaged" in error_of(capsys, steps["predict"])
