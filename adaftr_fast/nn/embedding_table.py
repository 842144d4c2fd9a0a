"""The tables that a FusedEmbedding is composed of: each holds the rows of the fields of one width.

B batch, F fields of the table, E width, R rows of all its fields together, N ids of all bags
together.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any, NamedTuple, Protocol, Self

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from adaftr_fast.nn.deferred import flush, held
from adaftr_fast.ops.embedding.bags import embedding_bags
from adaftr_fast.ops.embedding.lookup import (
    coalesce_unless_on_cuda,
    empty_table,
    fused_embedding,
    sparse_rows,
)
from adaftr_fast.ops.library import check_local


class GrowsWithTable(Protocol):
    """An optimizer whose state follows a table that grows (adaftr_fast.optim)."""

    param_groups: list[dict[str, Any]]

    def grow(self, old: nn.Parameter, new: nn.Parameter, at: int, rows: int) -> None: ...


@dataclass(eq=False)
class EmbeddingTable:
    """The fields of one width, whose rows lie one field after another in one parameter [R, E].

    The parameter belongs to the FusedEmbedding, under the name it has in checkpoints. Methods take
    it as ``weight``.

    Attributes:
        fields: positions of the F fields among those of the FusedEmbedding, in ascending order.
        field_names: F names.
        num_embeddings: rows of each field, F numbers.
        width: E.
    """

    fields: list[int]
    field_names: list[str]
    num_embeddings: list[int]
    width: int

    def new_weight(
        self, device: torch.device | str | None, dtype: torch.dtype | None
    ) -> nn.Parameter:
        """Returns an uninitialized parameter [R, E]; on the meta device within
        ``tables_elsewhere``.
        """
        device = "meta" if _elsewhere else device
        return nn.Parameter(
            empty_table(sum(self.num_embeddings), self.width, device=device, dtype=dtype)
        )

    def rows(self, weight: Tensor, place: int) -> Tensor:
        """Returns the current rows of the field at ``place`` in ``fields``, [rows, E], a view
        without gradient.
        """
        first = sum(self.num_embeddings[:place])
        return weight.detach()[first : first + self.num_embeddings[place]]

    def grow(self, weight: nn.Parameter, place: int, more: int) -> nn.Parameter:
        """Returns a parameter with ``more`` new rows for the field at ``place``, drawn from N(0,
        0.01²).

        A pending gradient of ``weight`` and the optimizer's state follow.
        """
        flush(weight)  # the optimizer's state grows with rows that are all current
        at = sum(self.num_embeddings[: place + 1])
        fresh = weight.new_empty(more, self.width).normal_(0.0, 0.01)
        grown = nn.Parameter(insert_rows(weight, at, fresh))
        if weight.grad is not None:
            grown.grad = insert_no_gradient(weight.grad, at, more)
        for hook in (weight._post_accumulate_grad_hooks or {}).values():
            grown.register_post_accumulate_grad_hook(hook)
        grown.requires_grad_(weight.requires_grad)
        self.num_embeddings[place] += more
        optimizer = trained_by(weight)
        if optimizer is not None:
            optimizer.grow(weight, grown, at, more)
        return grown


def train_by(weight: Tensor, optimizer: GrowsWithTable) -> None:
    """Notes the adaftr_fast.optim optimizer of a table's parameter, in place of an earlier one."""
    key = id(weight)

    def forget(gone: weakref.ref[GrowsWithTable]) -> None:
        if _optimizers.get(key) is gone:
            del _optimizers[key]

    _optimizers[key] = weakref.ref(optimizer, forget)


def trained_by(weight: Tensor) -> GrowsWithTable | None:
    """Returns the adaftr_fast.optim optimizer of a table's parameter, if there is one."""
    noted = _optimizers.get(id(weight))
    optimizer = None if noted is None else noted()
    if optimizer is None:
        return None
    # else the number was that of a parameter before
    held = any(each is weight for group in optimizer.param_groups for each in group["params"])
    return optimizer if held else None


# By the id() of the parameter, since several modules may hold one, each with a table of its own,
# and torch refuses to swap parameters that have weak references.
_optimizers: dict[int, weakref.ref[GrowsWithTable]] = {}


class Ids(NamedTuple):
    """The arguments of a look-up in one table."""

    ids: Tensor  # [B, F], or [N] with offsets
    offsets: Tensor | None = None  # [B * F + 1], where each bag begins
    factors: Tensor | None = None  # [N], in float64 beside a float64 table, else float32


