"""Two processes that write one run folder: the second one stops at once."""

import json

import pytest

from adaftr_fast.config import TrainingConfig
from adaftr_fast.data.schema.parse import parse_schema
from adaftr_fast.errors import BusyError, CheckpointError
from adaftr_fast.files.locks import LOCK
from adaftr_fast.runs.daily import train_daily
from adaftr_fast.runs.demo import run_demo
from adaftr_fast.runs.run import fit_one, train_one
from adaftr_fast.training.checkpoint import weights
from adaftr_fast.training.trained import load_trained
from tests.files.holder import holder
from tests.files.power import TORN, Disk

from .conftest import SOURCE, settings, write_day


def test_a_checkpoint_that_is_replaced_while_it_is_read(prepared, tmp_path, monkeypatch):
    data = prepared(1)
    other = tmp_path / "other"
    for folder in (tmp_path / "out", other):
        config = settings(data.folder, name="shared_bottom")
        config.training.seed = len(folder.name)
        train_one(data, config, folder)
    real = weights.read_json
    models = [load_trained(other)]

    def read_json(kind, path):
        content = real(kind, path)
        if models:  # the file of weights that ``content`` names is removed
            newer = models.pop()
            weights.save_checkpoint(tmp_path / "out/best", newer.model, newer.about)
        return content

    monkeypatch.setattr(weights, "read_json", read_json)
    assert load_trained(tmp_path / "out").about.config.training.seed == len("other")
    (tmp_path / "out/best/checkpoint.json").unlink()
    with pytest.raises(CheckpointError, match="no checkpoint here"):
        load_trained(tmp_path / "out")


def test_every_run_locks_its_folder(prepared, tmp_path):
    data = prepared(1)
    out = tmp_path / "out"
    days = [write_day(tmp_path, 1)]
    with holder(out / LOCK):
        for write in (
            lambda: train_one(data, settings(data.folder), out),
            lambda: fit_one(data, settings(data.folder), out).__enter__(),
            lambda: list(train_daily(parse_schema(SOURCE), days, settings(), out)),
            lambda: run_demo(out, TrainingConfig(progress=False)),
        ):
            with pytest.raises(BusyError, match="is writing it"):
                write()
        assert [path.name for path in out.iterdir()] == [LOCK]
    (tmp_path / "link").symlink_to("disk/run")  # which does not exist yet
    train_one(data, settings(data.folder), tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert load_trained(tmp_path / "disk/run").about.tasks == ["click", "conversion"]


def test_what_killed_processes_left_is_removed_and_nothing_else(prepared, tmp_path):
    data = prepared(1)
    out = tmp_path / "out"
    out.mkdir()
    others = {
        ".metrics.jsonl.txt",
        ".notes.new-1-ab",
        "metrics.jsonl.new-1-ab",
        ".metrics.jsonl.new-1-ab.bak",
    }
    (out / "best").mkdir()
    for name in (
        ".metrics.jsonl.new-1-ab",
        ".test.json.new-2-cd",
        "best/.checkpoint.json.new-3-ef",
        *others,
    ):
        (out / name).write_text("half")
    with holder(out / LOCK), pytest.raises(BusyError):
        train_one(data, settings(data.folder), out)
    assert (out / ".metrics.jsonl.new-1-ab").exists()  # perhaps the other process writes it
    train_one(data, settings(data.folder), out)
    assert {path.name for path in out.iterdir()} == others | {
        "best",
        "doubts.json",
        "metrics.jsonl",
        "test.json",
    }
    assert not [path for path in (out / "best").iterdir() if path.name.startswith(".")]


def test_a_power_failure_leaves_whole_files_of_a_run(prepared, tmp_path):
    data = prepared(1)
    out = tmp_path / "runs/out"
    out.parent.mkdir()
    train_one(data, settings(data.folder, name="shared_bottom"), out)
    disk = Disk(out.parent, out)
    disk.run(lambda: train_one(data, settings(data.folder), out))
    seen = set()
    for tree in (tree for states in disk.states for tree in states):
        best = tree.get("best", {})
        assert TORN not in (
            tree.get("metrics.jsonl"),
            tree.get("test.json"),
            best.get("checkpoint.json"),
        )
        if "checkpoint.json" in best:
            name = json.loads(disk.read(best["checkpoint.json"]))["weights"]
            assert best[name] != TORN
            seen.add(name)
    assert len(seen) >= 2  # of the former run and of this one
    assert all("test.json" in tree for tree in disk.states[-1])
