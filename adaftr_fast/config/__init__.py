"""The typed configuration of a run. Command line, TOML files and checkpoints derive from it."""

from adaftr_fast.config.data import DataConfig
from adaftr_fast.config.model import ModelConfig
from adaftr_fast.config.optimizer import OptimizerConfig
from adaftr_fast.config.run import RunConfig, WarmStartConfig
from adaftr_fast.config.training import TrainingConfig

__all__ = ["DataConfig", "ModelConfig", "OptimizerConfig", "RunConfig", "TrainingConfig", "WarmStartConfig"]
