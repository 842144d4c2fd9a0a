"""Errors of a user are one line that names the cause."""

import json
from contextlib import suppress

import pytest

from adaftr_fast.cli import main

from .conftest import fails


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("", "required: COMMAND"),
        ("trian", "invalid choice: 'trian'"),
        ("prepare", "adaftr-fast prepare: the following arguments are required: --out"),
        (
            "experiment",
            "adaftr-fast experiment: the following arguments are required: NAME, --dataset",
        ),
        ("train --out OUT --data DATA --data.foldr x", "(did you mean --data.folder?)"),
        (
            "train --out OUT --lr 0.1",
            "unrecognized arguments: --lr 0.1 (did you mean --optimizer.lr?)",
        ),
        ("train --out OUT --model.expert_hiden [3]", "(did you mean --model.expert_hidden?)"),
        ("info stray", "adaftr-fast info: unrecognized arguments: stray"),
        ("prepare --dataset flites --out OUT", "unknown data set 'flites'; expected one of aliccp"),
        ("prepare --dataset census --out OUT", "expected 2 file(s) (TRAIN TEST), got 0"),
        ("train --out OUT --data.folder OUT", "not a prepared folder"),
        ("train --out OUT --model.beta -1", "model.beta: expected a finite weight >= 0, got -1"),
        (
            "train --out OUT --training.trackers wandb",
            "training.trackers: expected a list such as '[8, 4]'",
        ),
        (
            'train --out OUT --training.trackers ["a"]',
            "expected one of tensorboard, wandb, mlflow, got 'a'",
        ),
        (
            "train --out OUT --training.max_epochs x",
            "training.max_epochs: expected an integer, got x",
        ),
    ],
)
def test_user_errors_print_one_line(command, message, tmp_path, capsys):
    assert message in fails(command.replace("OUT", str(tmp_path / "nothing")).split(), capsys)


@pytest.mark.parametrize("buffering", [1, -1])
def test_a_full_disk_under_the_output_is_named(capsys, monkeypatch, buffering):
    with suppress(OSError), open("/dev/full", "w", buffering) as full:  # closing it fails once more
        monkeypatch.setattr("sys.stdout", full)
        assert main(["info"]) == 2
    assert (
        capsys.readouterr().err
        == "adaftr-fast info: [Errno 28] No space left on device: 'standard output'\n"
    )


def test_errors_in_a_config_file_name_the_option(config, tmp_path, capsys):
    text = config.read_text()
    for content, message in (
        (text.replace("expert_hidden", "expert_hiden"), "unknown option 'expert_hiden'"),
        (text.replace("[8]", '"wide"'), "model.expert_hidden: expected list[int], got 'wide'"),
        (f"outt = 3\n{text}", "unknown key 'outt'; expected one of "),
        (f"restart = 3\n{text}", "restart: expected bool, got 3"),
    ):
        config.write_text(content)
        assert message in fails(f"train --config {config} --out {tmp_path}/run".split(), capsys)
    for content, message in (
        (text.encode() + b"[model", f"{config}: not a TOML file of options: Cannot"),
        (b"\xfd\x00\x81", f"{config}: not a TOML file of options: 'utf-8' codec"),
        (b"a = " + 100_000 * b"[", f"{config}: not a TOML file of options: nested too deeply"),
    ):
        config.write_bytes(content)
        line = fails(f"train --config {config} --out {tmp_path}/run".split(), capsys)
        assert line.startswith(f"adaftr-fast train: {message}")


def test_evaluate_rejects_damaged_weights(run, prepared, capsys):
    (weights,) = (run / "best").glob("weights-*")
    weights.write_bytes(weights.read_bytes()[:100])
    assert "damaged" in fails(f"evaluate --run {run} --data {prepared}".split(), capsys)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"config": {}}, "missing key 'config.data'"),
        ({"config": {"model": {"l2": -1}}}, "model.l2: expected a finite weight >= 0"),
        ({"num_embeddings": [3]}, "sizes: field_names must be 1 names"),
        ({"num_embeddings": [3, 0, 2]}, "num_embeddings must be one number >= 1 per field"),
    ],
)
def test_a_checkpoint_that_makes_no_model_is_named(run, prepared, capsys, change, message):
    capsys.readouterr()
    path = run / "best/checkpoint.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    line = fails(f"evaluate --run {run} --data {prepared}".split(), capsys)
    assert f"{run / 'best'}" in line
    assert message in line
