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
