"""Averages dense and sparse gradients over ranks, and clips them together with those of sharded tables.

Shapes: W ranks, R rows of a table, U rows with a gradient, E embedding width.

DistributedDataParallel does not fit. It has no sparse gradients on NCCL, and it communicates in every backward although
a step may take several. It overlaps communication with computation, which gains little for some hundred thousand dense
weights in one collective.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from adaftr_fast.distributed.gather import gather_numbers, gather_rows
from adaftr_fast.ops.embedding.lookup import coalesce_gradient
from adaftr_fast.torchrec.step import StepLookup


@torch.no_grad()
def average_gradients(parameters: Sequence[Tensor], values: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Replaces every gradient by its mean over ranks, which has the same bits on all ranks.

    Args:
        parameters: the parameters. The same ones must have gradients on all ranks.
        values: further numbers to average [k], in the collective of the dense gradients.
        group: the process group.

    Returns:
        The means of ``values`` [k].
    """
    having = [(parameter, grad) for parameter in parameters if (grad := parameter.grad) is not None]
    _merge_rows([parameter for parameter, grad in having if grad.is_sparse], group)
    dense = [grad for _, grad in having if not grad.is_sparse]
    flat = torch.cat([values, *(grad.flatten() for grad in dense)])
    dist.all_reduce(flat, group=group)
    values, *means = (flat / dist.get_world_size(group)).split([len(values), *(grad.numel() for grad in dense)])
    torch._foreach_copy_(dense, [mean.view_as(grad) for mean, grad in zip(means, dense)])
    return values


def _merge_rows(tables: Sequence[Tensor], group: dist.ProcessGroup) -> None:
    """Averages sparse gradients: merges all ranks' rows in the order of ranks, so that replicas stay equal."""
    if not tables:
        return
    for table in tables:
        coalesce_gradient(table)
    grads = [grad for table in tables if (grad := table.grad) is not None]  # every table has one
    counts = torch.tensor([grad._nnz() for grad in grads], device=tables[0].device)
    for table, grad, sizes in zip(tables, grads, gather_numbers(counts, group).T.tolist(), strict=True):
        rows = gather_rows(grad._indices()[0], sizes, group)  # [U] of all ranks
        values = gather_rows(grad._values() / len(sizes), sizes, group)  # [U, E]
        table.grad = torch.sparse_coo_tensor(rows[None], values, table.shape, check_invariants=False)
        coalesce_gradient(table)


@torch.no_grad()
def clip_with_sharded(
    parameters: Sequence[Tensor], held: Sequence[StepLookup], max_norm: float, group: dist.ProcessGroup
) -> None:
    """Scales dense gradients and those of sharded tables so that their joint norm is at most ``max_norm``.

    As ``adaftr_fast.optim.clip_grad_norm_``, which takes the rows of replicated tables. All ranks must call it.

    Args:
        parameters: the dense parameters, with averaged gradients.
        held: the look-ups of the step.
        max_norm: largest norm of the result.
        group: the process group.
    """
    grads = [grad for parameter in parameters if (grad := parameter.grad) is not None]
    squares = [torch.nn.utils.get_total_norm(grads).square()]
    squares += [each.squared_norm(group) for each in held]
    scale = (max_norm / (torch.stack(squares).sum().sqrt() + 1e-6)).clamp(max=1.0)
    torch._foreach_mul_(grads, scale)
    for each in held:
        each.scale(scale)
