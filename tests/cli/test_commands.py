import json
import shutil
import signal
import subprocess
import sys
import warnings
from datetime import datetime

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from adaftr_fast.cli import main
from adaftr_fast.data.schema.parse import load_schema
from adaftr_fast.runs.trained import load_trained
from adaftr_fast.training.trainer import Trainer

SCHEMA = """
name = "small"
[labels]
click = "click"
conversion = [["click", "==", 1], ["price", ">", 0]]
[split]
train = { where = [["day", "<=", 7]] }
validation = { where = [["day", "==", 8]] }
test = { where = [["day", ">", 8]] }
[fields]
item = "categorical"
place = "categorical"
heat = "numeric"
"""


@pytest.fixture
def schema(tmp_path):
    """Writes a schema file, with ``log.parquet`` in the same folder."""
    random = np.random.default_rng(0)
    rows = 3000
    item, place = random.integers(0, 40, rows), random.integers(0, 5, rows)
    click = (random.random(rows) < 1 / (1 + np.exp(-(item - 20) / 6))).astype(np.int8)
    price = random.integers(0, 3, rows)
    columns = {"day": 1 + np.arange(rows) * 10 // rows, "item": item, "place": place, "heat": random.normal(size=rows)}
    pq.write_table(pa.table(columns | {"click": click, "price": price}), tmp_path / "log.parquet")
    (tmp_path / "small.toml").write_text(SCHEMA)
    return tmp_path / "small.toml"


@pytest.fixture
def prepared(schema, tmp_path):
    assert main(["prepare", "--dataset", str(schema), "--files", str(tmp_path / "log.parquet"),
                 "--out", str(tmp_path / "data")]) == 0  # fmt: skip
    return tmp_path / "data"


@pytest.fixture
def config(prepared, tmp_path):
    path = tmp_path / "run.toml"
    path.write_text(
        f'[data]\nfolder = "{prepared}"\n[model]\nname = "mmoe"\nexpert_hidden = [8]\n'
        "[training]\nbatch_size = 100\nmax_epochs = 1\nprogress = false\n"
    )
    return path


def fails(arguments, capsys):
    """Runs a command that fails; returns the one line it prints."""
    try:
        code = main([str(argument) for argument in arguments])
    except SystemExit as end:
        code = end.code
    lines = capsys.readouterr().err.splitlines()
    assert code == 2
    assert len(lines) == 1
    return lines[0]


def test_prepare_prints_a_summary(schema, tmp_path, capsys):
    log, out = str(tmp_path / "log.parquet"), str(tmp_path / "data")
    assert main(["prepare", "--dataset", str(schema), "--files", log, "--out", out]) == 0
    text = capsys.readouterr().out
    assert "small, 3 fields" in text
    headers = [[cell.strip() for cell in text.splitlines()[line].split("|")][1:-1] for line in (1, 7)]
    assert headers == [["field", "read as", "ids", "missing or rare"], ["split", "rows", "click", "conversion"]]
    assert "| train      | 2,100 |" in text


def test_train_then_evaluate_gives_the_same_metrics(config, prepared, tmp_path, capsys):
    run = tmp_path / "run"
    assert main(["train", "--config", str(config), "--model.tower_hidden", "[8, 4]", "--out", str(run)]) == 0
    saved = json.loads((run / "best/checkpoint.json").read_text())["config"]
    assert saved["model"]["expert_hidden"] == [8]  # from the file
    assert saved["model"]["tower_hidden"] == [8, 4]  # from the command line
    assert saved["training"]["max_epochs"] == 1
    test = json.loads((run / "test.json").read_text())
    capsys.readouterr()
    assert main(["evaluate", "--run", str(run), "--data", str(prepared)]) == 0
    assert json.loads(capsys.readouterr().out) == {"split": "test", "metrics": test}
    assert main(["evaluate", "--run", str(run)]) == 0  # the folder that it was trained on
    assert json.loads(capsys.readouterr().out) == {"split": "test", "metrics": test}


@pytest.mark.parametrize("asked", ["file", "command line"])
def test_fields_have_the_widths_asked_for(config, prepared, schema, tmp_path, capsys, asked):
    """From the settings to the scores: trained, measured, exported, and rows scored."""
    run, log, options = tmp_path / "run", str(tmp_path / "log.parquet"), []
    if asked == "file":
        config.write_text(config.read_text() + '[model.embedding_dims]\nitem = 12\n"place" = 4\n')
    else:
        options = ["--model.embedding_dims", '{"item": 12, "place": 4}']
    assert main(["train", "--config", str(config), *options, "--out", str(run)]) == 0
    saved = json.loads((run / "best/checkpoint.json").read_text())
    assert saved["config"]["model"]["embedding_dims"] == {"item": 12, "place": 4}
    assert saved["field_names"] == ["item", "place", "heat"]
    weights = load_trained(run).model.state_dict()
    assert [weights[f"embedding.weight.{f}"].shape[1] for f in range(3)] == [12, 4, 8]
    capsys.readouterr()
    assert main(["evaluate", "--run", str(run), "--data", str(prepared)]) == 0
    assert json.loads(capsys.readouterr().out)["metrics"] == json.loads((run / "test.json").read_text())
    assert main(["export", "--run", str(run), "--out", str(tmp_path / "model")]) == 0
    scores = str(tmp_path / "scores.parquet")
    assert main(["predict", "--model", str(tmp_path / "model"), "--files", log, "--out", scores]) == 0
    assert pq.read_table(scores).num_rows == 3000


def test_a_width_of_no_field_is_refused(config, tmp_path, capsys):
    train = ["train", "--config", config, "--out", tmp_path / "run", "--model.embedding_dims"]
    capsys.readouterr()
    line = fails([*train, '{"user": 4}'], capsys)
    assert "model.embedding_dims: expected names among item, place, heat, got 'user'" in line
    assert "model.embedding_dims: expected widths >= 1, got {'item': 0}" in fails([*train, '{"item": 0}'], capsys)
    assert "embedding_dims" in fails([*train, '{"item": "wide"}'], capsys)


def test_the_same_command_gives_the_same_bits(config, tmp_path):
    digests = []
    for name in ("a", "b"):
        assert main(["train", "--config", str(config), "--model.name", "adaftr", "--out", str(tmp_path / name)]) == 0
        digests.append(json.loads((tmp_path / name / "best/checkpoint.json").read_text())["sha256"])
    assert digests[0] == digests[1]


def test_demo_compares_two_models_and_reports(schema, tmp_path, capsys, monkeypatch):
    text = schema.read_text().replace("name =", 'shipped = "log.parquet"\nname =', 1)
    schema.write_text(text)
    monkeypatch.setattr("adaftr_fast.data.schema.parse.load_schema", lambda name: load_schema(str(schema)))
    monkeypatch.setattr("adaftr_fast.data.raw.source.SHIPPED", tmp_path)
    arguments = ["--training.batch_size=100", "--training.max_epochs=2", "--training.progress=false"]
    assert main(["demo", "--out", str(tmp_path / "demo"), *arguments]) == 0
    shown = capsys.readouterr().out
    assert shown.count("| mmoe ") == shown.count("| adaftr ") == 2
    report = (tmp_path / "demo/report.md").read_text()
    assert "tau/click-conversion" in report
    assert sorted(path.name for path in (tmp_path / "demo").iterdir()) == [
        "adaftr", "data", "metrics.jsonl", "mmoe", "report.md", "report.png",
    ]  # fmt: skip
    records = [json.loads(line) for line in (tmp_path / "demo/metrics.jsonl").read_text().splitlines()]
    assert {record["model"] for record in records} == {"mmoe", "adaftr"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "subcommand"),
        (["trian"], "invalid choice: 'trian'"),
        (["prepare"], "adaftr-fast prepare: the following arguments are required: --out"),
        (["predict", "--out", "OUT"], "adaftr-fast predict: the following arguments are required: --model, --files"),
        (["experiment"], "adaftr-fast experiment: the following arguments are required: NAME, --dataset"),
        (["train", "--out", "OUT", "--lr", "0.1"], "unrecognized arguments: --lr 0.1 (did you mean --optimizer.lr?)"),
        (["train", "--out", "OUT", "--batch-size=9"], "--batch-size=9 (did you mean --training.batch_size?)"),
        (["train", "--out", "OUT", "--model.expert_hiden", "[3]"], "(did you mean --model.expert_hidden?)"),
        (["predict", "--modle", "m"], "--modle m (did you mean --model?)"),
        (["info", "stray"], "adaftr-fast info: unrecognized arguments: stray"),
        (["prepare", "--dataset", "flites", "--out", "OUT"], "unknown data set 'flites'; expected one of aliccp"),
        (["prepare", "--dataset", "census", "--out", "OUT"], r"expected 2 file(s) (TRAIN TEST), got 0"),
        (["train", "--out", "OUT", "--data.folder", "OUT"], "not a prepared folder"),
        (["train", "--out", "OUT", "--model.name", "aitm"], "aitm"),
        (["train", "--out", "OUT", "--training.patience", "0"], "training.patience: expected >= 1, got 0"),
        (["train", "--out", "OUT", "--model.beta", "-1"], "model.beta: expected a finite weight >= 0, got -1"),
        (["train", "--out", "OUT", "--config", "OUT"], "config"),
        (["evaluate", "--run", "OUT", "--data", "OUT"], "not a prepared folder"),
    ],
)
def test_user_errors_print_one_line(arguments, message, tmp_path, capsys):
    arguments = [str(tmp_path / "nothing") if each == "OUT" else each for each in arguments]
    assert message in fails(arguments, capsys)


