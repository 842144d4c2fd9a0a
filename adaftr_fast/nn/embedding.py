"""All embedding tables of a model as one module (the e_r of the paper's §2.1)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Protocol

import torch
from torch import Tensor, nn

from adaftr_fast.ops.embedding import coalesce_gradient, empty_table, fused_embedding
from adaftr_fast.ops.embedding_optim import deferred_embedding


class Deferred(Protocol):
    """What an optimizer that lets rows fall behind leaves with the table (adaftr_fast.optim.Adam)."""

    stale: bool
    tensors: list[Tensor]

    def flush(self, weight: Tensor) -> None: ...


class FusedEmbedding(nn.Module):
    """Looks up one id of each of F fields and lays the rows side by side.

    B batch, F fields, E width, R rows of all fields together.

    All fields live in one parameter ``weight`` [R, E], one after another, drawn from N(0, .01²).
    ``weight.grad`` is a coalesced sparse tensor that holds the rows of the batch, so torch.optim.SGD, Adagrad
    and SparseAdam work unchanged.

    Args:
        num_embeddings: rows of each field, F numbers >= 1.
        embedding_dim: E >= 1, the width of every field.
        dtype: of the weights, float32 (default) or float64.

    Raises:
        ValueError: no field, a field without rows, or a width below 1.
    """

    offsets: Tensor
    deferred: Deferred | None

    def __init__(
        self,
        num_embeddings: Sequence[int],
        embedding_dim: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.deferred = None
        self.num_embeddings = [int(rows) for rows in num_embeddings]
        self.embedding_dim = int(embedding_dim)
        if not self.num_embeddings or min(self.num_embeddings) < 1:
            raise ValueError(
                f"FusedEmbedding: num_embeddings must be one number >= 1 a field, got {self.num_embeddings}"
            )
        if self.embedding_dim < 1:
            raise ValueError(f"FusedEmbedding: embedding_dim must be >= 1, got {embedding_dim}")
        firsts = [0, *accumulate(self.num_embeddings)]
        self.register_buffer("offsets", torch.tensor(firsts, device=device), persistent=False)  # [F + 1]
        self.weight = nn.Parameter(empty_table(firsts[-1], self.embedding_dim, device=device, dtype=dtype))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the weights from N(0, .01²)."""
        self.weight.normal_(0.0, 0.01)

    @property
    def out_features(self) -> int:
        """F * E, the width of the output."""
        return len(self.num_embeddings) * self.embedding_dim

    def forward(self, ids: Tensor) -> Tensor:
        """Look up ids [B, F] (int32 or int64, column f counting from 0 within field f) -> [B, F * E].

        Raises:
            IndexError: an id is out of its field's range; the message names position, id and range.
            TypeError: ids are neither int32 nor int64.
            ValueError: ids are not [B, F].
        """
        if self.deferred is not None and self.deferred.stale:
            return deferred_embedding(self.weight, ids, self.offsets, self.deferred.tensors)
        return fused_embedding(self.weight, ids, self.offsets)

    def flush(self) -> None:
        """Make every row of ``weight`` current, where an optimizer defers steps; see adaftr_fast.optim.Adam."""
        if self.deferred is not None:
            self.deferred.flush(self.weight)

    def train(self, mode: bool = True) -> FusedEmbedding:
        """As nn.Module.train; leaving training makes all rows current."""
        if not mode:
            self.flush()
        return super().train(mode)

    def _apply(self, fn, recurse=True):
        self.flush()
        return super()._apply(fn, recurse)

    def _save_to_state_dict(self, destination, prefix, keep_vars) -> None:
        self.flush()
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(self, *args) -> None:
        self.flush()  # or the rows behind would be moved on from their new values
        super()._load_from_state_dict(*args)

    def __getstate__(self) -> dict:
        self.flush()
        return {**self.__dict__, "deferred": None}  # a copy has no optimizer

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        super().register_parameter(name, param)
        if name == "weight" and param is not None:
            param.register_post_accumulate_grad_hook(coalesce_gradient)

    def __setstate__(self, state: dict) -> None:
        super().__setstate__(state)
        self.weight.register_post_accumulate_grad_hook(coalesce_gradient)  # a copied parameter has no hooks

    def extra_repr(self) -> str:
        rows = self.num_embeddings
        shown = rows if len(rows) <= 8 else f"[{', '.join(map(str, rows[:3]))}, ..., {rows[-1]}]"
        return f"{len(rows)} fields, num_embeddings={shown}, embedding_dim={self.embedding_dim}"
