"""Averages dense and sparse gradients over ranks.

DistributedDataParallel does not fit. It has no sparse gradients on NCCL, and it communicates in
every backward although a step may take several. It overlaps communication with computation, which
gains little for some hundred thousand dense weights in one collective.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from adaftr_fast.nn.replicas import average_rows


@torch.no_grad()
def average_gradients(
    parameters: Sequence[Tensor], values: Tensor, group: dist.ProcessGroup
) -> Tensor:
    """Replaces every gradient by its mean over ranks, which has the same bits on all ranks.

    Args:
        parameters: the parameters. The same ones must have gradients on all ranks.
        values: further numbers to average [k], in the collective of the dense gradients.
        group: the process group.

    Returns:
        The means of ``values`` [k].
    """
    having = [(parameter, grad) for parameter in parameters if (grad := parameter.grad) is not None]
    average_rows([parameter for parameter, grad in having if grad.is_sparse], group)
    dense = [grad for _, grad in having if not grad.is_sparse]
    flat = torch.cat([values, *(grad.flatten() for grad in dense)])
    dist.all_reduce(flat, group=group)
    values, *means = (flat / dist.get_world_size(group)).split(
        [len(values), *(grad.numel() for grad in dense)]
    )
    torch._foreach_copy_(dense, [mean.view_as(grad) for mean, grad in zip(means, dense)])
    return values
