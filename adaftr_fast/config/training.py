"""The training section of a run."""

from dataclasses import dataclass
from typing import Literal

from adaftr_fast.config.options import AT_LEAST_1, Range, Section, option

SECONDS = Range(0, noun="number of seconds", infinite=True)


@dataclass
class TrainingConfig(Section):
    """How long a run trains, in what steps, from which seed, and where."""

    section = "training"

    batch_size: int = option(1024, within=AT_LEAST_1)
    """Rows of a step; a short last batch is left out, since the contrast needs negatives."""
    accumulate: int = option(1, within=AT_LEAST_1)
    """Equal parts a batch is computed in, one after another, to save memory; a part contrasts its own rows alone."""
    eval_batch_size: int = option(8192, within=AT_LEAST_1)
    """Rows of a forward pass outside training."""
    shuffle_rows: int = option(1 << 20, within=AT_LEAST_1)
    """Rows that are permuted together (about 230 bytes each at 23 fields); more rows are drawn by row groups first."""
    max_epochs: int = option(50, within=AT_LEAST_1, free_on_resume=True)
    """Passes over the training split at most."""
    patience: int = option(3, within=AT_LEAST_1, free_on_resume=True)
    """Epochs without a better mean validation AUC after which training stops."""
    seed: int = option(0, within=Range(0, 2**63 - 1, noun="seed"))
    """Seed of initial weights and row order; the same seed gives the same bits on the same machine."""
    device: str = option("cpu")
    """Where to train: cpu, cuda or cuda:N; under torchrun cuda is one GPU a rank."""
    contrast_over: Literal["all", "rank"] = option("all", identifies=False)
    """Whose rows of a step are an anchor's negatives under torchrun: those of all ranks, or of its own rank."""
    tables: Literal["replicated", "torchrec"] = option("replicated", free_on_resume=True)
    """Under torchrun: every rank holds all embedding tables, or TorchRec shards them across ranks (docs/scaling.md)."""
    sharding: Literal["table_wise", "row_wise"] = option("table_wise", free_on_resume=True)
    """How TorchRec shards: each field's table to one rank, or a part of every table to each rank."""
    rank_timeout: float = option(
        600.0, within=Range(0, above=True, noun="number of seconds"), identifies=False, free_on_resume=True
    )
    """Seconds that a rank waits for the others under torchrun before the run ends, naming the one that is missing."""
    precision: Literal["float32", "bfloat16"] = option("float32")
    """bfloat16: the dense layers of training compute in it (autocast); weights, tables and Adam stay float32."""
    compile: bool = option(False)
    """Compile the loss with torch.compile, which takes a minute at the start and needs a C++ compiler on a CPU."""
    checkpoint_seconds: float = option(300.0, within=SECONDS, identifies=False, free_on_resume=True)
    """Seconds between two checkpoints of the unfinished run, which cost no bit of the result; epochs end in one too."""
    progress: bool = option(True, identifies=False, free_on_resume=True)
    """Show progress bars."""
    tensorboard: bool = option(False, identifies=False, free_on_resume=True)
    """Also log to OUT/tensorboard (pip install adaftr-fast[tensorboard])."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batch_size % self.accumulate:
            raise self.error("accumulate", f"a divisor of batch_size = {self.batch_size}", self.accumulate)
