"""What a run is made of, besides the model. Every field can be set in TOML and on the command line."""

from dataclasses import dataclass


@dataclass
class DataConfig:
    """Where the rows come from."""

    folder: str = "data/flights"
    """A folder written by ``adaftr-fast prepare``."""


@dataclass
class OptimizerConfig:
    """Adam, for embedding tables and dense weights alike (Table 3)."""

    lr: float = 5e-4
    """Learning rate."""
    beta1: float = 0.9
    """Decay of the first moment."""
    beta2: float = 0.999
    """Decay of the second moment."""
    eps: float = 1e-8
    """Added to the root of the second moment."""


@dataclass
class TrainingConfig:
    """How long, in what steps, from which seed."""

    batch_size: int = 1024
    """Rows of a step; a short last batch is left out, since the contrast needs negatives."""
    eval_batch_size: int = 8192
    """Rows of a forward pass outside training."""
    shuffle_rows: int = 1 << 20
    """Rows that are permuted together (about 230 bytes each at 23 fields); more rows are drawn by row groups first."""
    max_epochs: int = 50
    """Passes over the training split at most."""
    patience: int = 3
    """Epochs without a better mean validation AUC after which training stops."""
    seed: int = 0
    """Seed of initial weights and row order; the same seed gives the same bits on the same machine."""
    checkpoint_seconds: float = 300.0
    """Seconds between two checkpoints of the unfinished run, which cost no bit of the result; epochs end in one too."""
    progress: bool = True
    """Show progress bars."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "eval_batch_size", "shuffle_rows", "max_epochs", "patience"):
            if getattr(self, name) < 1:
                raise ValueError(f"training.{name}: expected >= 1, got {getattr(self, name)}")
        for name in ("seed", "checkpoint_seconds"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"training.{name}: expected >= 0, got {getattr(self, name)}")