def test_errors_in_a_config_file_name_the_option(config, tmp_path, capsys):
    text = config.read_text()
    config.write_text(text.replace("expert_hidden", "expert_hiden"))
    assert "expert_hiden" in fails(["train", "--config", config, "--out", tmp_path / "run"], capsys)
    config.write_text(text.replace("[8]", '"wide"'))
    assert "model.expert_hidden" in fails(["train", "--config", config, "--out", tmp_path / "run"], capsys)
    config.write_text(text + "[model")
    assert "train: Problems parsing config" in fails(["train", "--config", config, "--out", tmp_path / "run"], capsys)


def test_evaluate_rejects_other_data_and_damaged_weights(config, prepared, schema, tmp_path, capsys):
    run = tmp_path / "run"
    assert main(["train", "--config", str(config), "--out", str(run)]) == 0
    schema.write_text(schema.read_text().replace('heat = "numeric"', 'heat = { kind = "numeric", buckets = 3 }'))
    assert main(["prepare", "--dataset", str(schema), "--files", str(tmp_path / "log.parquet"),
                 "--out", str(tmp_path / "other")]) == 0  # fmt: skip
    capsys.readouterr()
    assert "trained on other data" in fails(["evaluate", "--run", run, "--data", tmp_path / "other"], capsys)
    (weights,) = (run / "best").glob("weights-*")
    weights.write_bytes(weights.read_bytes()[:100])
    assert "damaged" in fails(["evaluate", "--run", run, "--data", prepared], capsys)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"config": {}}, "missing key 'config.data'"),
        ({"config": {"model": None}}, "config.model: expected an object, got None"),
        ({"config": {"model": {"depth": 3}}}, "unknown key 'config.model.depth'"),
        ({"config": {"model": {"expert_hidden": 8}}}, "config.model.expert_hidden: expected list[int], got 8"),
        ({"config": {"model": {"l2": -1}}}, "model.l2: expected a finite weight >= 0"),
        ({"config": {"model": {}, "data": {}, "optimizer": {}}}, "missing key 'config.training'"),
    ],
)
def test_evaluate_validates_the_config_of_a_checkpoint(config, prepared, tmp_path, capsys, change, message):
    run = tmp_path / "run"
    assert main(["train", "--config", str(config), "--out", str(run)]) == 0
    capsys.readouterr()
    path = run / "best/checkpoint.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    line = fails(["evaluate", "--run", run, "--data", prepared], capsys)
    assert "checkpoint.json: " in line
    assert message in line


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_embeddings": [3]}, "field_names must be 1 names"),
        ({"num_embeddings": [3, 0, 2]}, "num_embeddings must be one number >= 1 per field"),
        ({"tasks": []}, "task_names must name at least one task"),
    ],
)
def test_a_checkpoint_that_makes_no_model_is_named(config, prepared, tmp_path, capsys, change, message):
    run = tmp_path / "run"
    assert main(["train", "--config", str(config), "--out", str(run)]) == 0
    capsys.readouterr()
    path = run / "best/checkpoint.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    line = fails(["evaluate", "--run", run, "--data", prepared], capsys)
    assert f"{run / 'best'}: damaged: " in line
    assert message in line


