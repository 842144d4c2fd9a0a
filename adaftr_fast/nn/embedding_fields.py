"""The fields of an embedding, and how their ids become the arguments of look-ups in tables.

B batch, F fields, E_f width of field f, N ids of all bags together.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack

from adaftr_fast.nn.embedding_table import EmbeddingTable, Ids, field_offsets
from adaftr_fast.ops.embedding.bags import PAD, bag_of_id, select_bags
from adaftr_fast.ops.embedding.lookup import runs_cuda_kernels
from adaftr_fast.ops.embedding.reference.bags import check_bags, compute_dtype, resolve_ids
from adaftr_fast.ops.embedding.reference.lookup import (
    check_columns,
    check_ids,
    named_field,
    values_of,
)
from adaftr_fast.ops.embedding.segments import check_field, max_bags, rows_of_field, sum_bags
from adaftr_fast.ops.library import check_local

Pooling = Literal["mean", "sum", "max"]


class EmbeddingFields(nn.Module):
    """The fields of an embedding and the options of its look-ups.

    The fields of one width form one table, which a subclass stores and looks up.

    Args: those of :class:`adaftr_fast.FusedEmbedding`.
    """

    offsets: Tensor  # field_offsets; checkpoints of unfinished runs have it under this name
    oov_counts: Tensor
    order: Tensor
    padding: Tensor
    field_of_column: Tensor
    averages: Tensor

    def __init__(
        self,
        num_embeddings: Sequence[int],
        embedding_dim: int | Sequence[int],
        *,
        field_names: Sequence[str] | None = None,
        pooling: Pooling | Sequence[Pooling] = "mean",
        include_last_offset: bool = True,
        padding_idx: int | Sequence[int | None] | None = None,
        on_bad_id: Literal["raise", "oov"] = "raise",
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(num_embeddings, Iterable):
            kind = type(num_embeddings).__name__
            raise TypeError(
                f"FusedEmbedding: num_embeddings must be a list, one number per field, got {kind}"
            )
        self.num_embeddings = [int(rows) for rows in num_embeddings]
        self.field_names = list(field_names or map(str, range(len(self.num_embeddings))))
        self.widths = self._per_field("embedding_dim", embedding_dim)
        kinds = self._per_field("pooling", pooling if isinstance(pooling, str) else list(pooling))
        self.pooling: Pooling | list[Pooling] = kinds[0] if len(set(kinds)) == 1 else kinds
        self.include_last_offset = include_last_offset
        self.on_bad_id = on_bad_id
        self._check()
        self.padding_idx = self._padding_idx(padding_idx)
        self.by_width = [self._table(width) for width in sorted(set(self.widths))]
        self.embedding_dim: int | list[int] = self.widths if self._mixed else self.widths[0]
        self._make_buffers(device)

    def _owners(self) -> Sequence[Any]:
        """Returns the modules that hold the tables in ``by_width``, with the buffers of
        :class:`TableFields` and the method ``_look_up_ids`` of :class:`HoldsTable`.
        """
        raise NotImplementedError

    def _compute_dtype(self) -> torch.dtype:
        """Returns the dtype of the factors of ids."""
        return compute_dtype(self._owners()[0].weight)

    def _make_buffers(self, device: torch.device | str | None) -> None:
        """Makes the buffers, which state dicts leave out; again, for a module that was on the meta
        device.
        """
        self.register_buffer(
            "offsets", field_offsets(self.num_embeddings, device), persistent=False
        )
        counts = torch.zeros(len(self.num_embeddings), dtype=torch.int64, device=device)
        self.register_buffer("oov_counts", counts, persistent=False)
        if self._mixed:
            self.register_buffer("order", self._order().to(device), persistent=False)
        if not isinstance(self.pooling, str):
            averages = torch.tensor([each == "mean" for each in self.pooling], device=device)  # [F]
            self.register_buffer("averages", averages, persistent=False)
        if self.padding_idx is not None:
            ids = [-1 if each is None else each for each in self.padding_idx]  # no id is -1
            fields = [f for f, width in enumerate(self.widths) for _ in range(width)]
            # [F]
            self.register_buffer("padding", torch.tensor(ids, device=device), persistent=False)
            self.register_buffer(
                "field_of_column", torch.tensor(fields, device=device), persistent=False
            )

    def _per_field(self, name: str, given: Any) -> list[Any]:
        """Returns an option that is one number for all fields, or one for each."""
        fields = len(self.num_embeddings)
        several = isinstance(given, Sequence) and not isinstance(given, str)
        values = list(given) if several else [given] * fields
        if len(values) != fields:
            raise ValueError(
                f"FusedEmbedding: {name} must be one for all fields, or {fields} (one per field), got "
                f"{values}"
            )
        return values

    def _padding_idx(self, given: int | Sequence[int | None] | None) -> list[int | None] | None:
        """Returns the padding id of each field, counted from 0, or None where no field has one."""
        ids = self._per_field("padding_idx", given)
        for each, rows in zip(ids, self.num_embeddings, strict=True):
            if each is not None and not -rows <= each < rows:
                raise ValueError(
                    f"FusedEmbedding: padding_idx must be -{rows} to {rows - 1} in a field of "
                    f"{rows} rows, got {each}"
                )
        if all(each is None for each in ids):
            return None
        return [
            None if each is None else each % rows
            for each, rows in zip(ids, self.num_embeddings, strict=True)
        ]

    def _check(self) -> None:
        fields = len(self.num_embeddings)
        rows = self.num_embeddings
        widths = self.widths
        if not fields or min(rows) < 1:
            raise ValueError(
                f"FusedEmbedding: num_embeddings must be one number >= 1 per field, got {rows}"
            )
        if min(widths) < 1:
            got = widths if len(set(widths)) > 1 else widths[0]
            raise ValueError(f"FusedEmbedding: embedding_dim must be >= 1, got {got}")
        if not len(set(self.field_names)) == fields == len(self.field_names):
            raise ValueError(
                f"FusedEmbedding: field_names must be {fields} distinct names, got "
                f"{self.field_names}"
            )
        kinds = [self.pooling] if isinstance(self.pooling, str) else self.pooling
        if not {"mean", "sum", "max"}.issuperset(kinds):
            raise ValueError(
                f"FusedEmbedding: pooling must be 'mean', 'sum' or 'max', got {self.pooling!r}"
            )
        if self.on_bad_id not in ("raise", "oov"):
            raise ValueError(
                f"FusedEmbedding: on_bad_id must be 'raise' or 'oov', got {self.on_bad_id!r}"
            )

    def _table(self, width: int) -> EmbeddingTable:
        fields = [f for f, own in enumerate(self.widths) if own == width]
        names = [self.field_names[f] for f in fields]
        return EmbeddingTable(fields, names, [self.num_embeddings[f] for f in fields], width)

    def _order(self) -> Tensor:
        """Where each output column is found in the concatenated outputs of the tables,
        [sum of E_f].
        """
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
        """The first row of each field, if all rows are numbered field after field, and their
        number: int64 [F + 1].
        """
        return self.offsets

    def forward(
        self, ids: Tensor, offsets: Tensor | None = None, per_sample_weights: Tensor | None = None
    ) -> Tensor:
        """Looks up ``ids``, one id per field or bags of ids.

        Args:
            ids: int32 or int64; the ids of field f count from 0.

                - [B, F]: one id per field.
                - [B, F, L], or [B, L] where there is one field: bags of L ids.
                - [N] with ``offsets``: the ids of all bags, row after row and within a row field
                  after field.
            offsets: [B * F + 1], int32 or int64, from 0 to N in non-decreasing order: where each
                bag begins. An empty bag gives zeros. With ``include_last_offset=False``, [B * F],
                without N.
            per_sample_weights: factors of the ids, of their shape. Their gradient is that of
                torch.nn.EmbeddingBag. With pooling="mean", which torch.nn.EmbeddingBag refuses with
                them, the weighted sum is divided by the number of ids in the bag: for the weighted
                average, pass factors with a mean of 1. None where a field has pooling="max".

        torch.func's vmap takes one of its batches per call, so ``vmap(grad(loss))`` gives gradients
        per sample. Where offsets differ between samples, all fields must have one width.

        Returns:
            [B, sum of E_f].

        Raises:
            IndexError: an id is out of the range of its field; the message names the position, the
                id and the range. On CUDA, where the host does not wait, the id's vector is zero,
                and a later look-up or update raises.
            TypeError: ids are neither int32 nor int64.
            ValueError: shapes do not fit.
        """
        given = self._arguments(ids, offsets, per_sample_weights)
        if self.on_bad_id == "raise":
            try:
                return self._look_up(given)
            except IndexError:
                self._check_ids(given.ids, given.offsets)
                raise
        given, bad = self._without_bad(given)
        out = self._look_up(given)
        _count(self.oov_counts, bad)  # after everything that can raise
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
            ValueError: ids are not [N].
        """
        f = self.field(name)
        bad: Tensor | None = None
        if self.on_bad_id == "oov":
            bad = (ids < 0) | (ids >= self.num_embeddings[f])
            ids = ids.masked_fill(bad, 0)
        try:
            rows = self._rows(f, ids)
        except IndexError:
            check_field(ids, self.num_embeddings[f], named_field(f, self.field_names))
            raise
        out = self._look_up_rows(self._locate(f)[0], rows)
        if bad is not None:  # after everything that can raise
            _count(self.oov_counts[f : f + 1], bad.sum()[None])
        padding = None if self.padding_idx is None else self.padding_idx[f]
        return out if padding is None else torch.where((ids == padding)[:, None], out.detach(), out)

    def _arguments(
        self, ids: Tensor, offsets: Tensor | None, per_sample_weights: Tensor | None
    ) -> Ids:
        """Returns the arguments with bags of one length as ids [N] and offsets, and factors in the
        dtype of the ops.
        """
        check_local(type(self).__name__, "ids", ids)
        if per_sample_weights is not None:
            if per_sample_weights.shape != ids.shape:
                got = list(per_sample_weights.shape)
                expected = list(ids.shape)
                raise ValueError(
                    f"embedding_bags: per_sample_weights must be {expected}, as the ids, got {got}"
                )
            per_sample_weights = per_sample_weights.to(self._compute_dtype())
        if offsets is not None:
            offsets = offsets.long() if offsets.dtype == torch.int32 else offsets
            if not self.include_last_offset:
                offsets = torch.cat([offsets, offsets.new_full((1,), ids.shape[0])])
            return Ids(ids, offsets, per_sample_weights)
        fields = len(self.num_embeddings)
        if ids.dim() == 2 and fields == 1 and ids.shape[1] != 1:
            ids = ids[:, None]  # [B, 1, L]
        if ids.dim() == 2 and per_sample_weights is not None:
            ids = ids[:, :, None]  # [B, F, 1]
        if ids.dim() != 3:
            return Ids(ids)
        if ids.shape[1] != fields:
            raise ValueError(
                f"fused_embedding: ids must be [B, {fields}] or [B, {fields}, L], got "
                f"{list(ids.shape)}"
            )
        offsets = torch.arange(ids.shape[0] * fields + 1, device=ids.device) * ids.shape[2]
        return Ids(
            ids.flatten(),
            offsets,
            None if per_sample_weights is None else per_sample_weights.flatten(),
        )

    def _without_bad(self, given: Ids) -> tuple[Ids, Tensor]:
        """Returns the ids with 0 for those out of range, and the number of these in each field,
        [F].
        """
        ids = given.ids
        sizes = self.field_offsets.diff()
        fields = len(self.num_embeddings)
        if given.offsets is None:
            check_columns("fused_embedding", ids, fields)
            bad = (ids < 0) | (ids >= sizes)  # [B, F]
            count = bad.sum(0)
        else:
            field = self._bag_of_id(ids, given.offsets) % fields
            bad = (ids < 0) | (ids >= sizes[field])  # [N]
            count = torch.zeros_like(self.oov_counts).scatter_add(0, field, bad.long())
        return given._replace(ids=ids.masked_fill(bad, 0)), count

    def _bag_of_id(self, ids: Tensor, offsets: Tensor) -> Tensor:
        """Returns the bag of each id of ids [N], [N]."""
        # The CUDA kernels and compiled graphs check later, without making the host wait.
        if not runs_cuda_kernels(ids) and not torch.compiler.is_compiling():
            check_bags("embedding_bags", ids, offsets, None, len(self.num_embeddings))
        # len() would make the number of bags a constant of exported programs
        last = max(offsets.shape[0] - 2, 0)
        return bag_of_id(ids, offsets).clamp(0, last)  # which matters where offsets are wrong

    def _look_up(self, given: Ids) -> Tensor:
        mean = self.pooling == "mean"
        padded = self.padding_idx is not None
        ids, offsets, per_sample_weights = given
        if offsets is not None and (padded or self.pooling not in ("mean", "sum")):
            if "max" in self.pooling and per_sample_weights is not None:
                raise ValueError(
                    "embedding_bags: per_sample_weights must be None where a field has pooling "
                    f"'max', got {list(per_sample_weights.shape)}"
                )
            given = given._replace(factors=self._factors(ids, offsets, per_sample_weights))
            if "max" in self.pooling:
                return self._pooled_by_field(given)
            mean = False
        out = (
            self._concatenated(given, mean)
            if self._mixed
            else self._owners()[0]._look_up_ids(self.offsets, given, mean)
        )
        if padded and offsets is None:
            held = (ids == self.padding).index_select(1, self.field_of_column)  # [B, sum of E_f]
            return torch.where(held, out.detach(), out)
        return out

    def _factors(self, ids: Tensor, offsets: Tensor, per_sample_weights: Tensor | None) -> Tensor:
        """Returns the factors [N] by which the sum of a bag is that of its field's pooling, without
        ``padding_idx``.
        """
        bag = self._bag_of_id(ids, offsets)
        field = bag % len(self.num_embeddings)
        counts = torch.ones_like(ids, dtype=torch.bool)  # [N]
        if self.padding_idx is not None:
            counts = ids != self.padding[field]
        if per_sample_weights is None:
            factors = counts.to(self._compute_dtype())
        else:
            factors = per_sample_weights.masked_fill(~counts, 0)
        if self.pooling in ("sum", "max"):
            return factors
        number = factors.new_zeros(max(offsets.shape[0] - 1, 1)).scatter_add(
            0, bag, counts.to(factors.dtype)
        )
        number = number.clamp(min=1)[bag]
        if self.pooling != "mean":
            number = torch.where(self.averages[field], number, 1)
        return factors / number

    def _pooled_by_field(self, given: Ids) -> Tensor:
        """Looks up the ids of each field, and pools them; their factors are those of
        ``_factors``.
        """
        ids, offsets, factors = given
        assert offsets is not None
        fields = len(self.num_embeddings)
        kinds = self._per_field("pooling", self.pooling)
        pooled: dict[int, Tensor] = {}
        for number, table in enumerate(self.by_width):
            bags = [select_fields([f], ids, offsets, factors, fields, fill=0) for f in table.fields]
            rows = [self._rows(f, own.ids) for f, own in zip(table.fields, bags)]
            # one look-up per table, since torch cannot add the sparse gradients of several in float16
            found = self._look_up_rows(number, torch.cat(rows))
            parts = found.split([each.shape[0] for each in rows])
            for f, (_, starts, weights), vectors in zip(table.fields, bags, parts):
                assert starts is not None
                assert weights is not None
                if kinds[f] == "max":
                    pooled[f] = max_bags(vectors, starts, weights > 0)
                else:
                    terms = vectors.to(weights.dtype) * weights[:, None]
                    pooled[f] = sum_bags(terms, starts).to(vectors.dtype)
        return torch.cat([pooled[f] for f in range(fields)], 1)

    def _rows(self, f: int, ids: Tensor) -> Tensor:
        """Returns the rows of ids [N] of field f in its table, int64 [N]."""
        number, place = self._locate(f)
        first = sum(self.by_width[number].num_embeddings[:place])
        return rows_of_field(ids, first, self.num_embeddings[f])

    def _look_up_rows(self, number: int, rows: Tensor) -> Tensor:
        """Looks up rows [N] of one table of ``by_width``, [N, E]."""
        owner = self._owners()[number]
        whole = owner.offsets[:: len(self.by_width[number].fields)].contiguous()  # [0, R]
        vectors: Tensor = owner._look_up_ids(whole, Ids(rows[:, None]), False)
        return vectors

    def _concatenated(self, given: Ids, mean: bool) -> Tensor:
        """Looks up the fields of each table, and puts the outputs into field order."""
        ids, offsets, factors = given
        fields = len(self.num_embeddings)
        if offsets is None:
            check_columns("fused_embedding", ids, fields)
        parts = []
        for owner, table in zip(self._owners(), self.by_width, strict=True):
            if offsets is None:
                own = Ids(ids.index_select(1, owner.columns))
            else:
                own = select_fields(table.fields, ids, offsets, factors, fields)
            parts.append(owner._look_up_ids(owner.offsets, own, mean))
        return torch.cat(parts, 1)[:, self.order]

    def _check_ids(self, ids: Tensor, offsets: Tensor | None = None) -> None:
        """Raises IndexError for the first bad id, by its position among all fields and its field's
        name; a table knows only the fields of its width.
        """
        if runs_cuda_kernels(ids):  # an id of an earlier call is bad
            return
        op = type(self).__name__
        if offsets is None:
            check_ids(op, ids, self.field_offsets, self.field_names)
        else:
            resolve_ids(op, ids, offsets, None, self.field_offsets, self.field_names)

    def field(self, name: str | int) -> int:
        """Returns the position of a field, given by name or position.

        Raises:
            KeyError: there is no such field.
        """
        if isinstance(name, int) and 0 <= name < len(self.num_embeddings):
            return name
        if name not in self.field_names:
            raise KeyError(
                f"{type(self).__name__}: no field {name!r}, there are {self.field_names}"
            )
        return self.field_names.index(name)

    def _locate(self, f: int) -> tuple[int, int]:
        """Returns the number of the table of field f in ``by_width``, and the field's place in the
        table.
        """
        number = next(number for number, table in enumerate(self.by_width) if f in table.fields)
        return number, self.by_width[number].fields.index(f)

    def extra_repr(self) -> str:
        rows, widths = (_short(numbers) for numbers in (self.num_embeddings, self.widths))
        shown = widths if self._mixed else self.embedding_dim
        parts = [f"{len(self.num_embeddings)} fields, num_embeddings={rows}, embedding_dim={shown}"]
        parts += [] if self.padding_idx is None else [f"padding_idx={self.padding_idx}"]
        parts += [] if self.pooling == "mean" else [f"pooling={self.pooling!r}"]
        parts += [] if self.include_last_offset else ["include_last_offset=False"]
        parts += [] if self.on_bad_id == "raise" else [f"on_bad_id={self.on_bad_id!r}"]
        return ", ".join(parts)


