"""Evaluations of models that are no better than a constant, or that were stopped early, say so
first.
"""

from types import SimpleNamespace

import numpy as np
import pytest

from adaftr_fast.explain.buckets import ScoreBuckets
from adaftr_fast.explain.doubts import auc_error, find_doubts
from adaftr_fast.training.evaluation import Predictions, measure
from adaftr_fast.training.trained import Run


def doubts(
    scale, shift=0.0, best=2, trained=3, most=3, rows=3000, mean=-1.0, spread=1.5, highest=np.inf
):
    """Those of probabilities whose logits are ``scale`` times the true ones plus ``shift``, and at
    most ``highest``.
    """
    random = np.random.default_rng(0)
    true = random.normal(mean, spread, rows)
    labels = (random.random(rows) < 1 / (1 + np.exp(-true))).astype(np.uint8)
    logits = (
        (scale * true + random.normal(size=rows) * (scale == 0) + shift)
        .clip(max=highest)
        .astype(np.float32)
    )
    run = Run.of("run", [{"epoch": epoch + 1} for epoch in range(trained)], best)
    run.about = SimpleNamespace(config=SimpleNamespace(training=SimpleNamespace(max_epochs=most)))
    metrics = measure(["click"], Predictions(logits[:, None], labels[:, None], None))
    return find_doubts(run, metrics, {"click": ScoreBuckets.of(labels, logits)})


def test_a_trained_model_raises_no_doubt():
    assert doubts(1.0) == []
    assert doubts(1.0, best=3, trained=3, most=9) == []  # ended by the caller


def test_a_gain_is_measured_by_the_loss_of_a_rare_task():
    # a rate of 2e-4, the log-loss of which is 0.002
    rare = {"rows": 500_000, "mean": -8.8, "spread": 0.8}
    assert doubts(1.0, **rare) == []
    (rate,) = doubts(1.0, shift=1.0, **rare)
    assert rate.startswith("click: the probabilities are no better than the rate 0.0002")


def test_a_model_that_is_no_better_than_a_constant_is_named():
    (chance,) = doubts(0.0)
    assert chance.startswith("click: the model ranks these rows no better than chance (AUC ")
    (rate,) = doubts(1.0, shift=3.0)
    assert rate.startswith("click: the probabilities are no better than the rate 0.3")
    assert "train longer" in rate


def test_rows_of_equal_scores_are_named():
    (line,) = doubts(1.0, highest=-0.5)  # which 37 % of the scores exceed
    assert line.startswith("click: about 30 % of the rows share a score with many others: ")


@pytest.mark.parametrize(("epochs", "what"), [(1, "the one epoch"), (3, "the last of 3 epochs")])
def test_training_that_ended_while_it_improved_is_named(epochs, what):
    (line,) = doubts(1.0, best=epochs, trained=epochs, most=epochs)
    assert line.startswith(f"Validation is best after {what}, ")
    assert f"--training.max_epochs {2 * epochs}" in line


def test_the_standard_error_of_an_auc_is_that_of_draws():
    random = np.random.default_rng(0)
    found = []
    for _ in range(400):
        above = random.normal(0.8, size=60)
        below = random.normal(size=140)
        found.append((above[:, None] > below).mean())
    assert auc_error(np.mean(found), 60, 140) == pytest.approx(np.std(found), rel=0.15)
