"""The best weights of a run, kept in a checkpoint or, without a run folder, in memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor, nn

from adaftr_fast.distributed.ranks import Ranks
from adaftr_fast.training.checkpoint.files import read_local_rows
from adaftr_fast.training.checkpoint.state import sharded_weights
from adaftr_fast.training.checkpoint.weights import Description, open_checkpoint, open_on_all_ranks, save_checkpoint


class BestWeights:
    """Saves and restores a model's best weights. All ranks must call its methods.

    Args:
        model: the model.
        folder: the folder of the checkpoint on rank 0, or with sharded tables on all ranks. None keeps the weights in
            memory.
        about: the description of the run; required with ``folder``.
        ranks: the ranks that train together.
    """

    def __init__(self, model: nn.Module, folder: Path | None, about: Description | None, ranks: Ranks | None) -> None:
        self.model = model
        self.folder = folder
        self.about = about
        self.ranks = ranks
        self._in_memory: dict[str, Tensor] | None = None

    def save(self, metrics: dict[str, dict[str, float]]) -> None:
        """Saves the model's weights with their validation metrics."""
        if self.folder is not None:
            assert self.about is not None  # required with a folder
            about = replace(self.about, metrics=metrics)
            save_checkpoint(self.folder, self.model, about, sharded_weights(self.model), self.ranks)
        elif self.ranks is None or self.ranks.is_rank_zero:
            self._in_memory = {name: value.clone() for name, value in self.model.state_dict().items()}

    def restore(self) -> None:
        """Loads the saved weights into the model."""
        weights: Mapping[str, Tensor] | None
        sharded = sharded_weights(self.model)
        if sharded:
            assert self.folder is not None  # the trainer requires one
            assert self.ranks is not None
            saved = open_on_all_ranks(self.folder, self.ranks)
            read_local_rows(saved, sharded)
            weights = {name: saved[name] for name in saved if name not in sharded}
        else:
            weights = self._in_memory if self.folder is None else dict(open_checkpoint(self.folder)[0])
            if self.ranks is not None:
                weights = self.ranks.tensors_from_rank_zero(weights)
        assert weights is not None  # saved before
        self.model.load_state_dict(weights)
