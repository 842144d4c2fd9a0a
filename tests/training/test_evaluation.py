"""Predictions and metrics of a split."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from adaftr_fast.data.dataset.loader import Split
from adaftr_fast.errors import DivergedError
from adaftr_fast.training.evaluation import evaluate, examine, mean_auc, spread
from adaftr_fast.training.metrics import auc, cvr_auc
from tests.training.conftest import whole


def test_evaluation_covers_every_row_in_order(model, splits):
    validation = whole(splits[1])
    logits = model(validation.ids).detach().numpy()
    metrics = evaluate(model, splits[1], batch_size=300)
    assert metrics["conversion"]["auc"] == auc(validation.labels[:, 1].numpy(), logits[:, 1])
    assert mean_auc(metrics) == np.mean([metrics[task]["auc"] for task in model.task_names])
    ungrouped = evaluate(model, Split.of(replace(validation, group=None)), 300)
    names = {"rows", "positives", "auc", "logloss", "rate_logloss", "calibration"}
    assert ungrouped["click"].keys() == names
    assert ungrouped["conversion"].keys() == names | {"cvr_auc"}
    values = examine(model, splits[1], batch_size=300)[1]["tau/click-conversion"]
    assert (values == validation.ids[:, 0].numpy()).all()
    assert spread(np.arange(101.0)) == {"p5": 5.0, "p50": 50.0, "p95": 95.0}


def test_the_funnel_of_the_split_decides_on_post_click_metrics(model, splits):
    validation = whole(splits[1])
    y = validation.labels.numpy()
    z = model(validation.ids).detach().numpy()
    clicked = cvr_auc(y[:, 0], y[:, 1], z[:, 0], z[:, 1])
    assert evaluate(model, splits[1], 300)["conversion"]["cvr_auc"] == clicked
    splits[1].funnel = ()
    assert "cvr_auc" not in evaluate(model, splits[1], 300)["conversion"]
    splits[1].funnel = ("conversion", "click", "unknown")
    found = evaluate(model, splits[1], 300)
    assert "cvr_auc" not in found["conversion"]
    assert np.isnan(found["click"]["cvr_auc"])  # a converted row is always clicked
    assert mean_auc(found) == np.mean([found[task]["auc"] for task in model.task_names])


def test_predictions_that_are_not_finite_raise(model, splits):
    with torch.no_grad():
        model.out.bias[0] = float("nan")
    with pytest.raises(DivergedError, match="1000 of 2000 predictions are not finite"):
        evaluate(model, splits[1], 300)
