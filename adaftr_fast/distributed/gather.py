"""Rows of all ranks on every rank, differentiable, for ranks with different numbers of rows.

W ranks; rank r holds n_r rows, N of them in all. The transpose of gathering is to sum over the ranks and keep one's own
rows, so each is the other's backward, and both can be differentiated twice.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

# torch 2.13 renamed both and warns of the old names.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


def gather_rows(x: Tensor, sizes: list[int], group: dist.ProcessGroup) -> Tensor:
    """[n_r, ...] of every rank -> [N, ...], in the order of ranks, on every rank.

    The gradient of ``x`` is the sum of what all ranks' results got, so all ranks must run backward, or none.

    Args:
        sizes: n_r of every rank.
    """
    return _GatherRows.apply(x, sizes, group)


def gather_numbers(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """[k] of every rank -> [W, k] on every rank, without gradient."""
    gathered = x.new_empty(dist.get_world_size(group) * len(x))
    _all_gather(gathered, x.detach().contiguous(), group=group)
    return gathered.view(-1, len(x))


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, sizes: list[int], group: dist.ProcessGroup) -> Tensor:
        ctx.sizes, ctx.group = sizes, group
        longest, rest = max(sizes), x.shape[1:]
        gathered = x.new_empty(len(sizes) * longest, *rest)
        _all_gather(gathered, _lengthened(x, longest), group=group)
        if min(sizes) == longest:
            return gathered
        return torch.cat([part[:size] for part, size in zip(gathered.view(-1, longest, *rest), sizes)])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return _SumRows.apply(grad, ctx.sizes, ctx.group), None, None


class _SumRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, sizes: list[int], group: dist.ProcessGroup) -> Tensor:
        ctx.sizes, ctx.group = sizes, group
        longest, own = max(sizes), sizes[dist.get_rank(group)]
        # Half precision would round after every rank; a sum of many is rounded once.
        wide = x if x.dtype in (torch.float32, torch.float64) else x.float()
        if min(sizes) < longest:
            wide = torch.cat([_lengthened(part, longest) for part in wide.split(sizes)])
        summed = wide.new_empty(longest, *x.shape[1:])
        _reduce_scatter(summed, wide.contiguous(), group=group)
        return summed[:own].to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return _GatherRows.apply(grad, ctx.sizes, ctx.group), None, None


def _lengthened(x: Tensor, rows: int) -> Tensor:
    """x [n, ...] with zeros after it, [rows, ...]: collectives want equal sizes."""
    return x.contiguous() if len(x) == rows else torch.cat([x, x.new_zeros(rows - len(x), *x.shape[1:])])