class HoldsTable(nn.Module):
    """A module whose parameter ``weight`` [R, E] is a table.

    Attributes:
        sparse: whether the gradient of the parameter is sparse and coalesced, except on CUDA, or
            dense.
    """

    weight: nn.Parameter
    sparse: bool

    def _look_up_ids(self, field_offsets: Tensor, given: Ids, mean: bool) -> Tensor:
        """Looks up ids [B, F], or bags of ids [N]. A row that has missed steps counts with its
        present value.

        Args:
            field_offsets: [F + 1], the first row of each field in ``weight``.
            given: the ids, in bags or not.
            mean: whether a bag gives the mean of its vectors, rather than their sum.

        Returns:
            [B, F * E].
        """
        weight = self.weight  # which takes a microsecond to find
        advice = "leave the tables out of what is sharded (docs/frameworks.md)"
        check_local("FusedEmbedding", "weight", weight, advice)
        self._check_parallel(weight)
        ids, offsets, factors = given
        with held(weight) as steps:
            missed = [] if steps is None else steps.tensors
            if offsets is not None:
                bags = (ids, offsets, factors, field_offsets)
                return embedding_bags(weight, *bags, mean, missed, sparse=self._is_sparse(weight))
            sparse = self._is_sparse(weight)
            return fused_embedding(weight, ids, field_offsets, missed, sparse=sparse)

    def _check_parallel(self, weight: Tensor) -> None:
        """Refuses a table whose sparse gradient DistributedDataParallel is to average in the next
        backward, where its own error names neither the table nor the remedy.

        Raises:
            RuntimeError: it is one.
        """
        if torch.compiler.is_compiling():
            return
        parallel = DistributedDataParallel._active_ddp_module  # None outside of its forward
        if parallel is None or not (self.training and self._is_sparse(weight)):
            return
        averages = torch.is_grad_enabled() and parallel.require_backward_grad_sync
        if averages and any(each is weight for each in parallel._module_parameters):
            raise RuntimeError(
                "FusedEmbedding: DistributedDataParallel cannot average the sparse gradient of a "
                f"table {list(weight.shape)}; call adaftr_fast.nn.replicas.replicate_tables(model) "
                "before DistributedDataParallel wraps it (docs/frameworks.md), or make the "
                "FusedEmbedding with sparse=False"
            )

    def _is_sparse(self, weight: Tensor) -> bool:
        """Returns whether the gradient of ``weight`` is sparse. The formulas of PyTorch, which
        differentiate what a weight is computed from, take dense ones alone.
        """
        return self.sparse and weight.is_leaf

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        super().register_parameter(name, param)
        if name == "weight" and param is not None and self.sparse:
            self._register_hook(param)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        self._restore_hooks()
        return self

    def _load_from_state_dict(self, *arguments: Any, **options: Any) -> None:
        super()._load_from_state_dict(*arguments, **options)
        self._restore_hooks()

    def _restore_hooks(self) -> None:
        """Attaches the hooks of the parameter again, which it loses where torch swaps its memory
        for that of another tensor (``torch.__future__.set_swap_module_params_on_conversion``).
        """
        weight = self._parameters.get("weight")
        if weight is None:
            return
        with torch._C.DisableTorchFunctionSubclass():
            if hooks := weight._post_accumulate_grad_hooks:
                weight._post_accumulate_grad_hooks = hooks

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "weight" in self._parameters and self.sparse:  # a copied parameter has no hooks
            self._register_hook(self.weight)

    def _register_hook(self, weight: nn.Parameter) -> None:
        """Registers the hook once, which torch refuses for a parameter that is frozen now."""
        if coalesce_unless_on_cuda in (weight._post_accumulate_grad_hooks or {}).values():
            return
        frozen = not weight.requires_grad
        weight.requires_grad_().register_post_accumulate_grad_hook(coalesce_unless_on_cuda)
        weight.requires_grad_(not frozen)


class TableFields(nn.Module):
    """Where the fields of a table are found.

    Attributes:
        offsets: [F + 1], the first row of each field in the table, and the end.
        columns: [F], positions of the fields among those of all tables.
    """

    weight: Tensor
    offsets: Tensor
    columns: Tensor

    def __init__(self, table: EmbeddingTable, device: torch.device | str | None) -> None:
        super().__init__()
        self.make_buffers(table, device)

    def make_buffers(self, table: EmbeddingTable, device: torch.device | str | None) -> None:
        """Makes the buffers, which state dicts leave out; again, for a module that was on the meta
        device.
        """
        self.register_buffer(
            "offsets", field_offsets(table.num_embeddings, device), persistent=False
        )
        self.register_buffer("columns", torch.tensor(table.fields, device=device), persistent=False)

    def extra_repr(self) -> str:
        rows, width = self.weight.shape
        return f"{rows}, {width}, {str(self.weight.dtype).removeprefix('torch.')}"


