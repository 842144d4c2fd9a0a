"""Models that are no better than a constant, badly calibrated, stopped early or too good to be
true are said to be so.
"""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from adaftr_fast.config import TrainingConfig
from adaftr_fast.config.run import OptimizerConfig
from adaftr_fast.data.dataset.batch import Batch
from adaftr_fast.data.dataset.loader import Split
from adaftr_fast.explain.buckets import ScoreBuckets
from adaftr_fast.explain.doubts import (
    FEWEST_STEPS,
    auc_error,
    data_doubts,
    find_doubts,
    leaks,
    ties,
    training_doubts,
)
from adaftr_fast.models import MultiTaskModel
from adaftr_fast.training.evaluation import Predictions, evaluate, measure
from adaftr_fast.training.trained import Run


def drawn(scale=1.0, shift=0.0, rows=3000, mean=-1.0, spread=1.5, highest=np.inf):
    """Labels, and logits that are ``scale`` times the true ones plus ``shift``, and at most
    ``highest``.
    """
    random = np.random.default_rng(0)
    true = random.normal(mean, spread, rows)
    labels = (random.random(rows) < 1 / (1 + np.exp(-true))).astype(np.uint8)
    noise = random.normal(size=rows) * (scale == 0)
    return labels, (scale * true + noise + shift).clip(max=highest).astype(np.float32)


def doubts(*scale, **options):
    labels, logits = drawn(*scale, **options)
    return find_doubts(measure(["click"], Predictions(logits[:, None], labels[:, None])))


def of_training(best, trained, most, rows=100 * FEWEST_STEPS, **optimizer):
    """The doubts of a run of so many epochs, of one step for 100 rows."""
    run = Run("run", [{"epoch": epoch + 1} for epoch in range(trained)], best)
    training = TrainingConfig(batch_size=100, max_epochs=most)
    return training_doubts(run, rows, training, OptimizerConfig(**optimizer))


def test_a_trained_model_raises_no_doubt():
    assert doubts() == []
    assert of_training(best=2, trained=3, most=3) == []
    assert of_training(best=3, trained=3, most=9) == []  # ended by the caller
    assert of_training(best=0, trained=0, most=9) == []


def test_rows_of_one_class_tell_nothing():
    logits = np.zeros((50, 1), np.float32)
    for label in (0, 1):
        labels = np.full((50, 1), label, np.uint8)
        assert find_doubts(measure(["click"], Predictions(logits, labels))) == []


def test_a_gain_is_measured_by_the_loss_of_a_rare_task():
    # a rate of 2e-4, the log-loss of which is 0.002
    rare = {"rows": 500_000, "mean": -8.8, "spread": 0.8}
    assert doubts(**rare) == []
    (rate,) = doubts(shift=1.0, **rare)
    assert rate.startswith("click: the probabilities are no better than the rate of all rows")


def test_a_model_that_is_no_better_than_a_constant_is_named():
    (chance,) = doubts(0.0)
    assert chance.startswith("click: the model ranks these rows no better than chance (AUC ")
    assert "train longer" in chance
    (rate,) = doubts(shift=3.0)
    start = "click: the probabilities are no better than the rate of all rows (log-loss "
    assert rate.startswith(start)
    assert ", of the rate 0.6" in rate
    assert "train longer" in rate


def test_a_ratio_of_predicted_to_observed_positives_is_named_either_way():
    for shift in (0.75, -0.75):
        labels, logits = drawn(shift=shift)
        ratio = (1 / (1 + np.exp(-logits))).sum() / labels.sum()
        assert abs(ratio - 1) > 0.25
        (line,) = doubts(shift=shift)
        start = f"click: {ratio:.2f} times as many positives are predicted as there are: bids"
        assert line.startswith(start)
    # within two standard errors of the count of few positives
    few = {"rows": 600, "mean": -4.5, "spread": 1.5}
    assert not any("are predicted as there are" in line for line in doubts(shift=0.2, **few))


