"""Learning rate schedule: linear warm-up, then constant, linear or cosine decay."""

from __future__ import annotations

import math

from adaftr_fast.config import OptimizerConfig


def learning_rate(config: OptimizerConfig, step: int, peak: float) -> float:
    """Computes the learning rate of a step. It has no state, so a resumed run needs none.

    Args:
        config: the schedule.
        step: the step, counted from 1 over all epochs.
        peak: the learning rate after warm-up, ``config.lr`` or ``config.tables_lr``.
    """
    if step < config.warmup_steps:
        return peak * step / config.warmup_steps
    if config.schedule == "constant":
        return peak
    done = min(1.0, (step - config.warmup_steps) / (config.decay_steps - config.warmup_steps))
    left = 1 - done if config.schedule == "linear" else (1 + math.cos(math.pi * done)) / 2
    return peak * (config.lr_end + (1 - config.lr_end) * left)
