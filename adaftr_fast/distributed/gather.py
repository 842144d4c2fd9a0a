"""Differentiable gathering of rows over ranks that may hold different numbers of rows.

Shapes: W ranks; rank r holds n_r rows, N in all. The transpose of gathering sums over the ranks and
keeps the rank's own rows. Each of the two is therefore the other's backward, and both can be
differentiated twice.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

# torch 2.13 renamed both and deprecates the old names.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


def gather_rows(x: Tensor, sizes: list[int], group: dist.ProcessGroup) -> Tensor:
    """Concatenates the ranks' rows [n_r, ...] in the order of ranks -> [N, ...] on every rank.

    The gradient of ``x`` sums the gradients of all ranks' results, so either all ranks or none must
    run backward.

    Args:
        x: this rank's rows [n_r, ...].
        sizes: n_r of every rank.
        group: the process group.
    """
    return _Exchange.apply(x, sizes, group, False)


def gather_numbers(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Stacks the ranks' vectors [k] -> [W, k] on every rank, without gradient."""
    gathered = x.new_empty(dist.get_world_size(group) * len(x))
    _all_gather(gathered, x.detach().contiguous(), group=group)
    return gathered.view(-1, len(x))


class _Exchange(torch.autograd.Function):
    """Gathers the ranks' rows, or sums what was gathered; each is the other's backward."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, sizes: list[int], group: dist.ProcessGroup, sums: bool
    ) -> Tensor:
        ctx.sizes = sizes
        ctx.group = group
        ctx.sums = sums
        return _summed(x, sizes, group) if sums else _gathered(x, sizes, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        return _Exchange.apply(grad, ctx.sizes, ctx.group, not ctx.sums), None, None, None


def _gathered(x: Tensor, sizes: list[int], group: dist.ProcessGroup) -> Tensor:
    """Gathers x [n_r, ...] -> [N, ...]."""
    longest = max(sizes)
    gathered = x.new_empty(len(sizes) * longest, *x.shape[1:])
    _all_gather(gathered, _zero_padded(x, longest), group=group)
    if min(sizes) == longest:
        return gathered
    return torch.cat([part[:size] for part, size in zip(gathered.split(longest), sizes)])


def _summed(x: Tensor, sizes: list[int], group: dist.ProcessGroup) -> Tensor:
    """Sums x [N, ...] over the ranks -> the rank's own rows [n_r, ...]."""
    longest = max(sizes)
    # Half precision would be rounded once per rank; the float32 sum is rounded once.
    wide = x if x.dtype in (torch.float32, torch.float64) else x.float()
    if min(sizes) < longest:
        wide = torch.cat([_zero_padded(part, longest) for part in wide.split(sizes)])
    summed = wide.new_empty(longest, *x.shape[1:])
    _reduce_scatter(summed, wide.contiguous(), group=group)
    return summed[: sizes[dist.get_rank(group)]].to(x.dtype)


def _zero_padded(x: Tensor, rows: int) -> Tensor:
    """Pads x [n, ...] with zeros to [rows, ...], because collectives require equal sizes."""
    return (
        x.contiguous()
        if len(x) == rows
        else torch.cat([x, x.new_zeros(rows - len(x), *x.shape[1:])])
    )
