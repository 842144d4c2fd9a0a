import json
import os
import shutil

import pytest

import adaftr_fast as af
from adaftr_fast.cli import main
from adaftr_fast.errors import CheckpointError

from .conftest import TRAINING


@pytest.fixture(scope="module")
def other(shop, data):
    return af.train(data, shop / "other", model={"name": "mmoe"}, training=TRAINING)


@pytest.fixture
def unfinished(run, tmp_path):
    folder = shutil.copytree(run.folder, tmp_path / "unfinished")
    (folder / "test.json").unlink()
    return folder


def cells(line):
    return [cell.strip() for cell in line.split("|")[1:-1]]


def test_metrics_and_only_the_options_that_differ_are_listed(run, other):
    shown = repr(af.compare([run, other.folder])).splitlines()
    assert [cells(line)[:2] for line in shown[2:6]] == [
        ["run", "click"], ["run", "conversion"], ["other", "click"], ["other", "conversion"]]  # fmt: skip
    assert cells(shown[2])[2:] == cells(run.table().markdown().splitlines()[2])[2:]
    header = cells(shown[7])
    assert header[:2] == ["run", "model.name"]
    assert "optimizer.lr" in header
    assert "training.batch_size" not in header
    assert cells(shown[9])[:2] == ["run", "adaftr"]
    assert cells(shown[10])[:2] == ["other", "mmoe"]


def test_an_unfinished_run_shows_the_validation_of_its_last_epoch(run, unfinished):
    found = af.compare([run, unfinished])
    assert found.results[1].name.endswith("unfinished (unfinished: validation after epoch 2)")
    assert found.results[1].test == run.epochs[-1]["validation"]


def test_damaged_runs_have_a_line_each(run, tmp_path, capsys):
    damaged = shutil.copytree(run.folder, tmp_path / "damaged")
    (damaged / "metrics.jsonl").write_text('{"epoch": 1}\n')
    assert main(["compare", *map(str, (tmp_path / "none", run.folder, damaged))]) == 0
    notes = capsys.readouterr().out.splitlines()[-2:]
    assert notes[0].startswith(f"Not read: {tmp_path}/none/best: no checkpoint here")
    assert notes[1].startswith(f"Not read: {damaged}: the run cannot be read: ")
    with pytest.raises(CheckpointError, match=r"compare: no run can be read: .*no checkpoint here"):
        af.compare([tmp_path / "none"])
    with pytest.raises(TypeError, match="runs: expected a list of runs or their folders, got str"):
        af.compare("runs/mine")


def test_runs_on_other_data_are_named(run, tmp_path):
    moved = shutil.copytree(run.folder, tmp_path / "moved")
    path = moved / "best/checkpoint.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"fingerprint": "0123456789"}))
    notes = af.compare([run, moved]).notes()
    assert len(notes) == 2
    assert notes[1].startswith("Other data, whose metrics do not compare: ")
    assert notes[1].endswith("(01234567)")
    assert af.compare([run, run.folder]).notes() == []


def test_epochs_that_are_not_counted_from_1_are_damage(run, tmp_path):
    damaged = shutil.copytree(run.folder, tmp_path / "damaged")
    path = damaged / "metrics.jsonl"
    path.write_text(path.read_text().splitlines(True)[1])
    found = af.compare([run, damaged], tmp_path / "report")
    assert found.unread == [f"{damaged}: the run cannot be read: metrics.jsonl: line 1: expected epoch 1, got 2"]


def at_data_folder(run, folder, data):
    moved = shutil.copytree(run.folder, folder)
    path = moved / "best/checkpoint.json"
    about = json.loads(path.read_text())
    about["config"]["data"]["folder"] = str(data)
    path.write_text(json.dumps(about))
    return moved


def test_a_relative_path_to_the_data_is_the_same_folder(run, data, tmp_path):
    moved = at_data_folder(run, tmp_path / "relative", os.path.relpath(data.folder))
    assert af.compare([run, moved]).notes() == []


def test_another_folder_of_data_with_the_same_ids_is_named(run, tmp_path):
    moved = at_data_folder(run, tmp_path / "moved", tmp_path / "copy")
    notes = af.compare([run, moved]).notes()
    assert len(notes) == 2
    assert notes[1].startswith("Another data folder, whose metrics compare if it has the same rows: ")
    assert f": {tmp_path}/copy (" in notes[1]


def test_the_report_of_a_run_is_not_overwritten(run, capsys):
    before = {path: path.read_bytes() for path in run.folder.glob("report.*")}
    assert main(["compare", str(run.folder), "--out", str(run.folder)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"adaftr-fast compare: out: expected a folder for the report, got the folder of a run: {run.folder}"
    assert {path: path.read_bytes() for path in run.folder.glob("report.*")} == before


def test_the_report_has_tables_and_curves(run, other, unfinished, tmp_path):
    out = tmp_path / "report"
    assert main(["compare", *map(str, (run.folder, other.folder, unfinished)), "--out", str(out)]) == 0
    text = (out / "report.md").read_text()
    assert "## Options that differ" in text
    assert sorted(path.name for path in out.iterdir()) == ["report.md", "report.png"]