def _count(counts: Tensor, bad: Tensor) -> None:
    """Adds the numbers of replaced ids, those of all samples under vmap, to the counts of their
    fields.

    A look-up within a backward pass repeats an earlier one, as torch.utils.checkpoint does.
    """
    if torch.compiler.is_compiling():
        counts += bad
    elif torch._C._current_graph_task_id() == -1:
        with temporarily_clear_interpreter_stack():  # torch.func refuses to write what it captures
            counts += values_of(bad).reshape(-1, len(counts)).sum(0)


def select_fields(
    chosen: list[int],
    ids: Tensor,
    offsets: Tensor,
    per_sample_weights: Tensor | None,
    fields: int,
    fill: int = PAD,
) -> Ids:
    """Returns the ids [M], offsets and factors of some fields; on CUDA [N] ids, ``fill`` behind the
    last bag.
    """
    kept, starts = select_bags(ids, offsets, per_sample_weights, chosen, fields)
    own = ids[kept]
    if runs_cuda_kernels(ids):  # the positions from the last offset on have no meaning
        own = own.masked_fill(torch.arange(len(own), device=own.device) >= starts[-1], fill)
    return Ids(own, starts, None if per_sample_weights is None else per_sample_weights[kept])


def _short(numbers: list[int]) -> str:
    return (
        str(numbers)
        if len(numbers) <= 8
        else f"[{', '.join(map(str, numbers[:3]))}, ..., {numbers[-1]}]"
    )
