"""The command, on data that are prepared."""

import json

import pytest

from benchmarks.cells import RECORD
from benchmarks.paper.__main__ import main

SMALL = """
--model.embedding_dim 2 --model.expert_hidden [4] --model.tower_hidden [4]
--model.relatedness_hidden [4] --training.batch_size 200 --training.max_epochs 1 --jobs 1
"""


def test_an_experiment_runs_once_and_writes_its_report(folder, tmp_path, capfd):
    words = [
        "figure3",
        "--dataset",
        str(folder),
        "--out",
        str(tmp_path),
        "--seeds",
        "1",
        *SMALL.split(),
    ]
    main(words)
    shown = capfd.readouterr().out
    assert "| layer 1 |" in shown
    text = (tmp_path / "tiny/figure3.md").read_text()
    assert "Which tower layer is contrasted (Figure 3): tiny" in text
    assert f"`python -m benchmarks.paper figure3 --dataset {folder}" in text
    assert "tower_hidden = [4]" in text
    records = {path: path.stat().st_mtime_ns for path in tmp_path.glob(f"tiny/runs/*/{RECORD}")}
    assert len(records) == 2
    (seed,) = {json.loads(path.read_text())["options"]["training"]["seed"] for path in records}
    assert seed == 0
    main(words)
    assert capfd.readouterr().out == shown
    assert {path: path.stat().st_mtime_ns for path in records} == records


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("table9 --dataset FOLDER", "table9"),
        ("table4 --dataset flites", "unknown data set 'flites'"),
        ("table4 --dataset FOLDER --seeds 0", "--seeds: expected >= 1, got 0"),
        ("table4 --dataset FOLDER --modle.name x", "did you mean --model.name"),
        (
            "complexity --dataset FOLDER --training.batch_size 100000",
            "fewer than a batch of 100000",
        ),
        (
            "complexity --dataset FOLDER --training.tables torchrec",
            "benchmarks.paper needs training.tables = replicated, got torchrec",
        ),
    ],
)
def test_user_errors_print_one_line(command, message, folder, tmp_path, capfd):
    words = command.replace("FOLDER", str(folder)).split()
    with pytest.raises(SystemExit):
        main([*words, "--out", str(tmp_path)])
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("python -m benchmarks.paper: ")
    assert message in line