def test_rows_of_equal_scores_are_named():
    assert ties({"click": ScoreBuckets.of(*drawn())}) == []
    # 37 % of the scores exceed
    (line,) = ties({"click": ScoreBuckets.of(*drawn(highest=-0.5))})
    assert line.startswith("click: about 30 % of the rows share a score with many others: ")


def test_training_of_too_few_steps_is_named():
    few = {"best": 1, "trained": 2, "most": 2}
    (line,) = of_training(**few, rows=50 * FEWEST_STEPS - 100)
    assert line.startswith(f"The model was trained for {FEWEST_STEPS - 2} steps, in which it can ")
    assert of_training(**few, rows=50 * FEWEST_STEPS) == []


@pytest.mark.parametrize(("epochs", "what"), [(1, "the one epoch"), (3, "the last of 3 epochs")])
def test_training_that_ended_while_it_improved_is_named(epochs, what):
    ended = {"best": epochs, "trained": epochs, "most": epochs}
    (line,) = of_training(**ended)
    assert line.startswith(f"Validation is best after {what}, ")
    assert f"--training.max_epochs {2 * epochs}" in line
    steps = epochs * FEWEST_STEPS
    assert of_training(**ended, schedule="cosine", decay_steps=10 * steps) == [line]
    assert of_training(**ended, schedule="cosine", decay_steps=steps) == []  # nothing is left


def test_fields_that_are_unknown_in_every_validation_row_are_named():
    unknown = {"item": 99, "user": 100, "price": 0, "day": 100}
    validation = SimpleNamespace(rows=100, unknown=unknown)
    (line,) = data_doubts(SimpleNamespace(splits={"validation": validation}))
    assert line.startswith("user, day: unknown or missing in every validation row, ")
    del unknown["user"], unknown["day"]
    assert data_doubts(SimpleNamespace(splits={"validation": validation})) == []


class Sums(MultiTaskModel):
    """The logit of click is the sum of all features, that of buy the second id alone."""

    def __init__(self):
        super().__init__(["click", "buy"])
        self.weight = torch.nn.Parameter(torch.ones(()))

    def forward(self, ids, offsets=None, dense=None):
        click = ids.sum(1) + dense[:, 0]
        return self.weight * torch.stack([click, ids[:, 1].float()], 1)

    def loss(self, batch):
        raise NotImplementedError


def test_a_column_that_gives_a_task_away_is_named():
    """Although two fields read it: each can stand in for the other."""
    random = np.random.default_rng(0)
    end = random.integers(0, 2, 2000)
    ids = np.stack([9 * end, random.integers(0, 2, 2000)], 1).astype(np.int32)
    labels = np.stack([end, random.integers(0, 2, 2000)], 1).astype(np.float32)
    dense = torch.from_numpy((9.0 * end[:, None]).astype(np.float32))
    rows = Split.of(Batch(torch.from_numpy(ids), torch.from_numpy(labels), dense=dense))
    columns = {"end": ("end_at",), "item": ("item",), "end_number": ("end_at",)}
    fields = [SimpleNamespace(name=name, columns=each) for name, each in columns.items()]
    parsed = SimpleNamespace(features=fields, inputs=list)  # whose columns are those of the log
    manifest = SimpleNamespace(features=list(columns), parsed=parsed)
    model = Sums()
    metrics = evaluate(model, rows, 500)
    (line,) = leaks(model, rows, manifest, metrics, 500)
    assert line.startswith("click: an AUC of 100.00 % hangs on end_at alone, without which ")
    metrics["click"]["auc"] = 0.98
    assert leaks(model, rows, manifest, metrics, 500) == []


def test_the_standard_error_of_an_auc_is_that_of_draws():
    random = np.random.default_rng(0)
    found = []
    for _ in range(400):
        above = random.normal(0.8, size=60)
        below = random.normal(size=140)
        found.append((above[:, None] > below).mean())
    assert auc_error(np.mean(found), 60, 140) == pytest.approx(np.std(found), rel=0.15)
