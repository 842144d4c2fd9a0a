"""train, demo and info: from settings to metrics and scores."""

import json

from adaftr_fast.cli import main
from adaftr_fast.data.schema.parse import load_schema
from adaftr_fast.training.trained import load_trained
from tests.logs import read_records

from .conftest import fails


def test_fields_have_the_widths_asked_for(config, prepared, tmp_path, capsys):
    """From a file and the command line to the checkpoint and its metrics."""
    config.write_text(config.read_text() + "[model.embedding_dims]\nitem = 12\n")
    run = tmp_path / "run"
    widths = ["--model.embedding_dims", '{"item": 12, "user": 4}']
    options = [*widths, "--model.tower_hidden", "[8, 4]", "--out", str(run)]
    assert main(["train", "--config", str(config), *options]) == 0
    saved = json.loads((run / "best/checkpoint.json").read_text())
    assert saved["config"]["model"]["embedding_dims"] == {"item": 12, "user": 4}
    assert saved["config"]["model"]["expert_hidden"] == [8]  # from the file
    assert saved["config"]["model"]["tower_hidden"] == [8, 4]  # from the command line
    assert saved["field_names"] == ["item", "user", "price"]
    embedding = load_trained(run).model.embedding
    assert [embedding.field_weight(f).shape[1] for f in range(3)] == [12, 4, 8]
    capsys.readouterr()
    for options in (["--data", str(prepared)], []):  # the folder that it was trained on
        assert main([*f"evaluate --run {run} --json".split(), *options]) == 0
        test = json.loads((run / "test.json").read_text())
        assert json.loads(capsys.readouterr().out) == {"split": "test", "metrics": test}


def test_evaluate_prints_tables_and_writes_a_page(run, tmp_path, capsys):
    capsys.readouterr()
    assert main(f"evaluate --run {run}".split()) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("| test: task |   AUC |")
    assert (
        shown.splitlines()[-1] == "Calibration, lift and gain: --out FOLDER; fields: --importance"
    )
    options = (
        f"--importance --repeats 2 --max_rows 80 --progress false --out {tmp_path}/why".split()
    )
    assert main([*f"evaluate --run {run}".split(), *options]) == 0
    shown = capsys.readouterr().out
    assert (
        shown.splitlines()[-1]
        == f"Page: {tmp_path}/why/evaluation.md, {tmp_path}/why/evaluation.png"
    )
    page = (tmp_path / "why/evaluation.md").read_text()
    assert "## Importance of fields (80 rows, 2 permutations)" in page
    table = [line for line in shown.splitlines() if line.startswith("|") and "±" in line]
    assert sorted(line.split()[1] for line in table) == ["item", "price", "user"]
    assert all(line in page for line in table)
    assert main([*f"evaluate --run {run} --json".split(), *options]) == 0
    found = json.loads(capsys.readouterr().out)["importance"]
    assert (
        f"{100 * found['item']['click']['mean']:.3f} ± "
        f"{100 * found['item']['click']['standard_error']:.3f}" in page
    )


def test_demo_compares_two_models_and_reports(schema, log, tmp_path, capsys, monkeypatch):
    schema.write_text(schema.read_text().replace("name =", 'shipped = "log.parquet"\nname =', 1))
    monkeypatch.setattr(
        "adaftr_fast.data.schema.parse.load_schema", lambda name: load_schema(str(schema))
    )
    monkeypatch.setattr("adaftr_fast.data.raw.source.SHIPPED", log.parent)
    arguments = [
        "--training.batch_size=100",
        "--training.max_epochs=2",
        "--training.progress=false",
    ]
    assert main([*f"demo --out {tmp_path}/demo".split(), *arguments]) == 0
    shown = capsys.readouterr().out
    assert shown.count("| mmoe ") == shown.count("| adaftr ") == 2
    report = (tmp_path / "demo/report.md").read_text()
    assert "tau/click-conversion" in report
    assert sorted(path.name for path in (tmp_path / "demo").iterdir()) == [
        "adaftr", "data", "metrics.jsonl", "mmoe", "report.md", "report.png",
    ]  # fmt: skip
    records = read_records(tmp_path / "demo/metrics.jsonl")
    assert {record["model"] for record in records} == {"mmoe", "adaftr"}


def test_divergence_prints_one_line(config, tmp_path, capsys):
    diverging = ["--model.name", "adaftr", "--optimizer.lr", "1e30"]
    capsys.readouterr()
    line = fails(
        [*f"train --config {config}".split(), *diverging, "--out", f"{tmp_path}/run"], capsys
    )
    assert "finite" in line
    assert not (tmp_path / "run").exists()


def test_undefined_metrics_are_null(config, tmp_path, monkeypatch):
    monkeypatch.setattr("adaftr_fast.training.evaluation.log_loss", lambda *_: float("nan"))
    assert main(f"train --config {config} --out {tmp_path}/run".split()) == 0
    for name in ("metrics.jsonl", "test.json", "best/checkpoint.json"):
        text = (tmp_path / "run" / name).read_text()
        assert '"logloss": null' in text
        assert "NaN" not in text


def test_tables_larger_than_memory_are_refused_before_they_are_made(
    config, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("adaftr_fast._memory.available", lambda: 64 * 10**9)
    arguments = (
        f"train --config {config} --model.embedding_dim 500000000 --out {tmp_path}/run".split()
    )
    capsys.readouterr()
    sizes = "136.0 GB of float32 and 272.0 GB of adam's state, and 64.0 GB of memory are available"
    assert f"the tables of 68 rows take {sizes}; use a smaller width" in fails(arguments, capsys)
    wide = [*arguments, "--model.wide", "true"]  # and two logistic regressions over the same ids
    assert "the tables of 204 rows take 136.0 GB" in fails(wide, capsys)
    monkeypatch.setattr("adaftr_fast._memory.available", lambda: 400 * 10**9)
    assert main(arguments) == 2  # the weights alone would fit
