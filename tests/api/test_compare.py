import json
import os
import shutil

import pytest

import adaftr_fast as af
from adaftr_fast.cli import main
from adaftr_fast.errors import CheckpointError
from tests.cli.conftest import fails

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
    assert found.runs[1].name.endswith("unfinished (unfinished: validation after epoch 2)")
    assert found.runs[1].test == run.epochs[-1]["validation"]


def test_damaged_runs_have_a_line_each(run, tmp_path, capsys):
    damaged = shutil.copytree(run.folder, tmp_path / "damaged")
    (damaged / "metrics.jsonl").write_text('{"epoch": 1}\n')
    assert main(["compare", *map(str, (tmp_path / "none", run.folder, damaged))]) == 0
    notes = capsys.readouterr().out.splitlines()[-2:]
    assert notes[0].startswith(f"Not read: {tmp_path}/none/best: no checkpoint here")
    assert notes[1].startswith(f"Not read: {damaged}: the run cannot be read: ")
    lines = (run.folder / "metrics.jsonl").read_text().splitlines(True)
    (damaged / "metrics.jsonl").write_text(lines[1])
    assert af.compare([run, damaged]).unread == [
        f"{damaged}: the run cannot be read: metrics.jsonl: line 1: expected epoch 1, got 2"
    ]
    with pytest.raises(CheckpointError, match=r"compare: no run can be read: .*no checkpoint here"):
        af.compare([tmp_path / "none"])
    with pytest.raises(TypeError, match="runs: expected a list of runs or their folders, got str"):
        af.compare("runs/mine")


def test_the_report_has_tables_and_curves(run, other, unfinished, tmp_path, capsys):
    out = tmp_path / "report"
    assert (
        main(["compare", *map(str, (run.folder, other.folder, unfinished)), "--out", str(out)]) == 0
    )
    text = (out / "report.md").read_text()
    assert "## Options that differ" in text
    assert sorted(path.name for path in out.iterdir()) == ["report.md", "report.png"]
    before = {path: path.read_bytes() for path in run.folder.glob("report.*")}
    capsys.readouterr()
    line = fails(f"compare {run.folder} --out {run.folder}".split(), capsys)
    expected = "out: expected a folder for the report, got the folder of a run"
    assert line == f"adaftr-fast compare: {expected}: {run.folder}"
    assert {path: path.read_bytes() for path in run.folder.glob("report.*")} == before


@pytest.mark.parametrize(
    ("change", "note"),
    [
        ({"fingerprint": "0123456789"}, "Other data, whose metrics do not compare: "),
        ({"folder": "copy"}, "Another data folder, whose metrics "),
        ({"folder": "RELATIVE"}, None),
    ],
)
def test_runs_on_other_data_are_named(run, data, tmp_path, change, note):
    moved = shutil.copytree(run.folder, tmp_path / "moved")
    path = moved / "best/checkpoint.json"
    about = json.loads(path.read_text())
    folder = change.get("folder", str(data.folder)).replace(
        "RELATIVE", os.path.relpath(data.folder)
    )
    about["fingerprint"] = change.get("fingerprint", about["fingerprint"])
    about["config"]["data"]["folder"] = folder
    path.write_text(json.dumps(about))
    notes = af.compare([run, moved]).notes()
    assert len(notes) == (0 if note is None else 2)
    assert note is None or notes[1].startswith(note)
