"""The ranks of the positives among the candidates of a contrast.

Shapes: B rows (anchors), N candidates, d width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from adaftr_fast.ops.infonce.arguments import check_representations, check_vectors
from adaftr_fast.ops.infonce.autograd import accumulation_dtype
from adaftr_fast.ops.infonce.reference import check_positive_range

# of the similarities that are stored at once, unless a single row has more
BLOCK_ELEMENTS = 1 << 22


@torch.no_grad()
def positive_ranks(
    h_ctr: Tensor,
    h_cvr: Tensor,
    *,
    positive_index: Tensor | None = None,
    row_group: Tensor | None = None,
    column_group: Tensor | None = None,
) -> Tensor:
    """Computes the rank of each row's positive among its candidates, of which recall@k and MRR are
    means.

    The rank is 1 plus the number of negatives whose similarity a_r . b_j is not below that of the
    positive, so it is 1 exactly where ``InfoNCEStats.top1`` is True. A temperature > 0 does not
    change it.

    The similarities are computed for some rows at a time, about 4 million elements, so that the B x
    N similarities are never stored. It is not a statistic of :func:`adaptive_infonce`, whose sweeps
    meet the positive among the negatives: those before it would have to be read again.

    Args:
        h_ctr: anchors [B, d]; float32, bfloat16, float16 or float64, any strides.
        h_cvr: candidates [N, d], of the same types. Half types are compared in float32.
        positive_index: [B] int64, the index of each row's positive among the candidates. -100
            ignores the row. Default: ``arange(B)``, which requires N >= B.
        row_group: [B] int64. A candidate with the same group id as the row is not a negative of the
            row.
        column_group: [N] int64, the group ids of the candidates. Default: ``row_group``, which
            requires N = B.

    Returns:
        int64 [B], from 1 to N; 0 for an ignored row.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: an argument has the wrong shape or device.
        RuntimeError: on CPU, a positive_index out of range.

    Example:
        >>> user, item = torch.randn(1024, 64), torch.randn(1024, 64)
        >>> ranks = adaftr_fast.positive_ranks(user, item)
        >>> recall_at_10 = (ranks <= 10).float().mean()
        >>> mean_reciprocal_rank = (1 / ranks).mean()
    """
    check_representations("positive_ranks", h_ctr, h_cvr)
    vectors = {
        "positive_index": positive_index,
        "row_group": row_group,
        "column_group": column_group,
    }
    check_vectors("positive_ranks", h_ctr, h_cvr, True, **vectors)
    dtype = accumulation_dtype(torch.promote_types(h_ctr.dtype, h_cvr.dtype))
    anchors = h_ctr.to(dtype)
    candidates = h_cvr.to(dtype)
    positive = (
        torch.arange(len(anchors), device=anchors.device)
        if positive_index is None
        else positive_index
    )
    # on other devices, reading the values would wait for the device
    if positive.device.type == "cpu":
        check_positive_range("positive_ranks", positive, len(candidates))
    column_group = row_group if column_group is None else column_group
    ranks = torch.zeros_like(positive)
    height = max(1, BLOCK_ELEMENTS // max(1, len(candidates)))
    for first in range(0, len(anchors) if len(candidates) else 0, height):
        rows = slice(first, first + height)
        with torch.autocast(anchors.device.type, enabled=False):
            similarity = anchors[rows] @ candidates.T  # [n, N]
        target = positive[rows].clamp(0, len(candidates) - 1)[:, None]  # [n, 1]
        ahead = ~(similarity < similarity.gather(1, target))  # NaN is not below
        ahead.scatter_(1, target, False)
        if row_group is not None and column_group is not None:
            ahead &= row_group[rows, None] != column_group
        ranks[rows] = 1 + ahead.sum(1)
    # On CUDA, where reading the values would wait for the device, a positive that is no candidate
    # has rank 0 too.
    return ranks.masked_fill((positive < 0) | (positive >= len(candidates)), 0)
