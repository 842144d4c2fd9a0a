"""Errors of a user are one line that names the cause."""

import json
from contextlib import suppress

import pytest

from adaftr_fast.cli import main
from adaftr_fast.cli.app import parse

from .conftest import fails


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("", "required: COMMAND"),
        ("trian", "invalid choice: 'trian'"),
        ("prepare", "adaftr-fast prepare: the following arguments are required: --out"),
        ("train --out OUT --data DATA --data.foldr x", "(did you mean --data.folder?)"),
        (
            "train --out OUT --lr 0.1",
            "unrecognized arguments: --lr 0.1 (did you mean --optimizer.lr?)",
        ),
        ("info stray", "adaftr-fast info: unrecognized arguments: stray"),
        ("prepare --dataset flites --out OUT", "unknown data set 'flites'; expected one of aliccp"),
        (
            "train --out OUT --training.trackers wandb",
            "training.trackers: expected a list such as '[8, 4]'",
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
    assert capsys.readouterr().err == (
        "adaftr-fast info: standard output: cannot be written: No space left on device; make room, "
        "and run the same command again\n"
    )


TRAIN = "data, model, optimizer, training, out, restart, preset, warm_start, "
LIST = """a list such as '[8, 4]' or '["a", "b"]'"""


@pytest.mark.parametrize(
    ("command", "content", "message"),
    [
        ("train", "[model]\nexpert_hiden = 3", "model: unknown option 'expert_hiden'; expected"),
        ("train", "outt = 3", f"FILE: unknown option 'outt'; expected one of {TRAIN}"),
        ("train", 'COMMAND = "tune"', "FILE: unknown option 'COMMAND'; expected"),
        ("train", "debug = true", "FILE: unknown option 'debug'; expected"),
        ("train", '_unrecognized_args = ["x"]', "FILE: unknown option '_unrecognized_args'"),
        ("train", '"self.x" = 1', "FILE: unknown option 'self.x'; expected"),
        ("train", "[config.optimizer]\nlr = 1", "FILE: unknown option 'config'; expected"),
        (
            "demo",
            '"data.folder" = "x"',
            "FILE: unknown option 'data.folder'; expected one of training, ",
        ),
        (
            "demo",
            '"model.name" = "ple"',
            "FILE: unknown option 'model.name'; expected one of training, out, restart",
        ),
        ("train", "model = 3", "FILE: model: expected a table of options, got 3"),
        ("train", "[[model]]", "FILE: model: expected a table of options, got [{}]"),
        ("train", "restart = 3", "restart: expected true or false, got 3"),
        ("train", "[optimizer]\nlr = 'fast'", "optimizer.lr: expected a number, got 'fast'"),
        ("train", "[data]\nfolder = 2020-01-01", "data.folder: expected text, got 2020-01-01"),
        ("train", "[model]\ntower_hidden = 3", f"model.tower_hidden: expected {LIST}, got 3"),
        (
            "train",
            '[model]\ntower_hidden = [8, "a"]',
            "model.tower_hidden[1]: expected an integer, got 'a'",
        ),
        (
            "train",
            "[model]\nembedding_dims = 3",
            "model.embedding_dims: expected a JSON object such as '{\"a\": 1}', got 3",
        ),
        ("train", b"[model", "FILE: not a TOML file of options: Expected ']'"),
        ("train", b"\xfd\x00\x81", "FILE: not a TOML file of options: 'utf-8' codec"),
        ("train", b"a = " + 100_000 * b"[", "FILE: not a TOML file of options: nested too deeply"),
    ],
)
def test_errors_in_a_file_of_options_name_the_option(command, content, message, tmp_path, capsys):
    file = tmp_path / "run.toml"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    line = fails(f"{command} --out {tmp_path}/run --config {file}".split(), capsys)
    name = command.partition(" ")[0]
    assert line.startswith(f"adaftr-fast {name}: {message.replace('FILE', str(file))}")


def test_required_options_may_be_in_a_file(tmp_path, capsys):
    file = tmp_path / "run.toml"
    required = "the following arguments are required:"
    for option in ("--config", "--con"):
        file.write_text("[optimizer]\nlr = 0.01\n")
        assert fails(["daily", option, file], capsys).endswith(f"{required} --files, --out")
        file.write_text('out = "a"\n')
        assert fails(["daily", option, file], capsys).endswith(f"{required} --files")
        file.write_text('files = ["log.csv"]\nout = "a"\n')
        assert parse(["daily", option, str(file)])[2] == {"files": ["log.csv"], "out": "a"}


def test_an_option_of_words_needs_one_except_the_funnel(capsys):
    words = ["files", "labels", "ignore", "multi", "null", "dense", "hash", "dates"]
    for command, option in [*(("prepare", word) for word in words), ("predict", "keep")]:
        line = fails([command, f"--{option}", "--out", "a"], capsys)
        assert line.endswith(f"argument --{option}: expected at least one argument")
    assert parse(["prepare", "--funnel", "--out", "a"])[2] == {"funnel": [], "out": "a"}


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
