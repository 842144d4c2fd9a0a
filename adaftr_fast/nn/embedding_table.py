"""Embedding fields of one width as one table."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import accumulate, pairwise
from typing import Any, Literal, Protocol, Self, TypedDict

import torch
from torch import Tensor, nn

from adaftr_fast.ops.embedding.bags import embedding_bags
from adaftr_fast.ops.embedding.lookup import coalesce_gradient, empty_table, fused_embedding
from adaftr_fast.ops.embedding.optim import deferred_embedding
from adaftr_fast.ops.embedding.reference.bags import check_bags
from adaftr_fast.ops.embedding.reference.lookup import check_columns


class Deferred(Protocol):
    """What an optimizer that lets rows fall behind leaves with the table (adaftr_fast.optim.Adam)."""

    stale: bool
    tensors: list[Tensor]

    def flush(self, weight: Tensor) -> None: ...


class GrowsWithTable(Protocol):
    """An optimizer whose state can follow a table that grows (adaftr_fast.optim)."""

    def grow(self, old: nn.Parameter, new: nn.Parameter, at: int, rows: int) -> None: ...


class Options(TypedDict, total=False):
    """What ``FusedEmbedding`` takes by name."""

    field_names: Sequence[str] | None
    pooling: Literal["mean", "sum"]
    on_bad_id: Literal["raise", "oov"]
    device: torch.device | str | None
    dtype: torch.dtype | None


def insert_rows(table: Tensor, at: int, rows: Tensor) -> Tensor:
    """A new table with ``rows`` put in before row ``at``."""
    grown = empty_table(len(table) + len(rows), *table.shape[1:], device=table.device, dtype=table.dtype)
    return torch.cat([table[:at], rows, table[at:]], out=grown)


def insert_no_gradient(grad: Tensor, at: int, rows: int) -> Tensor:
    """The gradient of a table, sparse or dense, after ``rows`` rows without one are put in before row ``at``."""
    if not grad.is_sparse:
        return insert_rows(grad, at, grad.new_zeros(rows, grad.shape[1]))
    index, size = grad._indices(), (grad.shape[0] + rows, grad.shape[1])
    moved = index + rows * (index >= at)
    coalesced = grad.is_coalesced()  # rows keep their order
    return torch.sparse_coo_tensor(moved, grad._values(), size, is_coalesced=coalesced, check_invariants=False)


def check_fields(num_embeddings: list[int], widths: list[int], field_names: list[str]) -> None:
    """Raise unless there are fields, all with rows and columns, and as many distinct names."""
    if not num_embeddings or min(num_embeddings) < 1:
        raise ValueError(f"FusedEmbedding: num_embeddings must be one number >= 1 a field, got {num_embeddings}")
    if min(widths) < 1:
        raise ValueError(f"FusedEmbedding: embedding_dim must be >= 1, got {widths if len(widths) > 1 else widths[0]}")
    if not len(set(field_names)) == len(num_embeddings) == len(field_names):
        raise ValueError(f"FusedEmbedding: field_names must be {len(num_embeddings)} distinct names, got {field_names}")


@contextmanager
def tables_elsewhere() -> Iterator[None]:
    """Within it new tables have no memory, since their rows shall lie elsewhere: a ``weight`` on the meta device.

    The random generator moves on as if they were drawn, and from ``initial_rng``, the state it had before,
    ``drawn_rows`` draws them. For float32 on the CPU.
    """
    global _elsewhere
    before, _elsewhere = _elsewhere, True
    try:
        yield
    finally:
        _elsewhere = before


_elsewhere = False
DRAWN = 1 << 20  # rows that are drawn at once


def drawn_rows(rows: int, width: int, generator: torch.Generator | None = None) -> Iterator[Tensor]:
    """The bits of ``reset_parameters``, some rows at a time.

    torch draws normal numbers in sixteens, and where a tensor has a rest, its last sixteen anew.
    """
    bounds = [*range(0, rows, DRAWN), rows]
    if len(bounds) > 2 and (rows - bounds[-2]) * width < 16:
        del bounds[-2]
    for start, stop in pairwise(bounds):
        yield torch.empty(stop - start, width).normal_(0.0, 0.01, generator=generator)


class EmbeddingTable(nn.Module):
    """F fields of one width in one parameter; see :class:`FusedEmbedding`, which this is for equal widths.

    B batch, F fields, E width, R rows of all fields together, N ids of all bags together.
    """

    offsets: Tensor
    oov_counts: Tensor
    deferred: Deferred | None
    optimizer: weakref.ref[GrowsWithTable] | None
    initial_rng: Tensor | None

    def __init__(
        self,
        num_embeddings: Sequence[int],
        embedding_dim: int,
        *,
        field_names: Sequence[str] | None = None,
        pooling: Literal["mean", "sum"] = "mean",
        on_bad_id: Literal["raise", "oov"] = "raise",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_embeddings = [int(rows) for rows in num_embeddings]
        self.embedding_dim = int(embedding_dim)
        self.field_names = list(field_names or map(str, range(len(self.num_embeddings))))
        check_fields(self.num_embeddings, [self.embedding_dim], self.field_names)
        if pooling not in ("mean", "sum"):
            raise ValueError(f"FusedEmbedding: pooling must be 'mean' or 'sum', got {pooling!r}")
        if on_bad_id not in ("raise", "oov"):
            raise ValueError(f"FusedEmbedding: on_bad_id must be 'raise' or 'oov', got {on_bad_id!r}")
        self.pooling, self.on_bad_id = pooling, on_bad_id
        self.deferred = self.optimizer = None
        firsts = [0, *accumulate(self.num_embeddings)]
        self.register_buffer("offsets", torch.tensor(firsts, device=device), persistent=False)  # [F + 1]
        counts = torch.zeros(len(self.num_embeddings), dtype=torch.int64, device=device)
        self.register_buffer("oov_counts", counts, persistent=False)  # [F]
        self.initial_rng = torch.get_rng_state() if _elsewhere else None
        device = "meta" if _elsewhere else device
        self.weight = nn.Parameter(empty_table(firsts[-1], self.embedding_dim, device=device, dtype=dtype))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the weights from N(0, .01²)."""
        if self.weight.is_meta:
            deque(drawn_rows(*self.weight.shape), maxlen=0)
        else:
            self.weight.normal_(0.0, 0.01)

    @property
    def out_features(self) -> int:
        """F * E, the width of the output."""
        return len(self.num_embeddings) * self.embedding_dim

    def forward(self, ids: Tensor, offsets: Tensor | None = None, weights: Tensor | None = None) -> Tensor:
        """Look up ``ids`` [B, F], one id a field, or bags of them -> [B, F * E].

        Args:
            ids: [B, F], int32 or int64, column f counting from 0 within field f; with ``offsets`` [N], the ids of
                all bags, row after row and within a row field after field.
            offsets: [B * F + 1], int64, rising from 0 to N: where each bag begins. An empty bag gives zeros.
            weights: [N] factors of the ids, for pooling="sum". They get no gradient.

        Raises:
            IndexError: an id is out of its field's range; the message names position, id and range.
            TypeError: ids are neither int32 nor int64.
            ValueError: shapes do not fit, or weights with pooling="mean".
        """
        if self.on_bad_id == "raise":
            return self._look_up(ids, offsets, weights)
        ids, bad = self._without_bad(ids, offsets)
        out = self._look_up(ids, offsets, weights)
        self.oov_counts += bad  # now that nothing can be refused any more
        return out

    def _without_bad(self, ids: Tensor, bags: Tensor | None) -> tuple[Tensor, Tensor]:
        """Ids with those out of range replaced by 0, and the number of these in each field, [F]."""
        fields, sizes = len(self.num_embeddings), self.offsets.diff()
        if bags is None:
            check_columns("fused_embedding", ids, fields)
            bad = (ids < 0) | (ids >= sizes)  # [B, F]
            return ids.masked_fill(bad, 0), bad.sum(0)
        check_bags("embedding_bags", ids, bags, None, fields)
        field = (torch.arange(len(bags) - 1, device=bags.device) % fields).repeat_interleave(bags.diff())  # [N]
        bad = (ids < 0) | (ids >= sizes[field])  # [N]
        return ids.masked_fill(bad, 0), torch.zeros_like(self.oov_counts).index_add_(0, field, bad.long())

    def _look_up(self, ids: Tensor, offsets: Tensor | None, weights: Tensor | None) -> Tensor:
        state = self.deferred.tensors if self.deferred is not None and self.deferred.stale else None
        if offsets is not None:
            return self._pool(ids, offsets, weights, state or [])
        if state is not None:
            return deferred_embedding(self.weight, ids, self.offsets, state)
        return fused_embedding(self.weight, ids, self.offsets)

    def _pool(self, values: Tensor, bags: Tensor, weights: Tensor | None, state: list[Tensor]) -> Tensor:
        if weights is not None and self.pooling == "mean":
            raise ValueError("FusedEmbedding: weights need pooling='sum', got pooling='mean'")
        if weights is not None:
            weights = weights.to(torch.float64 if self.weight.dtype == torch.float64 else torch.float32)
        mean = self.pooling == "mean"
        return embedding_bags(self.weight, values, bags, weights, self.offsets, mean, state)

    def field(self, name: str | int) -> int:
        """The number of a field, by name or number.

        Raises:
            KeyError: there is no such field.
        """
        if isinstance(name, int) and 0 <= name < len(self.num_embeddings):
            return name
        if name not in self.field_names:
            raise KeyError(f"FusedEmbedding: no field {name!r}, there are {self.field_names}")
        return self.field_names.index(name)

    def field_weight(self, name: str | int) -> Tensor:
        """The rows of one field, [rows, E]: current values, as a view without gradient."""
        self.flush()
        f = self.field(name)
        first = sum(self.num_embeddings[:f])
        return self.weight.detach()[first : first + self.num_embeddings[f]]

    @torch.no_grad()
    def grow(self, name: str | int, rows: int) -> None:
        """Give a field ``rows`` rows in all; the new ones are drawn from N(0, .01²).

        Weights keep their values and a gradient not yet stepped on, and an adaftr_fast.optim optimizer keeps its
        state; other optimizers must be made anew. ``weight`` is a new parameter afterwards.

        Raises:
            ValueError: the field has more rows already.
        """
        f = self.field(name)
        more = rows - self.num_embeddings[f]
        if more < 0:
            raise ValueError(f"FusedEmbedding.grow: field {name!r} has {self.num_embeddings[f]} rows, got {rows}")
        self.flush()
        old, at = self.weight, sum(self.num_embeddings[: f + 1])
        fresh = old.new_empty(more, self.embedding_dim).normal_(0.0, 0.01)
        self.weight = nn.Parameter(insert_rows(old, at, fresh))
        if old.grad is not None:
            self.weight.grad = insert_no_gradient(old.grad, at, more)
        self.num_embeddings[f] = rows
        self.offsets[f + 1 :] += more
        optimizer = self.optimizer() if self.optimizer is not None else None
        if optimizer is not None:
            optimizer.grow(old, self.weight, at, more)

    def flush(self) -> None:
        """Make every row of ``weight`` current, where an optimizer defers steps; see adaftr_fast.optim.Adam."""
        if self.deferred is not None:
            self.deferred.flush(self.weight)

    def train(self, mode: bool = True) -> Self:
        """As nn.Module.train; leaving training makes all rows current."""
        if not mode:
            self.flush()
        return super().train(mode)

    def _apply(self, fn, recurse=True):
        self.flush()
        return super()._apply(fn, recurse)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        for name in self.field_names:
            destination[f"{prefix}weight.{name}"] = self.field_weight(name)

    @torch.no_grad()
    def _load_from_state_dict(
        self, state_dict: Mapping[str, Tensor], prefix, local_metadata, strict, missing, unexpected, errors
    ) -> None:
        self.flush()  # or the rows behind would be moved on from their new values
        keys = {f"{prefix}weight.{name}": name for name in self.field_names}
        unexpected.extend(key for key in state_dict if strict and key.startswith(prefix) and key not in keys)
        for key, name in keys.items():
            if key not in state_dict:
                missing.append(key)
                continue
            rows, found = self.field_weight(name), state_dict[key]
            if found.shape == rows.shape:
                rows.copy_(found)
            else:
                sizes = f"{list(found.shape)} in the checkpoint, {list(rows.shape)} here"
                errors.append(f"size mismatch for {key}: {sizes}")

    def __getstate__(self) -> dict[str, Any]:
        self.flush()
        return {**self.__dict__, "deferred": None, "optimizer": None}  # a copy has no optimizer

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.weight.register_post_accumulate_grad_hook(coalesce_gradient)  # a copied parameter has no hooks

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        super().register_parameter(name, param)
        if name == "weight" and param is not None:
            param.register_post_accumulate_grad_hook(coalesce_gradient)

    def extra_repr(self) -> str:
        rows = self.num_embeddings
        shown = rows if len(rows) <= 8 else f"[{', '.join(map(str, rows[:3]))}, ..., {rows[-1]}]"
        return f"{len(rows)} fields, num_embeddings={shown}, embedding_dim={self.embedding_dim}"
