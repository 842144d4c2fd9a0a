import json
import shlex

import pyarrow.csv as csv
import pyarrow.parquet as pq
import pytest

from adaftr_fast._locks import LOCK
from adaftr_fast.cli import main
from adaftr_fast.data.schema.parse import write_schema
from tests.cli.conftest import fails
from tests.files.holder import holder

from .conftest import SCHEMA


def test_an_experiment_runs_once_and_writes_its_report(folder, config, tmp_path, capfd):
    """Of a log with a bad row, which is tolerated and shown."""
    write_schema(tmp_path / "tiny.toml", SCHEMA, "")
    csv.write_csv(pq.read_table(folder.parent / "log.parquet"), tmp_path / "log.csv")
    with (tmp_path / "log.csv").open("a") as log:
        log.write("9,u1\n")
    inputs = f"--dataset {tmp_path}/tiny.toml --files {tmp_path}/log.csv --out {tmp_path}/out"
    command = f"experiment fig3 {inputs} --config {config} --seeds 1 --jobs 1 --optimizer.lr 0.01"
    assert "1 of 3,001 rows cannot be read" in fails(command.split(), capfd)
    assert main(f"{command} --bad_rows 0.001".split()) == 0
    shown = capfd.readouterr().out
    assert "Left out: 1 of 3,001 rows cannot be read" in shown
    assert "| layer 1 |" in shown
    out = tmp_path / "out/tiny"
    text = (out / "fig3.md").read_text()
    assert "Which tower layer is contrasted (Figure 3): tiny" in text
    report = json.loads((out / "fig3.json").read_text())
    assert report["budget"]["optimizer"]["lr"] == 0.01
    assert report["budget"]["model"]["tower_hidden"] == [4]
    runs = {path: path.stat().st_mtime_ns for path in out.glob("runs/*/result.json")}
    assert len(runs) == 2
    again = shlex.split(text.split("`")[1])
    assert again[:4] == ["adaftr-fast", "experiment", "fig3", "--dataset"]
    # the file of options is not named
    assert main([*again[1:], "--jobs", "1", "--training.progress", "false"]) == 0
    assert capfd.readouterr().out == shown
    assert {path: path.stat().st_mtime_ns for path in runs} == runs
    prepared = f"experiment fig3 --dataset {out}/data --out {tmp_path} --bad_rows 0.1".split()
    assert "bad_rows: expected files to prepare, got the prepared" in fails(prepared, capfd)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("table9 --dataset FOLDER", "table9"),
        ("table4 --dataset flites", "unknown data set 'flites'"),
        ("table4 --dataset FOLDER --seeds 0", "--seeds: expected >= 1, got 0"),
        (
            "complexity --dataset FOLDER --training.batch_size 100000",
            "fewer than a batch of 100000",
        ),
        ("table4 --dataset FOLDER --address h:1", "address: goes with engine ray, got address"),
        (
            "table4 --dataset FOLDER --engine ray --training.device cuda",
            "expected cpu with --engine",
        ),
        ("complexity --dataset FOLDER --engine ray", "--engine: expected local for complexity"),
    ],
)
def test_user_errors_print_one_line(command, message, folder, tmp_path, capfd):
    words = command.replace("FOLDER", str(folder)).split()
    assert message in fails(["experiment", *words, "--out", tmp_path], capfd)


def test_two_experiments_do_not_share_a_folder(folder, config, tmp_path, capfd):
    command = f"experiment complexity --dataset {folder} --config {config} --out {tmp_path}".split()
    with holder(tmp_path / "tiny" / LOCK):
        assert "tiny: process" in fails(command, capfd)
