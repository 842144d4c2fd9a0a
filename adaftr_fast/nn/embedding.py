"""All embedding fields of a model as one module (the e_r of the paper's §2.1)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any, NoReturn, Self, Unpack

import torch
from torch import Tensor, nn

from adaftr_fast.nn.embedding_table import EmbeddingTable, Options, check_fields
from adaftr_fast.ops.embedding.reference.bags import check_bags, places
from adaftr_fast.ops.embedding.reference.lookup import check_columns, check_ids


class FusedEmbedding(EmbeddingTable):
    """Looks up the ids of F fields and lays their vectors side by side.

    B batch, F fields, E width, R rows of all fields together, N ids of all bags together.

    All fields live in one parameter ``weight`` [R, E], one after another, drawn from N(0, .01²).
    ``weight.grad`` is a coalesced sparse tensor that holds the rows of the batch, so torch.optim.SGD, Adagrad
    and SparseAdam work unchanged; adaftr_fast.optim is faster and has Adam as on the dense table.
    ``state_dict()`` has one entry a field, ``weight.<field name>``. Fields of different widths have one such
    parameter a width, ``tables[i].weight``; all else is the same.

    Args:
        num_embeddings: rows of each field, F numbers >= 1.
        embedding_dim: E >= 1, the width of every field, or F of them.
        field_names: F distinct names; "0", "1", ... by default.
        pooling: how the ids of a multi-valued field become one vector, "mean" or "sum".
        on_bad_id: "raise", or "oov" to look up row 0 of the field instead of an id that is out of range and to
            count it in ``oov_counts`` [F].
        device: where the weights are.
        dtype: of the weights, float32 (default), float64, bfloat16 or float16. Arithmetic on half-precision
            tables, and the state of our optimizers, is in float32.

    Raises:
        ValueError: no field, one without rows, a width below 1 or not one a field, wrong names, an unknown option.
    """

    def __new__(
        cls, num_embeddings: Sequence[int] = (), embedding_dim: int | Sequence[int] = 1, **options: Unpack[Options]
    ) -> Self:
        """An object that takes fields of different widths, where they are (copies come here without arguments)."""
        differ = isinstance(embedding_dim, Sequence) and len(set(embedding_dim)) > 1
        return super().__new__(MixedWidths if differ and cls is FusedEmbedding else cls)

    def __init__(
        self, num_embeddings: Sequence[int], embedding_dim: int | Sequence[int], **options: Unpack[Options]
    ) -> None:
        widths = widths_of(num_embeddings, embedding_dim)
        super().__init__(num_embeddings, widths[0] if widths else 1, **options)


def widths_of(num_embeddings: Sequence[int], embedding_dim: int | Sequence[int]) -> list[int]:
    """One width a field."""
    fields = len(num_embeddings)
    widths = list(embedding_dim) if isinstance(embedding_dim, Sequence) else [int(embedding_dim)] * fields
    if len(widths) != fields:
        raise ValueError(f"FusedEmbedding: embedding_dim must be one number, or {fields} (one a field), got {widths}")
    return widths


class MixedWidths(FusedEmbedding):
    """What ``FusedEmbedding`` makes of fields of different widths: a table a width, put back into field order.

    E_f is the width of field f.
    """

    order: Tensor

    def __init__(self, num_embeddings: Sequence[int], embedding_dim: Sequence[int], **options: Unpack[Options]) -> None:
        nn.Module.__init__(self)
        self.num_embeddings, self.embedding_dim = list(num_embeddings), widths_of(num_embeddings, embedding_dim)
        self.field_names = list(options.pop("field_names", None) or map(str, range(len(self.num_embeddings))))
        check_fields(self.num_embeddings, self.embedding_dim, self.field_names)
        self.members = [[f for f, e in enumerate(embedding_dim) if e == width] for width in sorted(set(embedding_dim))]
        self.tables = nn.ModuleList(
            EmbeddingTable(
                [num_embeddings[f] for f in fields],
                embedding_dim[fields[0]],
                field_names=[self.field_names[f] for f in fields],
                **options,
            )
            for fields in self.members
        )
        self.register_buffer("order", self._order().to(options.get("device")), persistent=False)  # [out_features]
        self.register_state_dict_post_hook(_without_tables)
        self.register_load_state_dict_pre_hook(_with_tables)

    def _order(self) -> Tensor:
        """Where each output column stands when the tables' outputs are laid side by side."""
        columns: dict[int, Tensor] = {}
        at = 0
        for f in (f for fields in self.members for f in fields):
            columns[f] = torch.arange(at, at + self.embedding_dim[f])
            at += self.embedding_dim[f]
        return torch.cat([columns[f] for f in range(len(columns))])

    def reset_parameters(self) -> None:
        """Draw the weights from N(0, .01²)."""
        for table in self.tables:
            table.reset_parameters()

    @property
    def out_features(self) -> int:
        """Sum of the widths."""
        return sum(self.embedding_dim)

    @property
    def offsets(self) -> Tensor:
        """Where each field would begin if all rows stood one after another, [F + 1]."""
        return torch.tensor([0, *accumulate(self.num_embeddings)], device=self.order.device)

    @property
    def oov_counts(self) -> Tensor:
        """As ``FusedEmbedding.oov_counts``, a copy, [F]."""
        counts = torch.zeros(len(self.num_embeddings), dtype=torch.int64, device=self.order.device)
        for table, fields in zip(self.tables, self.members, strict=True):
            counts[fields] = table.oov_counts
        return counts

    def forward(self, ids: Tensor, offsets: Tensor | None = None, weights: Tensor | None = None) -> Tensor:
        """As ``FusedEmbedding.forward`` -> [B, sum of E_f]."""
        count, bags = len(self.num_embeddings), None
        if offsets is None:
            check_columns("fused_embedding", ids, count)
        else:
            check_bags("embedding_bags", ids, offsets, weights, count)
            bags = offsets.diff().reshape(-1, count)  # [B, F], ids in each bag
        parts = []
        for table, fields in zip(self.tables, self.members, strict=True):
            chosen = (ids[:, fields],) if bags is None else self._bags_of(fields, ids, bags, weights)
            try:
                parts.append(table(*chosen))
            except IndexError:
                self._raise_bad_id(ids, offsets)
        return torch.cat(parts, 1)[:, self.order]

    def _bags_of(
        self, fields: list[int], values: Tensor, counts: Tensor, weights: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """The bags of some fields alone."""
        chosen = torch.zeros_like(counts, dtype=torch.bool)
        chosen[:, fields] = True
        keep = chosen.flatten().repeat_interleave(counts.flatten())  # [N]
        ends = counts[:, fields].flatten().cumsum(0)
        return values[keep], torch.cat([ends.new_zeros(1), ends]), None if weights is None else weights[keep]

    def _raise_bad_id(self, ids: Tensor, offsets: Tensor | None) -> NoReturn:
        """Name the id by its place among all fields; a table knows only those of its width."""
        if offsets is None:
            check_ids("fused_embedding", ids, self.offsets)
        else:
            places("embedding_bags", ids, offsets, None, self.offsets)
        raise AssertionError("FusedEmbedding: a table refused ids that are all in range")

    def _table_of(self, name: str | int) -> tuple[EmbeddingTable, int]:
        f = self.field(name)
        return next(t for t, fields in zip(self.tables, self.members, strict=True) if f in fields), f

    def field_weight(self, name: str | int) -> Tensor:
        """As ``FusedEmbedding.field_weight``: [rows, E_f]."""
        table, f = self._table_of(name)
        return table.field_weight(self.field_names[f])

    def grow(self, name: str | int, rows: int) -> None:
        """As ``FusedEmbedding.grow``."""
        table, f = self._table_of(name)
        table.grow(self.field_names[f], rows)
        self.num_embeddings[f] = rows

    def flush(self) -> None:
        """Make every row current, where an optimizer defers steps."""
        for table in self.tables:
            table.flush()

    # State is the tables', under names without them.
    _save_to_state_dict = nn.Module._save_to_state_dict
    _load_from_state_dict = nn.Module._load_from_state_dict
    __setstate__ = nn.Module.__setstate__

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__


def _names(module: MixedWidths, prefix: str) -> list[tuple[str, str]]:
    """Each field's name in ``state_dict()``, and the one its table has for it."""
    pairs = []
    for name in module.field_names:
        table, _ = module._table_of(name)
        number = list(module.tables).index(table)
        pairs.append((f"{prefix}weight.{name}", f"{prefix}tables.{number}.weight.{name}"))
    return pairs


def _without_tables(module: MixedWidths, state_dict: dict[str, Tensor], prefix: str, local_metadata: Any) -> None:
    for ours, theirs in _names(module, prefix):
        state_dict[ours] = state_dict.pop(theirs)


def _with_tables(module: MixedWidths, state_dict: dict[str, Tensor], prefix: str, *rest: Any) -> None:
    for ours, theirs in _names(module, prefix):
        if ours in state_dict:
            state_dict[theirs] = state_dict.pop(ours)
