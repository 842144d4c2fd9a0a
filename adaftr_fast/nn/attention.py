"""Target attention (Zhou et al., KDD'18): pools a multi-valued field by its relation to another
field of the row.

B batch, F fields, E width, N ids of all bags together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from adaftr_fast.nn.embedding_fields import EmbeddingFields, select_fields
from adaftr_fast.nn.mlp import Tower
from adaftr_fast.nn.module_list import ModuleList
from adaftr_fast.ops.embedding.reference.lookup import check_columns
from adaftr_fast.ops.embedding.segments import repeat_by_bag, sum_bags


class TargetAttention(nn.Module):
    """Pools the vectors of a bag, each weighted by its relation to a query (DIN, Eq. 3 and Fig. 2).

        pooled = sum_j a(q, k_j) k_j

    The activation unit a is a network of linear layers with ReLU, and a linear layer that gives the
    weight, over [q, k, q - k, q * k]. As in the paper, weights are not normalized by a softmax, so
    that their sum tells how much of the bag relates to the query, and the order of the bag has no
    effect. The paper's units use PReLU or Dice in place of ReLU, and its Fig. 2 shows the product
    of q and k without their difference, which the authors' code adds.

    Memory grows with N, not with the longest bag.

    Args:
        embedding_dim: E, the width of queries and keys.
        hidden: widths of the layers of the activation unit.

    Shape:
        - query: [B, E]
        - keys: [N, E], the vectors of the bags
        - offsets: [B + 1], int64, from 0 to N in non-decreasing order: where each bag begins
        - Output: [B, E]; zeros for an empty bag

    Raises:
        ValueError: ``hidden`` is empty or holds a width < 1, or shapes do not fit.
    """

    def __init__(self, embedding_dim: int, hidden: Sequence[int]) -> None:
        super().__init__()
        self.embedding_dim = embedding_dim
        self.unit = Tower(4 * embedding_dim, hidden)

    def forward(self, query: Tensor, keys: Tensor, offsets: Tensor) -> Tensor:
        if (
            query.shape != (offsets.shape[0] - 1, self.embedding_dim)
            or keys.shape[1:] != query.shape[1:]
        ):
            raise ValueError(
                f"TargetAttention: query and keys must be [{offsets.shape[0] - 1}, "
                f"{self.embedding_dim}] and "
                f"[N, {self.embedding_dim}], got {list(query.shape)} and {list(keys.shape)}"
            )
        q = repeat_by_bag(query, offsets, keys.shape[0])
        _, weights = self.unit(torch.cat([q, keys, q - keys, q * keys], 1))
        return sum_bags(weights[:, None].to(keys.dtype) * keys, offsets)


class FieldAttention(nn.Module):
    """Looks up F fields, of which some are pooled by :class:`TargetAttention` and the others by the
    embedding.

    A field that is pooled by attention has no rows of its own: its ids are those of its target, and
    its vectors are in the target's table.

    Args:
        targets: the position of the target, by that of the field that is pooled by attention.
        widths: F widths.
        hidden: widths of the layers of the activation units.
    """

    def __init__(
        self, targets: Mapping[int, int], widths: Sequence[int], hidden: Sequence[int]
    ) -> None:
        super().__init__()
        self.targets = dict(targets)
        self.widths = list(widths)
        self.others = [f for f in range(len(self.widths)) if f not in self.targets]
        self.units = ModuleList(TargetAttention(self.widths[f], hidden) for f in self.targets)

    def extra_repr(self) -> str:
        return f"targets={self.targets}, widths={self.widths}"

    def forward(
        self, embedding: EmbeddingFields, ids: Tensor, offsets: Tensor | None = None
    ) -> Tensor:
        """Looks up ids.

        Args:
            embedding: the fields without those of ``targets``, named by their positions among the F
                fields. Its pooled vector of a target is the query.
            ids: [B, F], or [N] with ``offsets``, int32 or int64.
            offsets: int64 [B * F + 1], where the ids of each row and field begin.

        Returns:
            [B, sum of the widths], in field order.

        Raises:
            IndexError, TypeError, ValueError: as FusedEmbedding.forward.
        """
        fields = len(self.widths)
        if offsets is None:
            check_columns("attention", ids, fields)
            ids, offsets = ids.flatten(), torch.arange(ids.numel() + 1, device=ids.device)
        bags = select_fields(self.others, ids, offsets, None, fields)
        parts = embedding(bags.ids, bags.offsets).split([self.widths[f] for f in self.others], 1)
        vectors = dict(zip(self.others, parts, strict=True))
        for unit, (f, target) in zip(self.units, self.targets.items(), strict=True):
            bags = select_fields([f], ids, offsets, None, fields, fill=0)
            keys = embedding.look_up_field(str(target), bags.ids)
            vectors[f] = unit(vectors[target], keys, bags.offsets)
        return torch.cat([vectors[f] for f in range(fields)], 1)
