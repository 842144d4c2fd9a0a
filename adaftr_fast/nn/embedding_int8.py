"""Embedding fields whose tables are int8, for serving.

B batch, F fields, R rows of all fields of a table, E width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn

from adaftr_fast.nn.embedding import FusedEmbedding
from adaftr_fast.nn.embedding_fields import EmbeddingFields
from adaftr_fast.nn.embedding_table import EmbeddingTable, Ids, TableFields
from adaftr_fast.nn.module_list import ModuleList
from adaftr_fast.ops.embedding.int8 import int8_embedding
from adaftr_fast.ops.embedding.lookup import runs_cuda_kernels
from adaftr_fast.ops.embedding.reference.int8 import round_rows

CHUNK = 1 << 20  # rows that are rounded at once


class Int8Table(TableFields):
    """A table rounded to int8.

    Attributes:
        weight: int8 [R, E].
        scale: float32 [R, 1], the factor of each row.
    """

    scale: Tensor

    def __init__(self, table: EmbeddingTable, weight: Tensor) -> None:
        super().__init__(table, weight.device)
        self.register_buffer("weight", torch.empty_like(weight, dtype=torch.int8))
        self.register_buffer("scale", weight.new_empty(len(weight), 1, dtype=torch.float32))
        for first in range(0, len(weight), CHUNK):
            part = slice(first, first + CHUNK)
            self.weight[part], self.scale[part] = round_rows(weight[part])

    def _look_up_ids(self, field_offsets: Tensor, given: Ids, mean: bool) -> Tensor:
        """Looks up as ``HoldsTable._look_up_ids``."""
        ids, offsets, factors = given
        # without the positions behind the last bag
        if offsets is not None and runs_cuda_kernels(ids):
            ids = ids[: offsets[-1]]
            factors = None if factors is None else factors[: offsets[-1]]
        return int8_embedding(self.weight, self.scale, ids, offsets, factors, field_offsets, mean)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Moves the buffers as ``fn`` does; ``half`` and ``bfloat16`` leave the scales
        in float32.
        """
        scale = self.scale
        super()._apply(fn, recurse)
        if self.scale.dtype != torch.float32:
            self.scale = scale.to(self.scale.device)
        return self


class QuantizedEmbedding(EmbeddingFields):
    """A copy of a :class:`FusedEmbedding` for serving, whose tables are int8 with a scale per row.

    A row takes E + 4 bytes instead of 4 E. A value is off by at most 1/254 of the largest magnitude
    of its row; zeros stay zeros. The look-up takes the arguments of ``FusedEmbedding.forward`` and
    returns float32, also after ``half()``, which leaves the scales as they are. The result has no
    gradient. Ids are checked at once, also on a GPU, where the host waits.

    It is exported by ``torch.export``, compiled, and written as ONNX as a FusedEmbedding is
    (docs/frameworks.md).

    ``state_dict()`` has the entries ``tables.<number>.weight``, int8 [R, E], and
    ``tables.<number>.scale``, float32 [R, 1], per width, in ascending order of width.

    Args:
        embedding: the embedding to copy; deferred steps of its rows are made first.

    Raises:
        TypeError: it is not a FusedEmbedding.
    """

    tables: ModuleList[Int8Table]

    @torch.no_grad()
    def __init__(self, embedding: FusedEmbedding) -> None:
        if not isinstance(embedding, FusedEmbedding):
            raise TypeError(
                "QuantizedEmbedding: embedding must be a FusedEmbedding, got "
                f"{type(embedding).__name__}; "
                "FusedEmbedding.from_pretrained takes the weight of an nn.Embedding"
            )
        super().__init__(
            embedding.num_embeddings,
            embedding.widths,
            field_names=embedding.field_names,
            pooling=embedding.pooling,
            include_last_offset=embedding.include_last_offset,
            padding_idx=embedding.padding_idx,
            on_bad_id=embedding.on_bad_id,
            device=embedding.offsets.device,
        )
        embedding.flush()
        weights = embedding.table_weights()
        self.tables = ModuleList(
            Int8Table(table, weight.detach()) for table, weight in zip(self.by_width, weights)
        )
        self.train(embedding.training)

    def field_weight(self, name: str | int) -> Tensor:
        """Returns the rows of one field, float32 [rows, E_f].

        Raises:
            KeyError: there is no such field.
        """
        number, place = self._locate(self.field(name))
        table = self.tables[number]
        sizes = self.by_width[number].num_embeddings
        rows: Tensor = table.weight.split(sizes)[place] * table.scale.split(sizes)[place]
        return rows

    def nbytes(self) -> int:
        """Returns the size of the tables."""
        return sum(each.weight.nbytes + each.scale.nbytes for each in self.tables)

    def float32_nbytes(self) -> int:
        """Returns the size that the tables have in float32."""
        return sum(4 * each.weight.numel() for each in self.tables)

    def _owners(self) -> list[Int8Table]:
        return [*self.tables]


def quantize_tables(model: nn.Module) -> list[QuantizedEmbedding]:
    """Replaces each FusedEmbedding within ``model`` by a :class:`QuantizedEmbedding`.

    Returns:
        The modules that took their places.
    """
    made: dict[nn.Module, QuantizedEmbedding] = {}
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if isinstance(child, FusedEmbedding):
                if child not in made:
                    made[child] = QuantizedEmbedding(child)
                setattr(parent, name, made[child])
    return list(made.values())
