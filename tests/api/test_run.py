import json
import math
import re
import shutil
from dataclasses import replace

import pytest

import adaftr_fast as af
from adaftr_fast.cli import main
from adaftr_fast.config import DataConfig, ModelConfig, RunConfig, TrainingConfig
from adaftr_fast.data.dataset.loader import PreparedData
from adaftr_fast.display.tables import paragraphs
from adaftr_fast.errors import CheckpointError, ConfigError
from adaftr_fast.training.trained import metric_notes

from .conftest import MODEL, OPTIMIZER, TRAINING

TOML = """
preset = "paper"
[model]
name = "adaftr"
expert_hidden = [8]
tower_hidden = [16, 8]
relatedness_hidden = [4]
[optimizer]
lr = 0.01
[training]
batch_size = 128
max_epochs = 2
progress = false
"""


@pytest.fixture
def copied(run, tmp_path):
    """A copy of the run, to be changed."""
    return shutil.copytree(run.folder, tmp_path / "copied")


def test_a_run_prints_its_test_metrics(run):
    summary, header, _, *lines = repr(run).splitlines()
    rows, (gauc, *doubts) = lines[:2], lines[2:]
    assert summary == f"{run.folder}: adaftr, best epoch {run.best_epoch} of 2"
    assert (
        header
        == "| model  | task       |   AUC |  GAUC | log-loss | of the rate | predicted/observed | CVR AUC "
        "| best epoch | samples/s | s/epoch |"
    )
    assert [row.split("|")[2].strip() for row in rows] == ["click", "conversion"]
    for row, metrics in zip(rows, run.test.values(), strict=True):
        assert (
            f" {100 * metrics['auc']:.2f} | {100 * metrics['gauc']:.2f} | "
            f"{metrics['logloss']:>8.4f} | {metrics['rate_logloss']:>11.4f} | "
            f"{metrics['calibration']:>18.3f} | " in row
        )
    groups = [f"{task} {each['gauc_groups']}" for task, each in run.test.items()]
    how = "GAUC: the mean AUC over the groups with both classes, of equal weight"
    assert gauc == f"{how}: {', '.join(groups)}."
    assert run.doubts == doubts == json.loads((run.folder / "doubts.json").read_text())
    assert doubts[-1].startswith("The model was trained for 14 steps, in which it can hardly ")
    page = run._repr_html_()
    notes = paragraphs(gauc, *doubts)
    assert page.startswith(f"<p>{summary}</p>{run.table().html()}{notes}<img")
    assert "data:image/png;base64,iVBOR" in page
    assert not run.model.training
    assert set(run.diagnostics) == {"tau/click-conversion"}


def test_a_run_that_validates_thrice_an_epoch_is_read(data, tmp_path):
    """Of equal epochs, as without a step, the first is the best."""
    options = TRAINING | {"validate_every": 1 / 3, "max_epochs": 2}
    run = af.train(data, tmp_path / "run", model=MODEL, optimizer={"lr": 0.0}, training=options)
    read = af.load_run(tmp_path / "run")
    assert [record["epoch"] for record in read.epochs] == [1 / 3, 2 / 3, 1.0, 4 / 3, 5 / 3, 2.0]
    assert read.epochs == run.epochs
    assert read.best_epoch == run.best_epoch == 1 / 3
    assert "of 2" in read.summary()


def test_it_equals_the_command(run, data, tmp_path, capsys):
    (tmp_path / "run.toml").write_text(TOML)
    out = tmp_path / "run"
    command = f"train --config {tmp_path}/run.toml --data.folder {data.folder} --out {out}".split()
    assert main([str(each) for each in command]) == 0
    assert json.loads((out / "test.json").read_text()) == run.test
    assert weights(out) == weights(run.folder)
    shown, named = capsys.readouterr().out.split("\n\n")
    (gauc,) = metric_notes(run.test, "none")
    printed = "\n".join([run.table().markdown(), gauc, *run.doubts])
    assert without_speed(shown) == without_speed(printed)
    assert named.splitlines() == [
        f"Report: {out}/report.md",
        f"adaftr-fast evaluate --run {out} --importance --out {out}",
        f"adaftr-fast export --run {out} --out MODEL",
    ]


def test_runs_are_compared_in_one_table_and_figure(run):
    other = replace(af.load_run(run.folder), name="other")
    rows = repr(run.table(other)).splitlines()[2:]
    assert [row.split("|")[1].strip() for row in rows] == ["adaftr", "adaftr", "other", "other"]
    lines = run.curves(other).axes[0].lines
    labels = [line.get_label() for line in lines]
    assert [label for label in labels if label[0] != "_"] == ["adaftr", "other"]


def weights(folder):
    """The name of the weights' file, which is their checksum."""
    return [path.name for path in (folder / "best").glob("weights-*")]


def without_speed(text):
    return [re.sub(r"\|[^|]*\|[^|]*\|$", "", line) for line in text.splitlines()]


