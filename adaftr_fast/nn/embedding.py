"""All embedding fields of a model as one module (the e_r of the paper's §2.1)."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, NoReturn, Self

import torch
from torch import Tensor, nn

from adaftr_fast.nn.embedding_table import (
    CoalescesGradient,
    EmbeddingTable,
    TableWeight,
    draw,
    field_offsets,
    initial_rng,
)
from adaftr_fast.nn.module_list import ModuleList
from adaftr_fast.ops.embedding.bags import PAD, bag_of_id, select_bags
from adaftr_fast.ops.embedding.lookup import runs_cuda_kernels
from adaftr_fast.ops.embedding.reference.bags import check_bags, resolve_ids
from adaftr_fast.ops.embedding.reference.lookup import check_columns, check_ids


class FusedEmbedding(CoalescesGradient):
    """Looks up the ids of F fields and concatenates their vectors in field order.

    B batch, F fields, E_f width of field f (E where all are equal), R rows of all fields together, N ids of all bags
    together.

    The fields of one width form one table. With one width there is one parameter, ``weight`` [R, E], which holds the
    rows of one field after another. With several widths there is one parameter per width, in ascending order of width:
    ``tables[i].weight``. All are drawn from N(0, 0.01²).

    Gradients of the parameters are sparse tensors that hold the rows of the batch, so torch.optim.SGD, Adagrad and
    SparseAdam work unchanged. They are coalesced, except on CUDA, where only the device knows which rows repeat. The
    optimizers of adaftr_fast.optim are faster and include Adam as on a dense table. ``state_dict()`` has one entry per
    field, ``weight.<field name>`` [rows, E_f], whatever the widths. ``load_state_dict()`` also takes that of an
    nn.Embedding or nn.EmbeddingBag, ``weight`` [R, E], where there is one width.

    Args:
        num_embeddings: number of rows of each field, F numbers >= 1.
        embedding_dim: width >= 1 of all fields, or F widths.
        field_names: F distinct names; "0", "1", ... by default.
        pooling: how the vectors of a multi-valued field are reduced, "mean" or "sum".
        padding_idx: an id of all fields, or F ids or None, as in torch.nn: the id's row starts as zeros, gets no
            gradient, and does not count in bags. A negative number counts from the end of the field.
        on_bad_id: "raise", or "oov" to look up row 0 of the field in place of an id that is out of range and to count
            it in ``oov_counts`` [F].
        device: device of the parameters.
        dtype: dtype of the parameters: float32 (default), float64, bfloat16 or float16. Arithmetic on half-precision
            tables, and the state of the adaftr_fast.optim optimizers, is in float32.

    Attributes:
        widths: F widths.
        embedding_dim: E, or ``widths`` where they differ.
        by_width: the tables, in the order of ``table_weights()``.
        oov_counts: int64 [F], ids replaced so far under on_bad_id="oov".
        initial_rng: state of the random generator before the tables were drawn, within ``tables_elsewhere``.

    Raises:
        ValueError: there is no field, a field without rows, a width below 1, another number of widths than fields,
            a repeated or missing name, a padding_idx out of range, or an unknown option.
    """

    offsets: Tensor  # field_offsets; checkpoints of unfinished runs have it under this name
    oov_counts: Tensor
    order: Tensor
    padding: Tensor
    field_of_column: Tensor
    tables: ModuleList[TableWeight]

    def __init__(
        self,
        num_embeddings: Sequence[int],
        embedding_dim: int | Sequence[int],
        *,
        field_names: Sequence[str] | None = None,
        pooling: Literal["mean", "sum"] = "mean",
        padding_idx: int | Sequence[int | None] | None = None,
        on_bad_id: Literal["raise", "oov"] = "raise",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_embeddings = [int(rows) for rows in num_embeddings]
        self.field_names = list(field_names or map(str, range(len(self.num_embeddings))))
        self.widths = _widths(embedding_dim, len(self.num_embeddings))
        self.pooling, self.on_bad_id = pooling, on_bad_id
        self._check()
        self.padding_idx = _padding_idx(padding_idx, self.num_embeddings)
        self.by_width = [self._table(width) for width in sorted(set(self.widths))]
        self.embedding_dim: int | list[int] = self.widths if self._mixed else self.widths[0]
        self.initial_rng = initial_rng()
        self.register_buffer("offsets", field_offsets(self.num_embeddings, device), persistent=False)
        counts = torch.zeros(len(self.num_embeddings), dtype=torch.int64, device=device)
        self.register_buffer("oov_counts", counts, persistent=False)
        if self._mixed:
            self.tables = ModuleList(TableWeight(table, device, dtype) for table in self.by_width)
            self.register_buffer("order", self._order().to(device), persistent=False)
        else:
            self.weight = self.by_width[0].new_weight(device, dtype)
        if self.padding_idx is not None:
            ids = [-1 if each is None else each for each in self.padding_idx]  # no id is -1
            fields = [f for f, width in enumerate(self.widths) for _ in range(width)]
            self.register_buffer("padding", torch.tensor(ids, device=device), persistent=False)  # [F]
            self.register_buffer("field_of_column", torch.tensor(fields, device=device), persistent=False)
        self.reset_parameters()
        _living.add(self)

    @classmethod
    def from_pretrained(
        cls, embeddings: Tensor | Sequence[Tensor] | Mapping[str, Tensor], freeze: bool = True, **options: Any
    ) -> Self:
        """Returns a FusedEmbedding with copies of the rows in ``embeddings``.

        Args:
            embeddings: one tensor [rows, E_f] per field, or a mapping from field names to them. One tensor is one field.
            freeze: whether the parameters get no gradient, as in torch.nn.Embedding.from_pretrained.
            options: arguments of the constructor: field_names, pooling, padding_idx, on_bad_id. The rows of
                ``padding_idx`` keep their values.

        Raises:
            ValueError: a tensor is not [rows, E_f], or they differ in dtype or device.
        """
        if isinstance(embeddings, Mapping):
            options["field_names"] = list(embeddings)
            embeddings = list(embeddings.values())
        tables = [embeddings] if isinstance(embeddings, Tensor) else list(embeddings)
        if any(table.dim() != 2 for table in tables) or len({(table.dtype, table.device) for table in tables}) != 1:
            got = [f"{table.dtype} {list(table.shape)} on {table.device}" for table in tables]
            raise ValueError(
                f"FusedEmbedding.from_pretrained: embeddings must be [rows, E_f] of one dtype and device, got {got}"
            )
        rows, widths = zip(*(table.shape for table in tables), strict=True)
        made = cls(rows, widths, device=tables[0].device, dtype=tables[0].dtype, **options)
        for f, table in enumerate(tables):
            made.field_weight(f).copy_(table.detach())
        return made.requires_grad_(not freeze)

    def _check(self) -> None:
        fields, rows, widths = len(self.num_embeddings), self.num_embeddings, self.widths
        if not fields or min(rows) < 1:
            raise ValueError(f"FusedEmbedding: num_embeddings must be one number >= 1 per field, got {rows}")
        if min(widths) < 1:
            got = widths if len(set(widths)) > 1 else widths[0]
            raise ValueError(f"FusedEmbedding: embedding_dim must be >= 1, got {got}")
        if not len(set(self.field_names)) == fields == len(self.field_names):
            raise ValueError(f"FusedEmbedding: field_names must be {fields} distinct names, got {self.field_names}")
        if self.pooling not in ("mean", "sum"):
            raise ValueError(f"FusedEmbedding: pooling must be 'mean' or 'sum', got {self.pooling!r}")
        if self.on_bad_id not in ("raise", "oov"):
            raise ValueError(f"FusedEmbedding: on_bad_id must be 'raise' or 'oov', got {self.on_bad_id!r}")

    def _table(self, width: int) -> EmbeddingTable:
        fields = [f for f, own in enumerate(self.widths) if own == width]
        names = [self.field_names[f] for f in fields]
        return EmbeddingTable(fields, names, [self.num_embeddings[f] for f in fields], width)

    def _order(self) -> Tensor:
        """Where each output column is found in the concatenated outputs of the tables, [sum of E_f]."""
        fields = [f for table in self.by_width for f in table.fields]
        columns = torch.arange(self.out_features).split([self.widths[f] for f in fields])
        return torch.cat([part for _, part in sorted(zip(fields, columns, strict=True))])

    @property
    def _mixed(self) -> bool:
        return len(self.by_width) > 1

    def _owners(self) -> Sequence[FusedEmbedding | TableWeight]:
        """The modules whose ``weight`` and ``offsets`` are those of the tables in ``by_width``."""
        return [*self.tables] if self._mixed else [self]

    def table_weights(self) -> list[nn.Parameter]:
        """Returns the parameters, one per width."""
        return [owner.weight for owner in self._owners()]

    def reset_parameters(self) -> None:
        """Draws the parameters from N(0, 0.01²), and sets the rows of ``padding_idx`` to zeros."""
        for weight in self.table_weights():
            draw(weight)
        for f, row in enumerate(self.padding_idx or []):
            if row is not None:
                self.field_weight(f)[row] = 0

    @property
    def out_features(self) -> int:
        """The sum of the widths."""
        return sum(self.widths)

    @property
    def field_offsets(self) -> Tensor:
        """The first row of each field, if all rows are numbered field after field, and their number: int64 [F + 1]."""
        return self.offsets

    def forward(
        self,
        ids: Tensor,
        offsets: Tensor | None = None,
        per_sample_weights: Tensor | None = None,
        *,
        weights: Tensor | None = None,
    ) -> Tensor:
        """Looks up ``ids``, one id per field or bags of ids.

        Args:
            ids: int32 or int64; the ids of field f count from 0.

                - [B, F]: one id per field.
                - [B, F, L], or [B, L] where there is one field: bags of L ids.
                - [N] with ``offsets``: the ids of all bags, row after row and within a row field after field.
            offsets: [B * F + 1], int32 or int64, from 0 to N in non-decreasing order: where each bag begins. An empty
                bag gives zeros. torch.nn.EmbeddingBag calls this ``include_last_offset=True``.
            per_sample_weights: factors of the ids, of their shape. Their gradient is that of torch.nn.EmbeddingBag.
                With pooling="mean", where that refuses them, the weighted sum is divided by the number of ids in the
                bag: for the weighted average, pass factors with a mean of 1.
            weights: the deprecated name of ``per_sample_weights``.

        Returns:
            [B, sum of E_f].

        Raises:
            IndexError: an id is out of the range of its field; the message names the position, the id and the range. On
                CUDA, where the host does not wait, the id's vector is zero, and a later look-up or update raises.
            TypeError: ids are neither int32 nor int64.
            ValueError: shapes do not fit.
        """
        if weights is not None:
            warnings.warn(
                "FusedEmbedding: weights is deprecated, use per_sample_weights", DeprecationWarning, stacklevel=4
            )
            per_sample_weights = weights
        ids, offsets, per_sample_weights = self._arguments(ids, offsets, per_sample_weights)
        if self.on_bad_id == "raise":
            return self._look_up(ids, offsets, per_sample_weights)
        ids, bad = self._without_bad(ids, offsets)
        out = self._look_up(ids, offsets, per_sample_weights)
        self.oov_counts += bad  # after everything that can raise
        return out

    def _arguments(self, ids: Tensor, offsets: Tensor | None, per_sample_weights: Tensor | None) -> _Ids:
        """Returns the arguments with bags of one length as ids [N] and offsets, and factors in the dtype of the ops."""
        if per_sample_weights is not None:
            if per_sample_weights.shape != ids.shape:
                got, expected = list(per_sample_weights.shape), list(ids.shape)
                raise ValueError(f"embedding_bags: per_sample_weights must be {expected}, as the ids, got {got}")
            double = self.table_weights()[0].dtype == torch.float64
            per_sample_weights = per_sample_weights.to(torch.float64 if double else torch.float32)
        if offsets is not None:
            return _Ids(ids, offsets.long() if offsets.dtype == torch.int32 else offsets, per_sample_weights)
        fields = len(self.num_embeddings)
        if ids.dim() == 2 and fields == 1 and ids.shape[1] != 1:
            ids = ids[:, None]  # [B, 1, L]
        if ids.dim() == 2 and per_sample_weights is not None:
            ids = ids[:, :, None]  # [B, F, 1]
        if ids.dim() != 3:
            return _Ids(ids)
        if ids.shape[1] != fields:
            raise ValueError(f"fused_embedding: ids must be [B, {fields}] or [B, {fields}, L], got {list(ids.shape)}")
        offsets = torch.arange(ids.shape[0] * fields + 1, device=ids.device) * ids.shape[2]
        return _Ids(ids.flatten(), offsets, None if per_sample_weights is None else per_sample_weights.flatten())

    def _without_bad(self, ids: Tensor, offsets: Tensor | None) -> tuple[Tensor, Tensor]:
        """Returns the ids with 0 for those out of range, and the number of these in each field, [F]."""
        sizes = self.field_offsets.diff()
        if offsets is None:
            check_columns("fused_embedding", ids, len(self.num_embeddings))
            bad = (ids < 0) | (ids >= sizes)  # [B, F]
            return ids.masked_fill(bad, 0), bad.sum(0)
        field = self._bag_of_id(ids, offsets) % len(self.num_embeddings)
        bad = (ids < 0) | (ids >= sizes[field])  # [N]
        return ids.masked_fill(bad, 0), torch.zeros_like(self.oov_counts).index_add_(0, field, bad.long())

    def _bag_of_id(self, ids: Tensor, offsets: Tensor) -> Tensor:
        """Returns the bag of each id of ids [N], [N]."""
        # The CUDA kernels and compiled graphs check later, without making the host wait.
        if not runs_cuda_kernels(ids) and not torch.compiler.is_compiling():
            check_bags("embedding_bags", ids, offsets, None, len(self.num_embeddings))
        return bag_of_id(ids, offsets).clamp(0, max(len(offsets) - 2, 0))  # which matters where offsets are wrong

    def _look_up(self, ids: Tensor, offsets: Tensor | None, per_sample_weights: Tensor | None) -> Tensor:
        mean, padded = self.pooling == "mean", self.padding_idx is not None
        if padded and offsets is not None:
            per_sample_weights, mean = self._factors(ids, offsets, per_sample_weights), False
        if self._mixed:
            out = self._concatenated(ids, offsets, per_sample_weights, mean)
        else:
            out = self.by_width[0].look_up(self.weight, self.offsets, ids, offsets, per_sample_weights, mean)
        if padded and offsets is None:
            held = (ids == self.padding).index_select(1, self.field_of_column)  # [B, sum of E_f]
            return torch.where(held, out.detach(), out)
        return out

    def _factors(self, ids: Tensor, offsets: Tensor, per_sample_weights: Tensor | None) -> Tensor:
        """Returns the factors [N] that leave ``padding_idx`` out of the sum or the mean of a bag."""
        bag = self._bag_of_id(ids, offsets)
        counts = ids != self.padding[bag % len(self.num_embeddings)]  # [N]
        if per_sample_weights is None:
            double = self.table_weights()[0].dtype == torch.float64
            factors = counts.to(torch.float64 if double else torch.float32)
        else:
            factors = per_sample_weights.masked_fill(~counts, 0)
        if self.pooling == "sum":
            return factors
        number = factors.new_zeros(max(len(offsets) - 1, 1)).index_add(0, bag, counts.to(factors.dtype))
        return factors / number.clamp(min=1)[bag]

    def _concatenated(
        self, ids: Tensor, offsets: Tensor | None, per_sample_weights: Tensor | None, mean: bool
    ) -> Tensor:
        """Looks up the fields of each table, and puts the outputs into field order."""
        fields = len(self.num_embeddings)
        if offsets is None:
            check_columns("fused_embedding", ids, fields)
        parts = []
        for owner, table in zip(self.tables, self.by_width, strict=True):
            try:
                own = _of_table(table.fields, owner.columns, ids, offsets, per_sample_weights, fields)
                parts.append(table.look_up(owner.weight, owner.offsets, own.ids, own.offsets, own.factors, mean))
            except IndexError:
                if runs_cuda_kernels(ids):  # of an earlier call
                    raise
                self._raise_bad_id(ids, offsets)
        return torch.cat(parts, 1)[:, self.order]

    def _raise_bad_id(self, ids: Tensor, offsets: Tensor | None) -> NoReturn:
        """Names the first bad id by its position among all fields; a table knows only those of its width."""
        if offsets is None:
            check_ids("fused_embedding", ids, self.field_offsets)
        else:
            resolve_ids("embedding_bags", ids, offsets, None, self.field_offsets)
        raise AssertionError("FusedEmbedding: a table refused ids that are all in range")

    def field(self, name: str | int) -> int:
        """Returns the position of a field, given by name or position.

        Raises:
            KeyError: there is no such field.
        """
        if isinstance(name, int) and 0 <= name < len(self.num_embeddings):
            return name
        if name not in self.field_names:
            raise KeyError(f"FusedEmbedding: no field {name!r}, there are {self.field_names}")
        return self.field_names.index(name)

    def _locate(self, f: int) -> tuple[FusedEmbedding | TableWeight, EmbeddingTable, int]:
        """Returns the table of field f, the module that owns its parameter, and the field's place in the table."""
        number = next(number for number, table in enumerate(self.by_width) if f in table.fields)
        table = self.by_width[number]
        return self._owners()[number], table, table.fields.index(f)

    def field_weight(self, name: str | int) -> Tensor:
        """Returns the current rows of one field, [rows, E_f], as a view without gradient.

        Raises:
            KeyError: there is no such field.
        """
        owner, table, place = self._locate(self.field(name))
        return table.rows(owner.weight, place)

    @torch.no_grad()
    def grow(self, name: str | int, rows: int) -> None:
        """Extends a field to ``rows`` rows; the new ones are drawn from N(0, 0.01²).

        The other rows keep their values and a pending gradient, and an adaftr_fast.optim optimizer keeps its state.
        Other optimizers must be made anew, since the field's table is a new parameter afterwards.

        Raises:
            KeyError: there is no such field.
            ValueError: the field has more rows already.
        """
        f = self.field(name)
        more = rows - self.num_embeddings[f]
        if more < 0:
            raise ValueError(f"FusedEmbedding.grow: field {name!r} has {self.num_embeddings[f]} rows, got {rows}")
        owner, table, place = self._locate(f)
        owner.weight = table.grow(owner.weight, place, more)
        self.num_embeddings[f] = rows
        self.offsets[f + 1 :] += more
        if owner is not self:
            owner.offsets[place + 1 :] += more

    def flush(self) -> None:
        """Makes every row current, where an optimizer defers steps; see adaftr_fast.optim.Adam."""
        for weight, table in zip(self.table_weights(), self.by_width, strict=True):
            table.flush(weight)

    def train(self, mode: bool = True) -> Self:
        """As nn.Module.train; makes every row current on leaving training."""
        if not mode:
            self.flush()
        return super().train(mode)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self.flush()
        super()._apply(fn, recurse)
        return self

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        for name in self.field_names:
            destination[f"{prefix}weight.{name}"] = self.field_weight(name)

    @torch.no_grad()
    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Tensor],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing: list[str],
        unexpected: list[str],
        errors: list[str],
    ) -> None:
        rows_of = self._rows_by_key(prefix, state_dict)
        unexpected.extend(key for key in state_dict if strict and key.startswith(prefix) and key not in rows_of)
        for key, rows in rows_of.items():
            if key not in state_dict:
                missing.append(key)
            elif state_dict[key].shape == rows.shape:
                rows.copy_(state_dict[key])
            else:
                sizes = f"{list(state_dict[key].shape)} in the checkpoint, {list(rows.shape)} here"
                errors.append(f"size mismatch for {key}: {sizes}")

    def _rows_by_key(self, prefix: str, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns what each entry of a state dict overwrites: the rows of a field, or of one table, as torch.nn has it.

        The rows are current, or later steps would move what is loaded.
        """
        self.flush()
        whole = f"{prefix}weight"
        if whole in state_dict and not self._mixed:
            return {whole: self.weight.detach()}
        return {f"{prefix}weight.{name}": self.field_weight(name) for name in self.field_names}

    def __getstate__(self) -> dict[str, Any]:
        self.flush()
        return {**self.__dict__, "by_width": [table.without_optimizer() for table in self.by_width]}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        _living.add(self)

    def extra_repr(self) -> str:
        rows, widths = (_short(numbers) for numbers in (self.num_embeddings, self.widths))
        shown = widths if self._mixed else self.embedding_dim
        padding = "" if self.padding_idx is None else f", padding_idx={self.padding_idx}"
        return f"{len(self.num_embeddings)} fields, num_embeddings={rows}, embedding_dim={shown}{padding}"


_living: weakref.WeakSet[FusedEmbedding] = weakref.WeakSet()


def living_embeddings() -> list[FusedEmbedding]:
    """Returns the FusedEmbedding modules that exist, in any order."""
    return list(_living)


def tables_of(modules: Iterable[nn.Module]) -> dict[nn.Parameter, EmbeddingTable]:
    """Returns the tables of the FusedEmbedding modules in ``modules``, by their parameters."""
    found = (module for root in modules for module in root.modules() if isinstance(module, FusedEmbedding))
    pairs = (zip(module.table_weights(), module.by_width, strict=True) for module in found)
    return dict(pair for of_module in pairs for pair in of_module)


class _Ids(NamedTuple):
    """The arguments of a look-up in one table."""

    ids: Tensor
    offsets: Tensor | None = None
    factors: Tensor | None = None


def _of_table(
    chosen: list[int],
    columns: Tensor,
    ids: Tensor,
    offsets: Tensor | None,
    per_sample_weights: Tensor | None,
    fields: int,
) -> _Ids:
    """Selects some fields of a batch, given as a list and as a tensor on its device."""
    if offsets is None:
        return _Ids(ids.index_select(1, columns))
    kept, starts = select_bags(ids, offsets, per_sample_weights, chosen, fields)
    own = ids[kept]
    if runs_cuda_kernels(ids):  # the positions from the last offset on have no meaning
        own = own.masked_fill(torch.arange(len(own), device=own.device) >= starts[-1], PAD)
    return _Ids(own, starts, None if per_sample_weights is None else per_sample_weights[kept])


def _widths(embedding_dim: int | Sequence[int], fields: int) -> list[int]:
    widths = list(embedding_dim) if isinstance(embedding_dim, Sequence) else [int(embedding_dim)] * fields
    if len(widths) != fields:
        raise ValueError(f"FusedEmbedding: embedding_dim must be one number, or {fields} (one per field), got {widths}")
    return widths


def _padding_idx(given: int | Sequence[int | None] | None, num_embeddings: list[int]) -> list[int | None] | None:
    """Returns the padding id of each field, counted from 0, or None where no field has one."""
    fields = len(num_embeddings)
    ids = list(given) if isinstance(given, Sequence) else [given] * fields
    if len(ids) != fields:
        raise ValueError(f"FusedEmbedding: padding_idx must be one number, or {fields} (one per field), got {ids}")
    for each, rows in zip(ids, num_embeddings, strict=True):
        if each is not None and not -rows <= each < rows:
            raise ValueError(
                f"FusedEmbedding: padding_idx must be -{rows} to {rows - 1} in a field of {rows} rows, got {each}"
            )
    if ids == [None] * fields:
        return None
    return [None if each is None else each % rows for each, rows in zip(ids, num_embeddings, strict=True)]


def _short(numbers: list[int]) -> str:
    return str(numbers) if len(numbers) <= 8 else f"[{', '.join(map(str, numbers[:3]))}, ..., {numbers[-1]}]"
