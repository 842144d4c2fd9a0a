"""Replicas of tables on several ranks, whose sparse gradients are averaged in backward.

DistributedDataParallel averages dense gradients. It knows sparse ones by the class of the module,
torch.nn.Embedding, and has none on NCCL.

Shapes: R rows of a table, U rows with a gradient, E embedding width.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from adaftr_fast.distributed.gather import gather_numbers, gather_rows
from adaftr_fast.nn.deferred import flush
from adaftr_fast.nn.embedding import FusedEmbedding
from adaftr_fast.ops.embedding.lookup import coalesce_gradient, sparse_rows


def replicate_tables(module: nn.Module, process_group: dist.ProcessGroup | None = None) -> None:
    """Keeps the tables of the FusedEmbedding modules in ``module`` equal on all ranks, under
    DistributedDataParallel.

    Call it on every rank, before DistributedDataParallel wraps ``module``. It copies the rows of
    the first rank to all ranks, leaves the tables out of DistributedDataParallel, and from then on
    replaces their gradients at the end of every backward by the mean over ranks, with equal bits on
    all ranks. Gradients that several calls of backward accumulate become the mean of the sums.
    Tables that are frozen or have ``sparse=False`` are left to DistributedDataParallel.

    All ranks must look up some table in each backward, or none. Copies of ``module`` are not kept
    equal.

    Args:
        module: the module that DistributedDataParallel gets.
        process_group: the ranks; the default group if None.

    Raises:
        ValueError: torch.distributed is not initialized.
        RuntimeError: in backward, ``module`` does not exist any more.

    Example: docs/frameworks.md
    """
    if process_group is None and not dist.is_initialized():
        raise ValueError(
            "replicate_tables: expected an initialized torch.distributed, or a process_group"
        )
    group = dist.group.WORLD if process_group is None else process_group
    assert group is not None
    tables = dict(_sparse_tables(module))
    ignored = {*getattr(module, "_ddp_params_and_buffers_to_ignore", ()), *tables}
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, ignored)
    replicas = _Replicas(module, group)
    for weight in tables.values():
        flush(weight)
        dist.broadcast(weight.detach(), group=group, group_src=0)
        weight.register_post_accumulate_grad_hook(replicas.average_later)


def _sparse_tables(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Returns the tables that get sparse gradients, by name, each once."""
    embeddings = [
        each for each in module.modules() if isinstance(each, FusedEmbedding) and each.sparse
    ]
    wanted = {
        weight for each in embeddings for weight in each.table_weights() if weight.requires_grad
    }
    return [(name, weight) for name, weight in module.named_parameters() if weight in wanted]


class _Replicas:
    """The tables of a module on this rank, of all those that replicate them."""

    def __init__(self, module: nn.Module, group: dist.ProcessGroup) -> None:
        self._module = weakref.ref(module)
        self._group = group
        self._backward = -1  # the number of the backward that averages at its end

    def average_later(self, weight: Tensor) -> None:
        """Averages all gradients at the end of this backward; the first of its hooks
        arranges that.
        """
        # a backward that raised has never reached its end
        backward = torch._C._current_graph_task_id()
        if self._backward != backward:
            self._backward = backward
            torch.autograd.Variable._execution_engine.queue_callback(self._average)

    @torch.no_grad()
    def _average(self) -> None:
        module = self._module()
        if module is None:
            raise RuntimeError(
                "replicate_tables: its module is gone, but its tables are trained; pass what "
                "is kept"
            )
        trained = [weight for _, weight in _sparse_tables(module)]
        for weight in trained:
            if weight.grad is None:  # a rank whose batch does not look this table up has no rows
                rows = torch.empty(0, dtype=torch.int64, device=weight.device)
                weight.grad = sparse_rows(rows, weight.new_empty(0, weight.shape[1]), weight.shape)
        average_rows(trained, self._group)


def average_rows(tables: Sequence[Tensor], group: dist.ProcessGroup) -> None:
    """Averages sparse gradients [R, E]: merges all ranks' rows in the order of ranks, so that
    replicas stay equal.
    """
    if not tables:
        return
    for table in tables:
        coalesce_gradient(table)
    grads = [grad for table in tables if (grad := table.grad) is not None]  # every table has one
    counts = torch.tensor([grad._nnz() for grad in grads], device=tables[0].device)
    for table, grad, sizes in zip(
        tables, grads, gather_numbers(counts, group).T.tolist(), strict=True
    ):
        rows = gather_rows(grad._indices()[0], sizes, group)  # [U] of all ranks
        values = gather_rows(grad._values() / len(sizes), sizes, group)  # [U, E]
        table.grad = sparse_rows(rows, values, table.shape)
        coalesce_gradient(table)
