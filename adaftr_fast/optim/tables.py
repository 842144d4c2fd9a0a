"""The embedding tables of a model in a training step and in a checkpoint.

Shapes: B rows of this rank's batch, F fields, N ids of all bags.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import torch
from torch import Tensor, nn

from adaftr_fast.distributed.ranks import Ranks
from adaftr_fast.distributed.rows import ShardedRows
from adaftr_fast.nn.embedding import FusedEmbedding
from adaftr_fast.optim.clip import clip_grad_norm_


class Tables:
    """The tables of a model in a training step: those that every rank holds whole.

    Their rows are parameters, which optimizers update after the step, so most methods do nothing.
    All ranks must call them in the same order.
    """

    @property
    def optimizers(self) -> Sequence[torch.optim.Optimizer]:
        """The optimizers that belong to the tables."""
        return ()

    def begin(self, ids: Tensor, offsets: Tensor | None) -> AbstractContextManager[object]:
        """Prepares the look-ups of a step, which end with the block.

        Args:
            ids: the ids of the batch, [B, F], or [N] with ``offsets``.
            offsets: [B * F + 1], or None.
        """
        return nullcontext()

    def read_part(self, rows: slice) -> None:
        """Names the rows of the batch that the model reads from now on; at first it reads all."""

    def clip(self, parameters: Sequence[Tensor], max_norm: float) -> None:
        """Scales the gradients of ``parameters`` and of the tables so that their joint norm is at
        most ``max_norm``.
        """
        clip_grad_norm_(parameters, max_norm)

    def update(self) -> None:
        """Updates the rows by the gradient of the step, unless they are parameters."""


class ShardedTables(nn.Module, Tables):
    """The tables of a model of which each rank holds some rows: a module in place of a
    ``FusedEmbedding``, without parameters.

    Attributes:
        num_embeddings, widths, field_names: those of the ``FusedEmbedding``.
        optimizer: updates the rows in ``update``.
    """

    num_embeddings: list[int]
    widths: list[int]
    field_names: list[str]
    optimizer: torch.optim.Optimizer

    @property
    def optimizers(self) -> list[torch.optim.Optimizer]:
        return [self.optimizer]

    @property
    def out_features(self) -> int:
        """Width of the output."""
        return sum(self.widths)

    @property
    def weight(self) -> ShardedRows:
        """The rows of all tables, one field after another."""
        raise NotImplementedError

    def field_weights(self) -> dict[str, ShardedRows]:
        """Returns the rows of each field by its name."""
        raise NotImplementedError

    def state(self) -> dict[str, ShardedRows]:
        """Returns the state by ``<name>.<field name>``, as adaftr_fast.optim."""
        raise NotImplementedError


class Sharder(Protocol):
    """Makes sharded tables. ``extras.torchrec.tables.TorchRecTables`` is one.

    Attributes:
        kinds: the names of the optimizers that the tables may have.
    """

    @property
    def kinds(self) -> Sequence[str]: ...

    def check_installed(self) -> None:
        """Raises RankError, with the cause and the remedy, if a package cannot be imported."""

    def __call__(
        self,
        table: FusedEmbedding,
        *,
        sharding: str,
        optimizer: str,
        ranks: Ranks,
        lr: float,
        eps: float,
        device: str,
        fills: bool,
    ) -> ShardedTables:
        """Shards ``table``.

        Args:
            table: the table that defines fields, names and pooling. Rank 0's weights initialise all
                ranks. It may be constructed within ``tables_elsewhere``.
            sharding: how the rows are divided, one of ``TrainingConfig.sharding``.
            optimizer: one of ``kinds``.
            ranks: the ranks, of the default process group.
            lr: learning rate; it can be changed in ``optimizer.param_groups``.
            eps: ε of the optimizer.
            device: the device of the rows.
            fills: False leaves the rows uninitialized, for a caller that writes all of them.

        Raises:
            RankError: a package cannot be imported, or the tables do not fit into the ranks'
                memory.
            ValueError: the table's dtype or width is not supported, or an option is unknown.
        """


def sharded_tables(model: nn.Module) -> dict[str, ShardedTables]:
    """Returns the sharded tables of a model by name: one or none."""
    return {
        name: module for name, module in model.named_modules() if isinstance(module, ShardedTables)
    }


def tables_of(model: nn.Module) -> Tables:
    """Returns the sharded tables of a model, or else ``Tables``."""
    return next(iter(sharded_tables(model).values()), Tables())
