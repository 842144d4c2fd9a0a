import pytest

from adaftr_fast.config import OptimizerConfig
from adaftr_fast.training.optimizers import learning_rate


def rates(steps, **settings):
    config = OptimizerConfig(lr=2.0, **settings)
    return [learning_rate(config, step, config.lr) for step in steps]


def test_warm_up_is_linear():
    assert rates([1, 2, 1_000_000]) == [2.0, 2.0, 2.0]  # the default
    assert rates([1, 2, 3, 4, 5, 99], warmup_steps=4) == [0.5, 1.0, 1.5, 2.0, 2.0, 2.0]


def test_decay_ends_at_lr_end():
    settings = {"warmup_steps": 2, "decay_steps": 10, "lr_end": 0.1}
    assert rates([1, 2, 6, 10, 50], schedule="linear", **settings) == pytest.approx(
        [1.0, 2.0, 1.1, 0.2, 0.2]
    )
    assert rates([1, 2, 6, 10, 50], schedule="cosine", **settings) == pytest.approx(
        [1.0, 2.0, 1.1, 0.2, 0.2]
    )
    assert rates([4], schedule="cosine", **settings) == pytest.approx(
        [0.2 + 1.8 * (1 + 0.5**0.5) / 2]
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"schedule": "linear"},
            "optimizer.decay_steps: expected more than warmup_steps = 0 for schedule",
        ),
        (
            {"schedule": "cosine", "warmup_steps": 9, "decay_steps": 9},
            "more than warmup_steps = 9 for schedule .*, got 9",
        ),
        ({"lr": -1.0}, "optimizer.lr: expected a finite number >= 0, got -1.0"),
        ({"lr_end": 2.0}, r"optimizer.lr_end: expected a fraction in \[0, 1\], got 2.0"),
        ({"beta1": 1.0}, r"optimizer.beta1: expected a decay in \[0, 1\), got 1.0"),
    ],
)
def test_invalid_options_raise(settings, message):
    with pytest.raises(ValueError, match=message):
        OptimizerConfig(**settings)
