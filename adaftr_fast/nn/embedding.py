"""All embedding fields of a model as one module (the e_r of the paper's §2.1).

B batch, F fields, E_f width of field f, N ids of all bags together.
"""

from __future__ import annotations

import itertools
import re
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Literal, NamedTuple, NoReturn, Self

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _EXTRA_STATE_KEY_SUFFIX as EXTRA_STATE

from adaftr_fast._json import dumps, from_json, loads
from adaftr_fast.nn.deferred import flush
from adaftr_fast.nn.embedding_table import (
    EmbeddingTable,
    Field,
    HoldsTable,
    TableWeight,
    draw,
    field_offsets,
    initial_rng,
    parameter_names,
    split_tables,
)
from adaftr_fast.nn.module_list import ModuleList
from adaftr_fast.ops.embedding.bags import PAD, bag_of_id, select_bags
from adaftr_fast.ops.embedding.lookup import runs_cuda_kernels
from adaftr_fast.ops.embedding.reference.bags import check_bags, resolve_ids
from adaftr_fast.ops.embedding.reference.lookup import check_columns, check_ids
from adaftr_fast.ops.embedding.segments import rows_of_field
from adaftr_fast.ops.library import is_eager
from adaftr_fast.ops.norms import squared_norm


class FusedEmbedding(HoldsTable):
    """Looks up the ids of F fields and concatenates their vectors in field order.

    B batch, F fields, E_f width of field f (E where all are equal), R rows of all fields together, N ids of all bags
    together.

    The fields of one width form one table. With one width there is one parameter, ``weight`` [R, E], which holds the
    rows of one field after another. With several widths there is one parameter per width, in ascending order of width:
    ``tables[i].weight``. All are drawn from N(0, 0.01²).

    Gradients of the parameters are sparse tensors that hold the rows of the batch, so torch.optim.SGD, Adagrad and
    SparseAdam work unchanged. They are coalesced, except on CUDA, where only the device knows which rows repeat. The
    optimizers of adaftr_fast.optim are faster and include Adam as on a dense table. docs/frameworks.md shows
    DistributedDataParallel, Lightning and Accelerate.

    ``state_dict()`` has an entry per parameter, under its name, and ``_extra_state`` [n], the bytes of a JSON text that
    lists the fields. ``load_state_dict()`` finds the rows of each field by its name, in whatever order and tables they
    were saved. It also takes the state of an nn.Embedding or nn.EmbeddingBag, where there is one width, and entries
    ``weight.<field name>`` [rows, E_f], as the checkpoints of runs have them.

    Args:
        num_embeddings: number of rows of each field, F numbers >= 1.
        embedding_dim: width >= 1 of all fields, or F widths.
        field_names: F distinct names; "0", "1", ... by default.
        pooling: how the vectors of a multi-valued field are reduced, "mean" or "sum".
        padding_idx: an id of all fields, or F ids or None, as in torch.nn: the id's row starts as zeros, gets no
            gradient, and does not count in bags. A negative number counts from the end of the field. A padding row that
            is looked up is in the sparse gradient with zeros, so an optimizer's weight decay reaches it.
        on_bad_id: "raise", or "oov" to look up row 0 of the field in place of an id that is out of range and to count
            it in ``oov_counts`` [F].
        sparse: whether backward leaves sparse gradients in the parameters. A dense one has the size of its table, which
            takes a pass over the table in each backward. ``torch.autograd.grad`` returns sparse ones.
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
        TypeError: num_embeddings is a single number.
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
        sparse: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(num_embeddings, Iterable):
            kind = type(num_embeddings).__name__
            raise TypeError(f"FusedEmbedding: num_embeddings must be a list, one number per field, got {kind}")
        self.num_embeddings = [int(rows) for rows in num_embeddings]
        self.field_names = list(field_names or map(str, range(len(self.num_embeddings))))
        self.widths = self._per_field("embedding_dim", embedding_dim)
        self.pooling = pooling
        self.on_bad_id = on_bad_id
        self.sparse = sparse
        self._check()
        self.padding_idx = self._padding_idx(padding_idx)
        self.by_width = [self._table(width) for width in sorted(set(self.widths))]
        self.embedding_dim: int | list[int] = self.widths if self._mixed else self.widths[0]
        self._make_buffers(device)
        self.initial_rng = initial_rng()
        if self._mixed:
            self.tables = ModuleList(TableWeight(table, sparse, device, dtype) for table in self.by_width)
        else:
            self.weight = self.by_width[0].new_weight(device, dtype)
        self.reset_parameters()
        _living[next(_numbers)] = self

    @classmethod
    def from_pretrained(
        cls, embeddings: Tensor | Sequence[Tensor] | Mapping[str, Tensor], freeze: bool = True, **options: Any
    ) -> Self:
        """Returns a FusedEmbedding with copies of the rows in ``embeddings``.

        Args:
            embeddings: a tensor [rows, E_f] per field, or a mapping from field names to them. A tensor is one field.
            freeze: whether the parameters get no gradient, as in torch.nn.Embedding.from_pretrained.
            options: arguments of the constructor: field_names, pooling, padding_idx, on_bad_id, sparse. The rows of
                ``padding_idx`` keep their values.

        Raises:
            TypeError: something is not a tensor, such as an nn.Embedding, whose weight is one.
            ValueError: a tensor is not floating point [rows, E_f], they differ in dtype or device, or field_names is
                given beside a mapping.
        """
        if isinstance(embeddings, Mapping):
            if options.get("field_names") is not None:
                raise ValueError(
                    "FusedEmbedding.from_pretrained: field_names must be absent where embeddings is a mapping, whose "
                    f"keys are the names, got {options['field_names']}"
                )
            options["field_names"] = list(embeddings)
            embeddings = list(embeddings.values())
        tables = [embeddings] if isinstance(embeddings, Tensor | nn.Module) else list(embeddings)
        if others := [type(table).__name__ for table in tables if not isinstance(table, Tensor)]:
            raise TypeError(
                "FusedEmbedding.from_pretrained: embeddings must be tensors, such as the weight of an nn.Embedding, "
                f"got {others[0]}"
            )
        usable = all(table.dim() == 2 and table.is_floating_point() for table in tables)
        if not usable or len({(table.dtype, table.device) for table in tables}) != 1:
            got = [f"{table.dtype} {list(table.shape)} on {table.device}" for table in tables]
            raise ValueError(
                "FusedEmbedding.from_pretrained: embeddings must be floating point [rows, E_f] of one dtype and "
                f"device, got {got}"
            )
        rows, widths = zip(*(table.shape for table in tables), strict=True)
        made = cls(rows, widths, device=tables[0].device, dtype=tables[0].dtype, **options)
        for f, table in enumerate(tables):
            made.field_weight(f).copy_(table.detach())
        return made.requires_grad_(not freeze)

    def _make_buffers(self, device: torch.device | str | None) -> None:
        """Makes the buffers, which state dicts leave out; again, for a module that was on the meta device."""
        self.register_buffer("offsets", field_offsets(self.num_embeddings, device), persistent=False)
        counts = torch.zeros(len(self.num_embeddings), dtype=torch.int64, device=device)
        self.register_buffer("oov_counts", counts, persistent=False)
        if self._mixed:
            self.register_buffer("order", self._order().to(device), persistent=False)
        if self.padding_idx is not None:
            ids = [-1 if each is None else each for each in self.padding_idx]  # no id is -1
            fields = [f for f, width in enumerate(self.widths) for _ in range(width)]
            self.register_buffer("padding", torch.tensor(ids, device=device), persistent=False)  # [F]
            self.register_buffer("field_of_column", torch.tensor(fields, device=device), persistent=False)

    def _per_field(self, name: str, given: Any) -> list[Any]:
        """Returns an option that is one number for all fields, or one for each."""
        fields = len(self.num_embeddings)
        values = list(given) if isinstance(given, Sequence) else [given] * fields
        if len(values) != fields:
            raise ValueError(f"FusedEmbedding: {name} must be one number, or {fields} (one per field), got {values}")
        return values

    def _padding_idx(self, given: int | Sequence[int | None] | None) -> list[int | None] | None:
        """Returns the padding id of each field, counted from 0, or None where no field has one."""
        ids = self._per_field("padding_idx", given)
        for each, rows in zip(ids, self.num_embeddings, strict=True):
            if each is not None and not -rows <= each < rows:
                raise ValueError(
                    f"FusedEmbedding: padding_idx must be -{rows} to {rows - 1} in a field of {rows} rows, got {each}"
                )
        if all(each is None for each in ids):
            return None
        return [None if each is None else each % rows for each, rows in zip(ids, self.num_embeddings, strict=True)]

    def _check(self) -> None:
        fields = len(self.num_embeddings)
        rows = self.num_embeddings
        widths = self.widths
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

    @property
    def out_features(self) -> int:
        """The sum of the widths."""
        return sum(self.widths)

    @property
    def field_offsets(self) -> Tensor:
        """The first row of each field, if all rows are numbered field after field, and their number: int64 [F + 1]."""
        return self.offsets

    def forward(self, ids: Tensor, offsets: Tensor | None = None, per_sample_weights: Tensor | None = None) -> Tensor:
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

        Returns:
            [B, sum of E_f].

        Raises:
            IndexError: an id is out of the range of its field; the message names the position, the id and the range. On
                CUDA, where the host does not wait, the id's vector is zero, and a later look-up or update raises.
            TypeError: ids are neither int32 nor int64.
            ValueError: shapes do not fit.
        """
        given = self._arguments(ids, offsets, per_sample_weights)
        if self.on_bad_id == "raise":
            try:
                return self._look_up(given)
            except IndexError as error:
                raise self._with_name(error) from None
        given, bad = self._without_bad(given)
        out = self._look_up(given)
        self.oov_counts += bad  # after everything that can raise
        return out

    def look_up_field(self, name: str | int, ids: Tensor) -> Tensor:
        """Looks up ids of one field, without pooling.

        Args:
            name: the name of the field, or its position.
            ids: [N], int32 or int64. ``padding_idx`` and ``on_bad_id`` apply as in ``forward``.

        Returns:
            [N, E_f].

        Raises:
            IndexError: an id is out of the range of the field.
            KeyError: there is no such field.
            TypeError: ids are neither int32 nor int64.
        """
        f = self.field(name)
        owner, table, place = self._locate(f)
        if self.on_bad_id == "oov":
            bad = (ids < 0) | (ids >= self.num_embeddings[f])
            self.oov_counts[f] += bad.sum()
            ids = ids.masked_fill(bad, 0)
        rows = rows_of_field(ids, sum(table.num_embeddings[:place]), self.num_embeddings[f])
        whole = owner.offsets[:: len(table.fields)].contiguous()  # [0, R]
        out = table.look_up(owner.weight, whole, rows[:, None], None, None, False)
        padding = None if self.padding_idx is None else self.padding_idx[f]
        return out if padding is None else torch.where((ids == padding)[:, None], out.detach(), out)

    def _arguments(self, ids: Tensor, offsets: Tensor | None, per_sample_weights: Tensor | None) -> _Ids:
        """Returns the arguments with bags of one length as ids [N] and offsets, and factors in the dtype of the ops."""
        if per_sample_weights is not None:
            if per_sample_weights.shape != ids.shape:
                got, expected = list(per_sample_weights.shape), list(ids.shape)
                raise ValueError(f"embedding_bags: per_sample_weights must be {expected}, as the ids, got {got}")
            per_sample_weights = per_sample_weights.to(self._compute_dtype())
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

    def _without_bad(self, given: _Ids) -> tuple[_Ids, Tensor]:
        """Returns the ids with 0 for those out of range, and the number of these in each field, [F]."""
        ids, sizes, fields = given.ids, self.field_offsets.diff(), len(self.num_embeddings)
        if given.offsets is None:
            check_columns("fused_embedding", ids, fields)
            bad = (ids < 0) | (ids >= sizes)  # [B, F]
            count = bad.sum(0)
        else:
            field = self._bag_of_id(ids, given.offsets) % fields
            bad = (ids < 0) | (ids >= sizes[field])  # [N]
            count = torch.zeros_like(self.oov_counts).index_add_(0, field, bad.long())
        return given._replace(ids=ids.masked_fill(bad, 0)), count

    def _bag_of_id(self, ids: Tensor, offsets: Tensor) -> Tensor:
        """Returns the bag of each id of ids [N], [N]."""
        # The CUDA kernels and compiled graphs check later, without making the host wait.
        if not runs_cuda_kernels(ids) and not torch.compiler.is_compiling():
            check_bags("embedding_bags", ids, offsets, None, len(self.num_embeddings))
        return bag_of_id(ids, offsets).clamp(0, max(len(offsets) - 2, 0))  # which matters where offsets are wrong

    def _look_up(self, given: _Ids) -> Tensor:
        mean, padded = self.pooling == "mean", self.padding_idx is not None
        ids, offsets, per_sample_weights = given
        if padded and offsets is not None:
            given, mean = given._replace(factors=self._factors(ids, offsets, per_sample_weights)), False
        if self._mixed:
            out = self._concatenated(given, mean)
        else:
            out = self.by_width[0].look_up(self.weight, self.offsets, *given, mean)
        if padded and offsets is None:
            held = (ids == self.padding).index_select(1, self.field_of_column)  # [B, sum of E_f]
            return torch.where(held, out.detach(), out)
        return out

    def _factors(self, ids: Tensor, offsets: Tensor, per_sample_weights: Tensor | None) -> Tensor:
        """Returns the factors [N] that leave ``padding_idx`` out of the sum or the mean of a bag."""
        bag = self._bag_of_id(ids, offsets)
        counts = ids != self.padding[bag % len(self.num_embeddings)]  # [N]
        if per_sample_weights is None:
            factors = counts.to(self._compute_dtype())
        else:
            factors = per_sample_weights.masked_fill(~counts, 0)
        if self.pooling == "sum":
            return factors
        number = factors.new_zeros(max(len(offsets) - 1, 1)).index_add(0, bag, counts.to(factors.dtype))
        return factors / number.clamp(min=1)[bag]

    def _concatenated(self, given: _Ids, mean: bool) -> Tensor:
        """Looks up the fields of each table, and puts the outputs into field order."""
        ids, offsets, factors = given
        fields = len(self.num_embeddings)
        if offsets is None:
            check_columns("fused_embedding", ids, fields)
        parts = []
        for module, table in zip(self.tables, self.by_width, strict=True):
            try:
                if offsets is None:
                    own = _Ids(ids.index_select(1, module.columns))
                else:
                    own = select_fields(table.fields, ids, offsets, factors, fields)
                parts.append(table.look_up(module.weight, module.offsets, *own, mean))
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

    def _with_name(self, error: IndexError) -> IndexError:
        """Adds the name of the field to the message of an op, which knows its position among all fields."""

        def named(found: re.Match[str]) -> str:
            name = self.field_names[int(found[1])]
            return found[0] if name == found[1] else f"for field {found[1]} ({name!r}),"

        return IndexError(re.sub(r"for field (\d+),", named, str(error)))  # CUDA's message counts those of one table

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

    def extra_repr(self) -> str:
        rows, widths = (_short(numbers) for numbers in (self.num_embeddings, self.widths))
        shown = widths if self._mixed else self.embedding_dim
        padding = "" if self.padding_idx is None else f", padding_idx={self.padding_idx}"
        return f"{len(self.num_embeddings)} fields, num_embeddings={rows}, embedding_dim={shown}{padding}"

    def _owners(self) -> Sequence[FusedEmbedding | TableWeight]:
        """The modules whose ``weight`` and ``offsets`` are those of the tables in ``by_width``."""
        return [*self.tables] if self._mixed else [self]

    def with_squares(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Looks up ids [B, F], and computes the sum of the squares of the result, for a penalty on the looked-up rows.

        Where the CPU kernels apply, the gradient of the sum takes no memory of the size of the result.

        Returns:
            (the vectors [B, sum of E_f], the sum of their squares, 0-dim).

        Raises:
            IndexError, TypeError, ValueError: see ``forward``.
        """
        if not self._fuses_squares(ids):
            looked_up: Tensor = self(ids)
            return looked_up, squared_norm([looked_up])
        try:
            return self.by_width[0].look_up_with_squares(self.weight, self.offsets, ids)
        except IndexError as error:
            raise self._with_name(error) from None

    def _fuses_squares(self, ids: Tensor) -> bool:
        """Returns whether one look-up in one float32 table on the CPU computes the result, in eager mode."""
        if self._mixed or self.padding_idx is not None or self.on_bad_id != "raise" or ids.dim() != 2:
            return False
        if self._forward_hooks or self._forward_pre_hooks or self._backward_hooks or self._backward_pre_hooks:
            return False
        plain = len(self.num_embeddings) == ids.shape[1] and self.weight.dtype == torch.float32
        return plain and self.weight.device.type == "cpu" and is_eager()

    def _compute_dtype(self) -> torch.dtype:
        return torch.float64 if self.table_weights()[0].dtype == torch.float64 else torch.float32

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
            ValueError: the field has more rows already, or another FusedEmbedding shares the parameter.
        """
        f = self.field(name)
        more = rows - self.num_embeddings[f]
        if more < 0:
            raise ValueError(f"FusedEmbedding.grow: field {name!r} has {self.num_embeddings[f]} rows, got {rows}")
        owner, table, place = self._locate(f)
        if any(
            each is owner.weight for other in living_embeddings() if other is not self for each in other.parameters()
        ):
            raise ValueError(
                f"FusedEmbedding.grow: the parameter of field {name!r} must be of this module alone, but another "
                "FusedEmbedding shares it and would keep the rows of before"
            )
        owner.weight = table.grow(owner.weight, place, more)
        self.num_embeddings[f] = rows
        self.offsets[f + 1 :] += more
        if owner is not self:
            owner.offsets[place + 1 :] += more

    def flush(self) -> None:
        """Makes every row current, where an optimizer defers steps; see adaftr_fast.optim.Adam."""
        for weight in self.table_weights():
            flush(weight)

    def train(self, mode: bool = True) -> Self:
        """As nn.Module.train; makes every row current on leaving training."""
        if not mode:
            self.flush()
        return super().train(mode)

    def state_names(self) -> list[str]:
        """Returns the names of the entries of ``state_dict()``."""
        return [*parameter_names(self.widths).values(), EXTRA_STATE]

    def _described(self) -> list[Field]:
        return [Field(*each) for each in zip(self.field_names, self.num_embeddings, self.widths, strict=True)]

    def get_extra_state(self) -> Tensor:
        """Returns the fields for ``state_dict()``, as the bytes of a JSON text, float32 [n].

        safetensors takes tensors alone, and as float32 the bytes survive averages of states and casts to half types.
        """
        text = dumps([asdict(field) for field in self._described()])
        return torch.tensor(list(text.encode()), dtype=torch.float32, device="cpu")

    @torch.no_grad()
    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing: list[str],
        unexpected: list[str],
        errors: list[str],
    ) -> None:
        names = parameter_names(self.widths).values()
        try:
            saved = self._rows_of_others(state_dict, prefix)
        except ValueError as error:
            errors.append(f"{prefix}{EXTRA_STATE}: {error}")
            saved = None
        if saved is not None:
            rows = self._fitting_rows(saved, prefix, missing, unexpected, errors)
            for number, (owner, name) in enumerate(zip(self._owners(), names, strict=True)):
                # Loaded at once, so that there is one table more at a time.
                key, whole = prefix + name, self._whole_table(number, rows)
                if whole is not None:
                    place = key.removesuffix("weight")
                    nn.Module._load_from_state_dict(owner, {key: whole}, place, local_metadata, False, [], [], errors)
                    state_dict[key] = owner.weight.detach()
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing, unexpected, errors)
        loaded = [state_dict[prefix + name] for name in names if prefix + name in state_dict]
        if loaded and self.offsets.is_meta and local_metadata.get("assign_to_params_buffers"):
            self._remake_buffers(loaded[0].device)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """As nn.Module._apply, which ``to_empty()`` calls; the buffers leave the meta device with values."""
        was_meta = self.offsets.is_meta
        super()._apply(fn, recurse)
        if was_meta and not self.offsets.is_meta:
            self._remake_buffers(self.offsets.device)
        return self

    def _remake_buffers(self, device: torch.device) -> None:
        self._make_buffers(device)
        for owner, table in zip(self.tables if self._mixed else (), self.by_width):
            owner.make_buffers(table, device)

    def _rows_of_others(self, state_dict: dict[str, Any], prefix: str) -> dict[str, Tensor] | None:
        """Takes the rows of each field out of a state dict whose tables are not those of this module.

        Returns:
            The rows by the names of the fields; None if the tables are this module's, or those of torch.nn.

        Raises:
            ValueError: the description of the fields is damaged.
        """
        described = state_dict.pop(prefix + EXTRA_STATE, None)
        if described is None:
            if any(prefix + name in state_dict for name in self.state_names()):
                return None
            start = f"{prefix}weight."
            of_fields = [key for key in state_dict if key.startswith(start)]
            return {key.removeprefix(start): state_dict.pop(key) for key in of_fields} or None
        fields = from_json(list[Field], loads(bytes(described.float().flatten().round().byte().tolist()).decode()))
        if fields == self._described():
            return None
        names = parameter_names(field.width for field in fields).values()
        tables = {name: state_dict.pop(prefix + name) for name in names if prefix + name in state_dict}
        return split_tables(fields, tables)

    def _fitting_rows(
        self, saved: Mapping[str, Tensor], prefix: str, missing: list[str], unexpected: list[str], errors: list[str]
    ) -> dict[str, Tensor]:
        """Returns the saved rows that fit the fields of this module, and notes what does not."""
        fitting = {}
        for field in self._described():
            key, size = f"{prefix}weight.{field.name}", [field.rows, field.width]
            if field.name not in saved:
                missing.append(key)
            elif list(saved[field.name].shape) == size:
                fitting[field.name] = saved[field.name]
            else:
                errors.append(
                    f"size mismatch for {key}: {list(saved[field.name].shape)} in the checkpoint, {size} here"
                )
        unexpected.extend(f"{prefix}weight.{name}" for name in saved if name not in self.field_names)
        return fitting

    def _whole_table(self, number: int, rows: Mapping[str, Tensor]) -> Tensor | None:
        """Returns one table of this module, [R, E], whose fields have the given rows, or else their own.

        None where some are given and some on the meta device.
        """
        names = self.by_width[number].field_names
        given = [rows[name] for name in names if name in rows]
        if not given:
            return self.table_weights()[number].detach()
        parts = [rows[name] if name in rows else self.field_weight(name) for name in names]
        if len({part.is_meta for part in parts}) > 1:
            return None
        return torch.cat([part.to(given[0].device) for part in parts])

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        _living[next(_numbers)] = self


