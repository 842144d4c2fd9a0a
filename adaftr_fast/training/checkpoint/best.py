"""The best weights of a run, kept in a checkpoint or, without a run folder, in memory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from torch import Tensor, nn

from adaftr_fast.distributed.ranks import Ranks
from adaftr_fast.training.checkpoint.exchange import distribute, send_shards
from adaftr_fast.training.checkpoint.state import sharded_weights
from adaftr_fast.training.checkpoint.weights import Description, open_checkpoint, save_checkpoint


class BestWeights:
    """Saves and restores a model's best weights. All ranks must call its methods.

    Args:
        model: the model.
        folder: the folder of the checkpoint on rank 0. None keeps the weights in memory.
        about: the description of the run; required with ``folder``.
        ranks: the ranks that train together.
    """

    def __init__(self, model: nn.Module, folder: Path | None, about: Description | None, ranks: Ranks | None) -> None:
        self.model, self.folder, self.about, self.ranks = model, folder, about, ranks
        self._in_memory: dict[str, Tensor] | None = None

    def save(self, metrics: dict[str, dict[str, float]]) -> None:
        """Saves the model's weights with their validation metrics."""
        sharded = sharded_weights(self.model)
        if self.ranks is not None and self.ranks.rank > 0:
            send_shards(sharded)
        elif self.folder is None:
            self._in_memory = {name: value.clone() for name, value in self.model.state_dict().items()}
        else:
            assert self.about is not None  # required with a folder
            save_checkpoint(self.folder, self.model, replace(self.about, metrics=metrics), sharded)

    def restore(self) -> None:
        """Loads the saved weights into the model."""
        weights = self._in_memory if self.folder is None else open_checkpoint(self.folder)[0]
        if self.ranks is not None:
            weights = distribute(self.ranks, weights, sharded_weights(self.model))
        assert weights is not None  # saved before
        self.model.load_state_dict(weights)
