import json

import pytest

from adaftr_fast.cli import main
from adaftr_fast.experiments.abtest import METRICS
from tests.cli.conftest import fails


@pytest.fixture
def command(generated, tmp_path):
    options = (
        "--model.embedding_dim 4 --model.expert_hidden [8] --model.tower_hidden [8,4] "
        "--optimizer.lr 0.02 --training.batch_size 200 --training.max_epochs 1 --training.progress "
        "false --seeds 2 --jobs 1 --auctions 2000 --slate 4"
    )
    return f"experiment abtest --dataset {generated} --out {tmp_path}/out {options}".split()


def test_the_command_writes_the_same_report_again(command, tmp_path, capfd):
    assert main(command) == 0
    shown = capfd.readouterr().out
    folder = tmp_path / "out/synthetic"
    first = json.loads((folder / "abtest.json").read_text())
    assert [arm["title"] for arm in first["arms"]] == ["MMoE", "AdaFTR", "true probabilities"]
    assert [lift["metric"] for lift in first["lifts"]] == list(METRICS)
    control, treatment, best = first["arms"]
    assert [len(arm["by_seed"]) for arm in first["arms"]] == [2, 2, 1]
    assert control["by_seed"][0] != control["by_seed"][1]
    assert best["metrics"]["value"] > max(
        control["metrics"]["value"], treatment["metrics"]["value"]
    )
    assert all(weight > 0 for arm in first["arms"] for weight in arm["weights"])
    mean = (treatment["metrics"]["CTR"] / control["metrics"]["CTR"] - 1) * 100
    assert first["lifts"][0]["mean"] == pytest.approx(mean) != 0
    assert all(0 < share < 1 for share in first["same_winner"])
    assert "--seeds 2 --auctions 2000 --slate 4" in first["command"]
    assert (folder / "abtest.png").read_bytes()[:4] == b"\x89PNG"
    text = (folder / "abtest.md").read_text()
    assert "| AdaFTR against MMoE | better " in text
    assert "2,000 auctions of 4 candidates for each of 2 training seeds (0, 1)" in text
    assert "| CPC                 | lower  |" in shown
    assert "-5.78" in shown
    assert main(command) == 0
    assert json.loads((folder / "abtest.json").read_text()) == first
    assert len(list((folder / "runs").iterdir())) == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--slate", "1"], "slate: expected >= 2 candidates, got 1"),
        (["--auctions", "0"], "--auctions: expected >= 1, got 0"),
    ],
)
def test_wrong_sizes_are_one_line(command, options, message, capfd):
    assert message in fails([*command, *options], capfd)