def test_divergence_prints_one_line(config, tmp_path, capsys):
    diverging = ["--model.name", "adaftr", "--optimizer.lr", "1e30"]
    capsys.readouterr()
    line = fails(["train", "--config", config, *diverging, "--out", tmp_path / "run"], capsys)
    assert "finite" in line
    assert not (tmp_path / "run").exists()


def test_undefined_metrics_are_null(config, tmp_path, monkeypatch):
    monkeypatch.setattr("adaftr_fast.training.evaluation.log_loss", lambda labels, logits: float("nan"))
    assert main(["train", "--config", str(config), "--out", str(tmp_path / "run")]) == 0
    for name in ("metrics.jsonl", "test.json", "best/checkpoint.json"):
        text = (tmp_path / "run" / name).read_text()
        assert '"logloss": null' in text
        assert "NaN" not in text


def interrupting(monkeypatch, at_epoch, signum=signal.SIGINT):
    """Sends a signal, Ctrl-C by default, in an epoch; returns the list of started epochs."""
    begun, train_epoch = [], Trainer.train_epoch

    def pressed(self, epoch, interrupt):
        begun.append(epoch)
        if epoch == at_epoch:
            signal.raise_signal(signum)
        return train_epoch(self, epoch, interrupt)

    monkeypatch.setattr(Trainer, "train_epoch", pressed)
    return begun