class TableWeight(TableFields, HoldsTable):
    """The parameter of one of several tables."""

    weight: nn.Parameter

    def __init__(
        self,
        table: EmbeddingTable,
        sparse: bool,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__(table, device)
        self.sparse = sparse
        self.weight = table.new_weight(device, dtype)


@dataclass(frozen=True)
class Field:
    """A field as the extra state of a state dict describes it."""

    name: str
    rows: int
    width: int


def parameter_names(widths: Iterable[int]) -> dict[int, str]:
    """Returns the name in a FusedEmbedding of the parameter that holds the fields of each width."""
    distinct = sorted(set(widths))
    if len(distinct) == 1:
        return {distinct[0]: "weight"}
    return {width: f"tables.{number}.weight" for number, width in enumerate(distinct)}


def split_tables(fields: Sequence[Field], tables: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the rows [rows, width] of each field whose parameter is in ``tables``.

    Raises:
        ValueError: a table does not have the rows of its fields.
    """
    found: dict[str, Tensor] = {}
    for width, name in parameter_names(field.width for field in fields).items():
        own = [field for field in fields if field.width == width]
        rows = [field.rows for field in own]
        if name not in tables:
            continue
        if list(tables[name].shape) != [sum(rows), width]:
            raise ValueError(f"{name} must be {[sum(rows), width]}, got {list(tables[name].shape)}")
        found |= zip([field.name for field in own], tables[name].split(rows), strict=True)
    return found


def field_offsets(num_embeddings: list[int], device: torch.device | str | None) -> Tensor:
    """Returns the first row of each field, where their rows lie one field after another, and the
    end, [F + 1].
    """
    return torch.tensor([0, *accumulate(num_embeddings)], device=device)


def insert_rows(table: Tensor, at: int, rows: Tensor) -> Tensor:
    """Returns a new table with ``rows`` inserted before row ``at``."""
    grown = empty_table(
        len(table) + len(rows), *table.shape[1:], device=table.device, dtype=table.dtype
    )
    return torch.cat([table[:at], rows, table[at:]], out=grown)


def insert_no_gradient(grad: Tensor, at: int, rows: int) -> Tensor:
    """Returns the gradient of a table, sparse or dense, after ``rows`` rows are inserted before row
    ``at``.
    """
    if not grad.is_sparse:
        return insert_rows(grad, at, grad.new_zeros(rows, grad.shape[1]))
    index = grad._indices()[0]
    size = torch.Size((grad.shape[0] + rows, grad.shape[1]))
    moved = index + rows * (index >= at)
    # rows keep their order
    return sparse_rows(moved, grad._values(), size, grad.is_coalesced())


@contextmanager
def tables_elsewhere() -> Iterator[None]:
    """Makes new tables without memory, on the meta device, for rows that are kept elsewhere.

    The random generator advances as if the rows were drawn. From ``FusedEmbedding.initial_rng``,
    the state it had before, ``drawn_rows`` draws them. For float32 on the CPU.
    """
    global _elsewhere
    before = _elsewhere
    _elsewhere = True
    try:
        yield
    finally:
        _elsewhere = before


_elsewhere = False
DRAWN = 1 << 20  # rows that are drawn at once


def initial_rng() -> Tensor | None:
    """Returns the state of the random generator within ``tables_elsewhere``, None outside."""
    return torch.get_rng_state() if _elsewhere else None


@torch.no_grad()
def draw(weight: Tensor) -> None:
    """Draws ``weight`` [R, E] from N(0, 0.01²); one on the meta device only advances the random
    generator.
    """
    if weight.is_meta:
        deque(drawn_rows(*weight.shape), maxlen=0)
    else:
        weight.normal_(0.0, 0.01)


def drawn_rows(rows: int, width: int, generator: torch.Generator | None = None) -> Iterator[Tensor]:
    """Yields the rows that ``draw`` writes, bit by bit, some rows at a time.

    torch draws normal numbers in sixteens, and draws the last sixteen of a tensor anew if its size
    is not a multiple.
    """
    bounds = [*range(0, rows, DRAWN), rows]
    if len(bounds) > 2 and (rows - bounds[-2]) * width < 16:
        del bounds[-2]
    for start, stop in pairwise(bounds):
        yield torch.empty(stop - start, width).normal_(0.0, 0.01, generator=generator)
