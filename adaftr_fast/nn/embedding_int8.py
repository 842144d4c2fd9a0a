"""Embedding fields with int8 rows, for serving."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from adaftr_fast.nn.embedding_fields import EmbeddingFields
from adaftr_fast.nn.embedding_table import EmbeddingTable, TableFields
from adaftr_fast.nn.module_list import ModuleList
from adaftr_fast.ops.embedding.bags import unpadded
from adaftr_fast.ops.embedding.int8 import sum_rows, unpack_rows
from adaftr_fast.ops.embedding.reference.bags import resolve_ids
from adaftr_fast.ops.embedding.reference.lookup import check_ids, embedding_rows


class QuantizedRows(TableFields):
    """The rows of the fields of one width: ``packed`` [R, E + 8], uint8, as adaftr_fast/ops/embedding/int8.py says."""

    packed: Tensor

    def __init__(self, table: EmbeddingTable, device: torch.device | str | None) -> None:
        super().__init__(table, device)
        rows, size = sum(table.num_embeddings), table.width + 8
        self.register_buffer("packed", torch.zeros(rows, size, dtype=torch.uint8, device=device))


class QuantizedEmbedding(EmbeddingFields):
    """Looks up what :class:`adaftr_fast.FusedEmbedding` does, in tables of int8 with a scale and a minimum per row.

    ``FusedEmbedding.quantized()`` makes one. A row takes E + 8 bytes rather than 4 E. A value is off by at most 1/510
    of the distance between the least and the largest value of its row, if that distance is well above 1e-8, which the
    format adds to it. The look-up returns float32, and has no gradient. It checks ids at once, also on a GPU, where the
    host waits.

    ``state_dict()`` has an entry per width, ``tables.<number>.packed`` [R, E + 8], uint8, in ascending order of width.
    The format of a row is that of FBGEMM and ``torch.ops.quantized.embedding_bag_byte_prepack``.

    Args:
        num_embeddings, embedding_dim, field_names, pooling, padding_idx, on_bad_id: those of the FusedEmbedding.
        device: device of the tables, which are zeros until a state is loaded.

    Raises:
        ValueError: as FusedEmbedding.
    """

    tables: ModuleList[QuantizedRows]  # type: ignore[assignment]

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
    ) -> None:
        super().__init__(
            num_embeddings,
            embedding_dim,
            field_names=field_names,
            pooling=pooling,
            padding_idx=padding_idx,
            on_bad_id=on_bad_id,
            device=device,
        )
        self.tables = ModuleList(QuantizedRows(table, device) for table in self.by_width)

    def field_weight(self, name: str | int) -> Tensor:
        """Returns the rows of one field as float32 [rows, E_f].

        Raises:
            KeyError: there is no such field.
        """
        f = self.field(name)
        number = next(number for number, table in enumerate(self.by_width) if f in table.fields)
        place = self.by_width[number].fields.index(f)
        return unpack_rows(self.tables[number].packed.split(self.by_width[number].num_embeddings)[place])

    def _compute_dtype(self) -> torch.dtype:
        return torch.float32

    @torch.no_grad()
    def _look_up_rows(self, number: int, rows: Tensor) -> Tensor:
        return sum_rows(self.tables[number].packed, rows, torch.arange(rows.shape[0] + 1, device=rows.device), None)

    @torch.no_grad()
    def _look_up_table(
        self, number: int, ids: Tensor, offsets: Tensor | None, per_sample_weights: Tensor | None, mean: bool
    ) -> Tensor:
        table, fields = self.tables[number], self.by_width[number]
        if offsets is None:
            check_ids("quantized_embedding", ids, table.offsets)
            rows = embedding_rows(ids, table.offsets)
            offsets = torch.arange(rows.shape[0] + 1, device=rows.device)
        else:
            ids, offsets, factors, _ = unpadded(ids, offsets, per_sample_weights, table.offsets)
            bag, rows = resolve_ids("quantized_embedding", ids, offsets, factors, table.offsets)
            if mean:
                share = offsets.diff()[bag].float().reciprocal()
                factors = share if factors is None else factors * share
            per_sample_weights = factors
        pooled = sum_rows(table.packed, rows, offsets, per_sample_weights)
        return pooled.reshape(-1, len(fields.fields) * fields.width)
