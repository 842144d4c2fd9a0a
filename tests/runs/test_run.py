"""Runs of models that need a funnel, and of balanced tasks."""

import json
import math
from dataclasses import replace

import pytest
import torch

from adaftr_fast.errors import ConfigError
from adaftr_fast.runs.run import build, train_one
from adaftr_fast.runs.trained import load_trained
from adaftr_fast.training.evaluation import evaluate

from .conftest import settings


@pytest.mark.parametrize(
    ("labels", "shown"),
    [
        ({"click": "click", "buy": "buy"}, "got tasks click, buy and funnel none"),
        ({"conversion": "buy", "click": "click"}, "got tasks conversion, click and funnel click, conversion"),
    ],
)
def test_tasks_that_are_no_funnel_are_refused(prepared, labels, shown):
    data = prepared(1, labels=labels)
    needs = "needs tasks that are the stages of the schema's funnel, in order"
    with pytest.raises(ConfigError, match=rf"model\.name: esmm {needs}, {shown}"):
        build(settings(name="esmm").model, data)
    assert build(settings(name="mmoe").model, data)


def test_a_balanced_run_of_esmm_is_read_again(prepared, tmp_path):
    data, out = prepared(1), tmp_path / "run"
    config = settings(data.folder, name="esmm")
    config = replace(config, training=replace(config.training, balance="gradnorm"))
    run = train_one(data, config, out)
    weights = [[each["train"][f"weight/{task}"] for task in ("click", "conversion")] for each in run.epochs]
    assert all(math.isclose(sum(each), 2.0, rel_tol=1e-5) for each in weights)
    assert len({each[0] for each in weights}) == 2
    trained = load_trained(out)
    assert trained.about.config.training.balance == "gradnorm"
    test = data.load("test")
    assert evaluate(trained.model, test, 1000) == run.test
    assert 0 < json.loads((out / "test.json").read_text())["conversion"]["cvr_auc"] < 1
    logits = trained.model(next(test.batches(100)).ids)
    assert torch.all(logits[:, 1] < logits[:, 0])
