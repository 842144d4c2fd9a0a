"""Builds the balance of a configuration."""

from __future__ import annotations

from adaftr_fast.config import TrainingConfig
from adaftr_fast.errors import TrainingError
from adaftr_fast.models.base import MultiTaskModel
from adaftr_fast.training.balance.base import Balance, tensor_dtype
from adaftr_fast.training.balance.gradnorm import GradNorm
from adaftr_fast.training.balance.pcgrad import PCGrad
from adaftr_fast.training.balance.uncertainty import UncertaintyWeights

NAME = "balance"  # of the child of the model


def build_balance(config: TrainingConfig, model: MultiTaskModel) -> Balance | None:
    """Returns the balance ``config.balance`` of the tasks of ``model``; None for "none".

    Raises:
        TrainingError: the model has an attribute of the name that the balance takes.
    """
    if config.balance != "none" and not isinstance(getattr(model, NAME, None), Balance | None):
        raise TrainingError(
            f"training.balance: {type(model).__name__} has an attribute {NAME!r} of its own; give it another name"
        )
    match config.balance:
        case "uncertainty":
            return UncertaintyWeights(model.task_names, tensor_dtype(model))
        case "pcgrad":
            return PCGrad(model.task_names, config.seed)
        case "gradnorm":
            return GradNorm(model.task_names, config.gradnorm_alpha, tensor_dtype(model))
    return None