class _Ids(NamedTuple):
    """The arguments of a look-up in one table."""

    ids: Tensor
    offsets: Tensor | None = None
    factors: Tensor | None = None


def select_fields(
    chosen: list[int],
    ids: Tensor,
    offsets: Tensor,
    per_sample_weights: Tensor | None,
    fields: int,
    fill: int = PAD,
) -> _Ids:
    """Returns the ids [M], offsets and factors of some fields; on CUDA [N] ids, ``fill`` behind the last bag."""
    kept, starts = select_bags(ids, offsets, per_sample_weights, chosen, fields)
    own = ids[kept]
    if runs_cuda_kernels(ids):  # the positions from the last offset on have no meaning
        own = own.masked_fill(torch.arange(len(own), device=own.device) >= starts[-1], fill)
    return _Ids(own, starts, None if per_sample_weights is None else per_sample_weights[kept])


def _short(numbers: list[int]) -> str:
    return str(numbers) if len(numbers) <= 8 else f"[{', '.join(map(str, numbers[:3]))}, ..., {numbers[-1]}]"


_living: weakref.WeakValueDictionary[int, FusedEmbedding] = weakref.WeakValueDictionary()
_numbers = itertools.count()


def living_embeddings() -> list[FusedEmbedding]:
    """Returns the FusedEmbedding modules that exist, in the order in which they were made."""
    return list(_living.values())


def tables_of(modules: Iterable[nn.Module]) -> dict[nn.Parameter, EmbeddingTable]:
    """Returns the tables of the FusedEmbedding modules in ``modules``, by their parameters.

    A parameter that several of them hold has the table of the first.
    """
    found: dict[nn.Parameter, EmbeddingTable] = {}
    for module in (each for root in modules for each in root.modules()):
        if isinstance(module, FusedEmbedding):
            for weight, table in zip(module.table_weights(), module.by_width, strict=True):
                found.setdefault(weight, table)
    return found
