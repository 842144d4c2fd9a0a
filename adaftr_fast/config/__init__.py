"""The typed configuration of a run. Command line, TOML files and checkpoints derive from it."""

from adaftr_fast.config.model import ModelConfig
from adaftr_fast.config.run import (
    DataConfig,
    OptimizerConfig,
    RunConfig,
    TrainingConfig,
    WarmStartConfig,
)

__all__ = [
    "DataConfig",
    "ModelConfig",
    "OptimizerConfig",
    "RunConfig",
    "TrainingConfig",
    "WarmStartConfig",
]
