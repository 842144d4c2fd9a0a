"""Commands with full disks: one error line, no lost files, and success after the cause is
removed.
"""

import resource
import signal
from contextlib import contextmanager

import pyarrow.parquet as pq
import pytest

from adaftr_fast.cli import main
from tests.logs import shop_log

TRAINING = "--training.batch_size 100 --training.max_epochs 1 --training.progress false"


@contextmanager
def full_disk(size):
    """Limits files to ``size`` bytes, so that writes fail as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
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
    return {
        path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


@pytest.fixture
def log(tmp_path):
    pq.write_table(shop_log(3000, users=900, conversion="buy"), tmp_path / "log.parquet")
    return tmp_path / "log.parquet"


@pytest.fixture
def steps(log, tmp_path):
    """The four commands; each makes the input of the next one."""
    data, run, model, scores = (
        tmp_path / name for name in ("data", "run", "model", "scores.parquet")
    )
    return {
        "prepare": f"prepare --files {log} --labels click buy --time time --out {data}".split(),
        "train": f"train --data.folder {data} --out {run} {TRAINING}".split(),
        "export": f"export --run {run} --out {model}".split(),
        "predict": f"predict --model {model} --files {log} --out {scores}".split(),
    }


def error_of(capsys, command):
    capsys.readouterr()
    assert run(*command) == 2
    lines = [
        line for line in capsys.readouterr().err.splitlines() if line.startswith("adaftr-fast")
    ]
    assert len(lines) == 1
    return lines[0]


def test_a_full_disk_loses_nothing_in_any_command(steps, tmp_path, capsys):
    for command in steps.values():
        with full_disk(4096):
            line = error_of(capsys, command)
        assert "File too large" in line
        assert str(tmp_path) in line
        assert not any(
            (tmp_path / name).exists() for name in ("scores.parquet", "model") if name in command
        )
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
    command = f"synthesize --rows 2000 --out {tmp_path}/log".split()
    for size in (0, 4096):
        with full_disk(size):
            line = error_of(capsys, command)
        assert f"synthesize: {tmp_path}/log/" in line
        assert (
            "cannot be written: File too large; make room, and run the same command again" in line
        )
        assert not (tmp_path / "log").exists()  # so that a smaller log may take its place
    assert run(*command) == 0


def test_the_first_snapshot_under_a_full_disk(steps, capsys):
    run(*steps["prepare"])
    capsys.readouterr()
    with full_disk(4096):
        line = error_of(capsys, steps["train"])
    assert "cannot write a snapshot, and there is no earlier one" in line


def test_a_synthetic_log_takes_the_place_of_one_that_was_killed_before_its_first_file(tmp_path):
    (tmp_path / "log").mkdir()
    (tmp_path / "log.json").write_text("{}")
    assert run("synthesize", "--rows", 2000, "--out", tmp_path) == 0
    assert run("synthesize", "--rows", 1000, "--out", tmp_path) == 2
