"""Several validations in an epoch (``training.validate_every``)."""

import pytest

from adaftr_fast.training.checkpoint.weights import load_checkpoint
from adaftr_fast.training.evaluation import mean_auc

from .conftest import trainer


def test_validating_several_times_an_epoch_changes_no_step(splits, model, tmp_path):
    start = {name: value.clone() for name, value in model.state_dict().items()}
    results = []
    for every in (1.0, 0.25):
        model.load_state_dict(start)
        results.append(
            trainer(model, splits, tmp_path / str(every), max_epochs=2, validate_every=every).fit()
        )
    once, often = results
    steps = len(splits[0]) // 100
    assert [record["epoch"] for record in once.epochs] == [1, 2]
    assert [record["epoch"] for record in often.epochs] == [
        0.25,
        0.5,
        0.75,
        1.0,
        1.25,
        1.5,
        1.75,
        2.0,
    ]
    # rounding differs where exact Adam catches up rows
    for each, expected in zip(often.epochs[3::4], once.epochs):
        assert each["validation"]["click"] == pytest.approx(
            expected["validation"]["click"], rel=1e-6
        )
    ends = [steps * part // 4 for part in range(5)]
    means = [record["train"]["click"] for record in often.epochs[:4]]
    weighted = sum(mean * (end - start) for mean, start, end in zip(means, ends, ends[1:])) / steps
    assert weighted == pytest.approx(once.epochs[0]["train"]["click"], rel=1e-6)
    best = max(often.epochs, key=lambda record: mean_auc(record["validation"]))
    assert often.best_epoch == best["epoch"]
    assert load_checkpoint(tmp_path / "0.25/best")[1].metrics == best["validation"]


@pytest.mark.parametrize(("number", "best", "patience"), [(1, 2, 2), (2, 2, 1), (7, 5, 1)])
def test_patience_counts_epochs_whatever_the_number_of_validations(
    model, splits, monkeypatch, number, best, patience
):
    """A later validation that is as good as the best does not count."""
    aucs = iter([0.6] * (best - 1) + [0.7, 0.7] + [0.6] * 40)

    def validation(*arguments):
        return {
            task: {"auc": next(aucs) if task == "click" else 0.5}
            for task in ("click", "conversion")
        }

    monkeypatch.setattr("adaftr_fast.training.trainer.evaluate", validation)
    result = trainer(
        model, splits, patience=patience, validate_every=1 / number, max_epochs=9
    ).fit()
    assert [record["epoch"] for record in result.epochs] == [
        each / number for each in range(1, best + patience * number + 1)
    ]
    assert result.best_epoch == best / number
