"""What a run is made of, besides the model. Every field can be set in TOML and on the command line."""

import math
from dataclasses import dataclass
from typing import Literal


@dataclass
class DataConfig:
    """Where the rows come from."""

    folder: str = "data/flights"
    """A folder written by ``adaftr-fast prepare``."""


@dataclass
class OptimizerConfig:
    """Adam, for embedding tables and dense weights alike (Table 3), or another optimizer for the tables."""

    lr: float = 5e-4
    """Learning rate."""
    beta1: float = 0.9
    """Decay of the first moment."""
    beta2: float = 0.999
    """Decay of the second moment."""
    eps: float = 1e-8
    """Added to the root of the second moment."""
    tables: Literal["adam", "lazy_adam", "sgd", "adagrad", "rowwise_adagrad"] = "adam"
    """What moves the embedding tables: adam as on dense weights, or one that moves the rows of the batch alone."""
    tables_lr: float | None = None
    """Learning rate of the tables, under the same warm-up and schedule; null: lr."""
    warmup_steps: int = 0
    """Steps over which the learning rate rises in proportion from 0 to lr."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """How the learning rate goes on after the warm-up: as it is, or falling to lr * lr_end at step decay_steps."""
    decay_steps: int = 0
    """The step, counted from the first one of training, at which the learning rate stops falling."""
    lr_end: float = 0.0
    """Where the learning rate stops falling, as a fraction of lr."""
    clip_norm: float = 0.0
    """Gradients of dense weights and tables together are scaled down to this norm; 0 does not clip."""

    def __post_init__(self) -> None:
        for name in ("lr", "eps", "warmup_steps", "clip_norm"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"optimizer.{name}: expected a finite number >= 0, got {getattr(self, name)}")
        if self.tables_lr is not None and not 0 <= self.tables_lr < math.inf:
            raise ValueError(f"optimizer.tables_lr: expected a finite number >= 0, got {self.tables_lr}")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"optimizer.{name}: expected a decay in [0, 1), got {getattr(self, name)}")
        if not 0 <= self.lr_end <= 1:
            raise ValueError(f"optimizer.lr_end: expected a fraction in [0, 1], got {self.lr_end}")
        if self.schedule != "constant" and self.decay_steps <= self.warmup_steps:
            raise ValueError(
                f"optimizer.decay_steps: schedule {self.schedule!r} needs more than warmup_steps = "
                f"{self.warmup_steps}, got {self.decay_steps}"
            )


@dataclass
class TrainingConfig:
    """How long, in what steps, from which seed."""

    batch_size: int = 1024
    """Rows of a step; a short last batch is left out, since the contrast needs negatives."""
    accumulate: int = 1
    """Equal parts a batch is computed in, one after another, to save memory; a part contrasts its own rows alone."""
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
    device: str = "cpu"
    """Where to train: cpu, cuda or cuda:N; under torchrun cuda is one GPU a rank."""
    contrast_over: Literal["all", "rank"] = "all"
    """Whose rows of a step are an anchor's negatives under torchrun: those of all ranks, or of its own rank."""
    tables: Literal["replicated", "torchrec"] = "replicated"
    """Under torchrun: every rank holds all embedding tables, or TorchRec shards them across ranks (docs/scaling.md)."""
    sharding: Literal["table_wise", "row_wise"] = "table_wise"
    """How TorchRec shards: each field's table to one rank, or a part of every table to each rank."""
    rank_timeout: float = 600.0
    """Seconds that a rank waits for the others under torchrun before the run ends, naming the one that is missing."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """bfloat16: the dense layers of training compute in it (autocast); weights, tables and Adam stay float32."""
    compile: bool = False
    """Compile the loss with torch.compile, which takes a minute at the start and needs a C++ compiler on a CPU."""
    checkpoint_seconds: float = 300.0
    """Seconds between two checkpoints of the unfinished run, which cost no bit of the result; epochs end in one too."""
    progress: bool = True
    """Show progress bars."""
    tensorboard: bool = False
    """Also log to OUT/tensorboard (pip install adaftr-fast[tensorboard])."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "accumulate", "eval_batch_size", "shuffle_rows", "max_epochs", "patience"):
            if getattr(self, name) < 1:
                raise ValueError(f"training.{name}: expected >= 1, got {getattr(self, name)}")
        if not 0 < self.rank_timeout < math.inf:
            raise ValueError(f"training.rank_timeout: expected a number of seconds > 0, got {self.rank_timeout}")
        for name in ("seed", "checkpoint_seconds"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"training.{name}: expected >= 0, got {getattr(self, name)}")
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"training.accumulate: expected a divisor of batch_size = {self.batch_size}, got {self.accumulate}"
            )
