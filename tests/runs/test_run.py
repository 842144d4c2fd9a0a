"""Runs of models that need a funnel, and of balanced tasks."""

import json

import pytest
import torch

from adaftr_fast.config import RunConfig
from adaftr_fast.errors import ConfigError
from adaftr_fast.runs.run import build, train_one
from adaftr_fast.training.evaluation import evaluate
from adaftr_fast.training.trained import Run

from .conftest import TRACKED, settings


@pytest.mark.parametrize(
    ("labels", "shown"),
    [
        ({"click": "click", "buy": "buy"}, "got tasks click, buy and funnel none"),
        (
            {"conversion": "buy", "click": "click"},
            "got tasks conversion, click and funnel click, conversion",
        ),
    ],
)
def test_tasks_that_are_no_funnel_are_refused(prepared, labels, shown):
    data = prepared(1, labels=labels)
    needs = "needs tasks that are the stages of the schema's funnel, in order"
    with pytest.raises(ConfigError, match=rf"model\.name: esmm {needs}, {shown}"):
        build(settings(name="esmm").model, data)
    assert build(settings(name="mmoe").model, data)


def test_a_balanced_run_of_esmm_is_read_again(prepared, tmp_path):
    data = prepared(1)
    out = tmp_path / "run"
    config = settings(data.folder, name="esmm").with_options(training={"balance": "gradnorm"})
    run = train_one(data, config, out)
    trained = Run.read(out)
    assert trained.about.config.training.balance == "gradnorm"
    test = data.load("test")
    assert evaluate(trained.model, test, 1000) == run.test
    assert 0 < json.loads((out / "test.json").read_text())["conversion"]["cvr_auc"] < 1
    logits = trained.model(next(test.batches(100)).ids)
    assert torch.all(logits[:, 1] < logits[:, 0])


def test_a_run_that_is_resumed_is_one_run_in_a_tracker(prepared, tmp_path, tracker):
    data = prepared(1)
    out = tmp_path / "run"
    config = settings(data.folder, name="mmoe").with_options(training={"trackers": ["wandb"]})
    tracker.stops_at = 1
    with pytest.raises(KeyboardInterrupt):
        train_one(data, config, out, output=TRACKED)
    tracker.stops_at = 0
    run = train_one(data, config, out, output=TRACKED)
    train_one(data, config, out, output=TRACKED)
    killed, resumed, other = tracker.made
    assert (killed.opening.known, killed.opening.first_step, killed.closed) == (None, 1, ["failed"])
    assert killed.opening.parameters["optimizer.lr"] == 0.01
    assert (resumed.opening.known, resumed.opening.first_step, resumed.closed) == (
        "id",
        1,
        ["finished"],
    )
    # the killed process may not have logged its last epoch
    assert list(resumed.logged) == [1, 2, "test"]
    assert resumed.logged["test"]["test/click/auc"] == run.test["click"]["auc"]
    assert (other.opening.known, other.opening.first_step) == (None, 1)


def test_trackers_are_free_on_resuming(prepared, tmp_path, tracker):
    data = prepared(1)
    out = tmp_path / "run"
    config = settings(data.folder, name="mmoe")
    tracker.stops_at = 1
    with pytest.raises(KeyboardInterrupt):
        train_one(data, config.with_options(training={"trackers": ["wandb"]}), out, output=TRACKED)
    assert len(train_one(data, config, out, output=TRACKED).epochs) == 2
    assert len(tracker.made) == 1


def test_the_report_of_a_run_says_what_was_trained(prepared, tmp_path):
    data = prepared(1)
    out = tmp_path / "run"
    run = train_one(data, settings(data.folder, name="adaftr"), out, report=True)
    text = (out / "report.md").read_text()
    doubt, facts = text.split("\n\n")[1:3]
    assert doubt.startswith("**Before you use it:** The model was trained for 20 steps, in which")
    assert run.doubts == [doubt.partition(":** ")[2]]
    assert facts.startswith("| run ")
    assert f"| adaftr | click      | {100 * run.test['click']['auc']:.2f} |" in text
    assert f"| best epoch    | {run.best_epoch} of 2, by mean AUC in validation" in text
    assert f"{sum(each['seconds'] for each in run.epochs):.1f} seconds, " in text
    assert "| adaftr | tau/click-conversion | " in text
    toml = text.partition("```toml\n")[2].partition("```")[0]
    (tmp_path / "again.toml").write_text(toml)
    assert RunConfig.from_toml(tmp_path / "again.toml") == settings(data.folder, name="adaftr")
    assert (out / "report.png").read_bytes()[:4] == b"\x89PNG"


def test_a_report_of_a_run_before_does_not_stay(prepared, tmp_path):
    data = prepared(1)
    out = tmp_path / "run"
    out.mkdir()
    for name in ("report.md", "report.png"):
        (out / name).write_text("of a run before")
    train_one(data, settings(data.folder, name="mmoe"), out)
    assert {path.name for path in out.iterdir()} == {
        "best",
        "doubts.json",
        "metrics.jsonl",
        "test.json",
    }
