"""Fields of different widths: one FusedEmbedding for each width, put back into field order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from adaftr_fast.nn.embedding import FusedEmbedding


class MixedEmbedding(nn.Module):
    """``FusedEmbedding`` whose fields have a width each.

    B batch, F fields, E_f width of field f, N ids of all bags together.

    adaftr_fast.optim finds the tables within: give it this module.

    Args:
        num_embeddings: rows of each field, F numbers >= 1.
        embedding_dims: width of each field, F numbers >= 1.
        field_names: F distinct names; "0", "1", ... by default.
        options: as of FusedEmbedding: pooling, on_bad_id, device, dtype.

    Raises:
        ValueError: not one width a field, or as FusedEmbedding.
    """

    order: Tensor

    def __init__(
        self,
        num_embeddings: Sequence[int],
        embedding_dims: Sequence[int],
        *,
        field_names: Sequence[str] | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        names = list(field_names or map(str, range(len(num_embeddings))))
        if not len(num_embeddings) == len(embedding_dims) == len(names):
            raise ValueError(
                f"MixedEmbedding: num_embeddings, embedding_dims and field_names must be one a field, got "
                f"{len(num_embeddings)}, {len(embedding_dims)} and {len(names)}"
            )
        self.embedding_dims, self.field_names = list(embedding_dims), names
        self.fields = [[f for f, e in enumerate(embedding_dims) if e == width] for width in sorted(set(embedding_dims))]
        self.tables = nn.ModuleList(
            FusedEmbedding(
                [num_embeddings[f] for f in fields],
                embedding_dims[fields[0]],
                field_names=[names[f] for f in fields],
                **options,
            )
            for fields in self.fields
        )
        self.register_buffer("order", self._order().to(options.get("device")), persistent=False)  # [out_features]

    def _order(self) -> Tensor:
        """Where each output column stands when the tables' outputs are laid side by side."""
        columns: dict[int, Tensor] = {}
        at = 0
        for f in (f for fields in self.fields for f in fields):
            columns[f] = torch.arange(at, at + self.embedding_dims[f])
            at += self.embedding_dims[f]
        return torch.cat([columns[f] for f in range(len(columns))])

    @property
    def out_features(self) -> int:
        """Sum of the widths."""
        return sum(self.embedding_dims)

    def forward(self, ids: Tensor, offsets: Tensor | None = None, weights: Tensor | None = None) -> Tensor:
        """As ``FusedEmbedding.forward`` -> [B, sum of E_f]; errors count fields within the table of their width."""
        if offsets is None:
            parts = [table(ids[:, fields]) for table, fields in zip(self.tables, self.fields, strict=True)]
        else:
            parts = [
                table(*self._bags_of(fields, ids, offsets, weights))
                for table, fields in zip(self.tables, self.fields, strict=True)
            ]
        return torch.cat(parts, 1)[:, self.order]

    def _bags_of(
        self, fields: list[int], values: Tensor, offsets: Tensor, weights: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """The bags of some fields alone."""
        counts = offsets.diff().reshape(-1, len(self.field_names))  # [B, F]
        chosen = torch.zeros_like(counts, dtype=torch.bool)
        chosen[:, fields] = True
        keep = chosen.flatten().repeat_interleave(counts.flatten())  # [N]
        ends = counts[:, fields].flatten().cumsum(0)
        return values[keep], torch.cat([ends.new_zeros(1), ends]), None if weights is None else weights[keep]

    def field_weight(self, name: str | int) -> Tensor:
        """As ``FusedEmbedding.field_weight``: [rows, E_f].

        Raises:
            KeyError: there is no such field.
        """
        known = isinstance(name, int) and 0 <= name < len(self.field_names)
        if not known and name not in self.field_names:
            raise KeyError(f"MixedEmbedding: no field {name!r}, there are {self.field_names}")
        f = name if isinstance(name, int) else self.field_names.index(name)
        table = next(t for t, fields in zip(self.tables, self.fields, strict=True) if f in fields)
        return table.field_weight(self.field_names[f])

    def flush(self) -> None:
        """Make every row current, where an optimizer defers steps."""
        for table in self.tables:
            table.flush()