def test_ctrl_c_in_the_first_epoch_keeps_the_earlier_run(config, tmp_path, capsys, monkeypatch):
    run = tmp_path / "run"
    assert main(["train", "--config", str(config), "--out", str(run)]) == 0
    old = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    interrupting(monkeypatch, at_epoch=1)
    capsys.readouterr()
    assert main(["train", "--config", str(config), "--training.seed", "1", "--out", str(run)]) == 130
    shown = capsys.readouterr()
    assert shown.out == ""
    replaces, interrupted = shown.err.splitlines()
    at = datetime.fromtimestamp((run / "test.json").stat().st_mtime)
    assert replaces == f"{run}: replaces the finished run of {at:%Y-%m-%d %H:%M} after the first epoch"
    assert interrupted == f"adaftr-fast train: interrupted; run the same command to resume from {run}"
    shutil.rmtree(run / "last")
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == old


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_same_command_resumes_an_interrupted_run(config, tmp_path, capsys, monkeypatch, signum, code):
    arguments = ["train", "--config", str(config), "--training.max_epochs", "3", "--out"]
    assert main([*arguments, str(tmp_path / "whole")]) == 0
    with monkeypatch.context() as patch:
        interrupting(patch, at_epoch=2, signum=signum)
        assert main([*arguments, str(tmp_path / "stopped")]) == code
    assert not (tmp_path / "stopped/test.json").exists()
    capsys.readouterr()
    assert "lr = 0.0005, this run has 0.1" in fails([*arguments, tmp_path / "stopped", "--optimizer.lr", "0.1"], capsys)
    assert main([*arguments, str(tmp_path / "stopped")]) == 0
    assert "resuming in epoch 2 after step 1" in capsys.readouterr().err
    for name in ("test.json", "best/checkpoint.json"):
        assert (tmp_path / "stopped" / name).read_text() == (tmp_path / "whole" / name).read_text()
    assert not (tmp_path / "stopped/last").exists()


def test_restart_discards_the_interrupted_run(config, tmp_path, capsys, monkeypatch):
    run = ["train", "--config", str(config), "--out", str(tmp_path / "run")]
    with monkeypatch.context() as patch:
        interrupting(patch, at_epoch=1)
        assert main(run) == 130
    assert main([*run, "--restart", "--optimizer.lr", "0.1"]) == 0
    assert "resuming" not in capsys.readouterr().err


