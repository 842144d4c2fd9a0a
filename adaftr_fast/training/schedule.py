"""The learning rate of each step."""

from __future__ import annotations

import math

from adaftr_fast.training.config import OptimizerConfig


def learning_rate(config: OptimizerConfig, step: int) -> float:
    """Of step ``step``, counted from 1 over all epochs: it depends on nothing else, so a resumed run finds it again."""
    if step < config.warmup_steps:
        return config.lr * step / config.warmup_steps
    if config.schedule == "constant":
        return config.lr
    done = min(1.0, (step - config.warmup_steps) / (config.decay_steps - config.warmup_steps))
    left = 1 - done if config.schedule == "linear" else (1 + math.cos(math.pi * done)) / 2
    return config.lr * (config.lr_end + (1 - config.lr_end) * left)
