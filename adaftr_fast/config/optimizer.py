"""The optimizer section of a run."""

from dataclasses import dataclass
from typing import Literal

from adaftr_fast.config.options import AT_LEAST_0, DECAY, Range, Section, option


@dataclass
class OptimizerConfig(Section):
    """The optimizer options. Adam for all weights (Section 3.1.4), or another optimizer for the embedding tables."""

    section = "optimizer"

    lr: float = option(5e-4, within=AT_LEAST_0)
    """Learning rate, gamma of Algorithm 1 (Section 3.1.4)."""
    beta1: float = option(0.9, within=DECAY)
    """Decay of the first moment."""
    beta2: float = option(0.999, within=DECAY)
    """Decay of the second moment."""
    eps: float = option(1e-8, within=AT_LEAST_0)
    """Constant added to the square root of the second moment."""
    tables: Literal["adam", "lazy_adam", "sgd", "adagrad", "rowwise_adagrad"] = option("adam")
    """Optimizer of the embedding tables; all but adam update only the rows of the batch."""
    tables_lr: float | None = option(None, within=AT_LEAST_0)
    """Learning rate of the tables, with the same warm-up and schedule (null: lr)."""
    warmup_steps: int = option(0, within=AT_LEAST_0)
    """Number of steps over which the learning rate increases linearly from 0 to lr."""
    schedule: Literal["constant", "linear", "cosine"] = option("constant")
    """Learning rate after the warm-up: constant, or decaying to lr * lr_end at step decay_steps."""
    decay_steps: int = option(0)
    """Step of training at which the decay ends."""
    lr_end: float = option(0.0, within=Range(0, 1, noun="fraction"))
    """Learning rate at the end of the decay, as a fraction of lr."""
    clip_norm: float = option(0.0, within=AT_LEAST_0)
    """Maximum norm of the gradients of dense weights and tables together (0: no clipping)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.schedule != "constant" and self.decay_steps <= self.warmup_steps:
            needed = f"more than warmup_steps = {self.warmup_steps} for schedule {self.schedule!r}"
            raise self.error("decay_steps", needed, self.decay_steps)