def test_options_come_from_dicts_a_file_or_a_configuration(run, data, tmp_path):
    path = tmp_path / "run.toml"
    path.write_text(TOML.replace("0.01", "0.5"))
    config = RunConfig(
        DataConfig(str(data.folder)), ModelConfig(**MODEL), training=TrainingConfig(**TRAINING)
    )
    for number, (folder, source) in enumerate([(None, config), (data.folder, str(path))]):
        found = af.train(folder, tmp_path / str(number), config=source, optimizer=OPTIMIZER)
        assert found.config == run.config
        assert found.test == run.test
    path.write_text(TOML.replace("expert_hidden", "expert_hiden"))
    with pytest.raises(ConfigError, match=r"run\.toml: unknown key 'config\.model\.expert_hiden'"):
        af.train(data, tmp_path / "run", config=path)


def test_load_run_reads_what_train_returned(run):
    loaded = af.load_run(run.folder)
    assert repr(loaded) == repr(run)
    assert (loaded.epochs, loaded.test, loaded.config) == (run.epochs, run.test, run.config)
    assert loaded.best_epoch == run.best_epoch
    assert loaded.diagnostics == {}
    assert "<img" in loaded._repr_html_()


def test_the_best_epoch_is_found_where_a_metric_is_undefined(copied, run):
    """JSON has null for nan, which equals nothing."""
    for name in ("metrics.jsonl", "best/checkpoint.json", "test.json"):
        text = (copied / name).read_text()
        (copied / name).write_text(re.sub(r'"gauc": [\d.]+', '"gauc": null', text))
    loaded = af.load_run(copied)
    assert loaded.best_epoch == run.best_epoch
    assert math.isnan(loaded.epochs[0]["validation"]["click"]["gauc"])
    assert " nan | " in repr(loaded)
    assert "nan" in loaded._repr_html_()


def test_weights_that_lag_behind_the_epochs_are_of_their_own_epoch(copied):
    """As a run that is killed after metrics.jsonl and before the weights of a better epoch are
    written.
    """
    records = (copied / "metrics.jsonl").read_text().splitlines()
    better = json.loads(records[-1]) | {"epoch": 3}
    for metrics in better["validation"].values():
        metrics["auc"] = 0.999
    (copied / "metrics.jsonl").write_text("\n".join([*records, json.dumps(better)]) + "\n")
    (copied / "test.json").unlink()
    loaded = af.load_run(copied)
    assert loaded.best_epoch in (1, 2)
    assert len(loaded.epochs) == 3
    assert repr(loaded).endswith("unfinished: no test metrics yet")
    assert loaded.test == {}


def test_a_warm_start_takes_a_run_or_its_folder(run, data, tmp_path, capsys):
    settings = {"model": MODEL, "optimizer": OPTIMIZER, "training": TRAINING | {"max_epochs": 1}}
    settings["preset"] = "paper"
    warm = af.train(data, tmp_path / "run", warm_start=run, **settings)
    assert "72 of 72 embedding rows copied" in capsys.readouterr().err
    assert warm.config.warm_start.run == str(run.folder)
    cold = af.train(data, tmp_path / "cold", **settings)
    assert weights(cold.folder) != weights(warm.folder)
    assert warm.epochs[0]["train"]["click"] < cold.epochs[0]["train"]["click"]


def test_evaluate_measures_any_split_of_a_run_or_its_folder(run, data):
    assert af.evaluate(run).metrics == run.test
    assert af.evaluate(str(run.folder), data.folder, "validation").metrics == run.epochs[run.best_epoch - 1][
        "validation"]  # fmt: skip
    other = PreparedData(data.folder)
    other.manifest = replace(other.manifest, fingerprint="other")
    with pytest.raises(CheckpointError, match="trained on other data"):
        af.evaluate(run, other)
    found = af.evaluate(run, data, "train")
    header, _, click, _, *notes = [each for each in repr(found).splitlines() if each]
    assert (
        header == "| train: task |   AUC |  GAUC | log-loss | of the rate | predicted/observed | "
        "CVR AUC |"
    )
    assert click.startswith(f"| click       | {100 * found.metrics['click']['auc']:.2f} |")
    gauc, *doubts = notes
    assert [gauc] == metric_notes(found.metrics, "none")
    assert found.doubts == doubts
    assert doubts[-1].startswith("The model was trained for 14 steps, in which it can hardly ")
    assert found._repr_html_() == found.table().html() + paragraphs(*notes)


def test_evaluate_refuses_a_split_whose_predictions_do_not_fit(run):
    needed = (
        r"^memory: expected at least 0.63 GB, of which the predictions of [0-9]+ rows take 0.01, "
        r"got 0.4$"
    )
    with pytest.raises(ConfigError, match=needed):
        af.evaluate(run, memory=0.4)
    assert af.evaluate(run, memory=0.63).metrics == run.test


def test_damaged_runs_are_named(copied, tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint here"):
        af.load_run(tmp_path)
    (copied / "metrics.jsonl").write_text('{"epoch": 1}\n')
    with pytest.raises(
        CheckpointError, match=r"copied: the run cannot be read: validation: expected a JSON object"
    ):
        af.load_run(copied)
    (copied / "metrics.jsonl").unlink()
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl"):
        af.load_run(copied)