@pytest.mark.parametrize("at_epoch", [1, 2])
def test_ctrl_c_interrupts_the_demo(schema, tmp_path, capsys, monkeypatch, at_epoch):
    schema.write_text(schema.read_text().replace("name =", 'shipped = "log.parquet"\nname =', 1))
    monkeypatch.setattr("adaftr_fast.data.schema.parse.load_schema", lambda name: load_schema(str(schema)))
    monkeypatch.setattr("adaftr_fast.data.raw.source.SHIPPED", tmp_path)
    begun = interrupting(monkeypatch, at_epoch)
    arguments = ["--training.batch_size=100", "--training.max_epochs=2", "--training.progress=false"]
    assert main(["demo", "--out", str(tmp_path / "demo"), *arguments]) == 130
    assert begun == list(range(1, at_epoch + 1))  # of the first model only
    error = capsys.readouterr().err
    assert f"adaftr-fast demo: interrupted; run the same command to resume from {tmp_path / 'demo'}" in error
    assert "prepare" not in error  # no progress bar
    assert not (tmp_path / "demo/report.md").exists()


def test_info_runs_as_a_module():
    done = subprocess.run([sys.executable, "-m", "adaftr_fast.cli", "info"], capture_output=True, text=True, check=True)
    assert "C++ extension" in done.stdout
    assert "flights, flights3, synthetic, synthetic3" in done.stdout


@pytest.mark.parametrize(("raw", "dataset"), [("false", "synthetic-aliccp"), ("true", "aliccp")])
def test_synthesize_prints_the_command_that_prepares_the_log(raw, dataset, tmp_path, capsys):
    out, rates = tmp_path / "log", '{"click": 0.3, "conversion": 0.1}'
    assert main(["synthesize", "--rows", "2000", "--rates", rates, "--raw", raw, "--out", str(out)]) == 0
    _, *command = capsys.readouterr().out.replace("PREPARED", str(tmp_path / "data")).split()
    assert main(command) == 0
    assert f"{dataset}, 23 fields" in capsys.readouterr().out
    assert main(["synthesize", "--rows", "-1", "--out", str(out)]) == 2
    assert "rows: expected >= 1, got -1" in capsys.readouterr().err


def test_prepare_infers_a_schema_from_labels(schema, tmp_path, capsys):
    log, out = str(schema.parent / "log.parquet"), str(tmp_path / "out")
    command = ["prepare", "--files", log, "--labels", "click", "--time", "day", "--ignore", "price", "--out", out]
    assert main(command) == 0
    text = capsys.readouterr().out
    assert "log, 3 fields" in text
    assert "prepare with --dataset FILE.toml" in text.splitlines()[-1]
    assert main(["prepare", "--files", log, "--out", out]) == 2
    assert "expected dataset, or labels" in capsys.readouterr().err
    assert main(["prepare", "--labels", "click", "--out", out]) == 2
    assert "expected one file beside labels, got 0" in capsys.readouterr().err


def test_the_former_name_of_shard_works_with_a_warning(schema, tmp_path, capsys):
    """Python's default filters hide a DeprecationWarning from the user of a command."""
    log, out = str(tmp_path / "log.parquet"), tmp_path / "out"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        assert main(["prepare", "--dataset", str(schema), "--files", log, "--part", "1/1", "--out", str(out)]) == 0
    assert "warning: prepare --part is deprecated: use --shard" in capsys.readouterr().err
    assert (out / "schema.json").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"\xfd\x00\x81", "not a TOML file of options: 'utf-8' codec"), (b"a = " + 100_000 * b"[", "nested too deeply")],
)
def test_a_file_that_is_no_configuration_is_an_error_in_one_line(tmp_path, capsys, content, message):
    path = tmp_path / "run.toml"
    path.write_bytes(content)
    with pytest.raises(SystemExit) as exit_:
        main(["train", "--config", str(path), "--out", str(tmp_path / "run")])
    assert exit_.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"adaftr-fast train: {path}: {message}")


def test_tables_larger_than_memory_are_refused_before_they_are_made(config, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("adaftr_fast._memory.available", lambda: 64 * 10**9)
    arguments = ["train", "--config", str(config), "--model.embedding_dim", "500000000", "--out", str(tmp_path / "run")]
    assert main(arguments) == 2
    sizes = "136.0 GB of float32 and 272.0 GB of adam's state, and 64.0 GB of memory are available"
    assert f"the tables of 68 ids take {sizes}; use a smaller width" in capsys.readouterr().err
    monkeypatch.setattr("adaftr_fast._memory.available", lambda: 400 * 10**9)
    assert main(arguments) == 2  # the weights alone would fit
